"""Tables of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fgkd import files
from fgkd.report import tables


def result(run: str, **values: Any) -> dict[str, Any]:
    return {"run": run, "num_images": 1433, "domains": {}, "mcnemar": []} | values


def test_columns_are_aligned() -> None:
    text = tables.table(["name", "n"], [["a", "1"], ["long name", "1,234"]])
    assert text.splitlines() == [
        "name           n",
        "---------  -----",
        "a              1",
        "long name  1,234",
    ]


def test_a_table_without_rows() -> None:
    assert tables.table(["name", "n"], []).splitlines() == ["name  n", "----  -"]


def test_results() -> None:
    rows = [
        result("teacher", top1_pct=91.256, nll=0.31, minutes=None),
        result("student", top1_pct=88.0, nll=0.4567, agreement_pct=90.5, minutes=12.34),
    ]
    head, rule, first, second = (line.split() for line in tables.results_table(rows).splitlines())
    assert head == ["run", "images", "top-1", "%", "NLL", "agree", "%", "minutes"]
    assert len(rule) == 6
    assert first == ["teacher", "1,433", "91.26", "0.310"]  # what it lacks is blank
    assert second == ["student", "1,433", "88.00", "0.457", "90.50", "12.3"]
    lines = tables.results_table(rows).splitlines()
    assert lines[2].index("91.26") == lines[3].index("88.00")
    assert lines[3].endswith("12.3")
    assert len(lines[3]) == len(lines[1])


def test_an_interval_stands_behind_its_accuracy() -> None:
    values = {"top1_pct": 50.0, "top5_pct": 75.25, "ci95": {"top1_pct": [47.0, 52.5]}}
    domains = {"a": {"num_images": 9, **values}, "b": {"num_images": 8, **values}}
    _, _, row, domain, _ = tables.results_table([result("r", **values, domains=domains)]).split(
        "\n"
    )
    assert row.split() == ["r", "1,433", "50.00", "±2.8", "75.25"]
    assert domain.split() == ["a", "9", "50.00", "±2.8", "75.25"]


def test_the_full_table_stays_within_120_columns() -> None:
    """The width of a full house: every column, intervals, a path of 27 characters."""
    accuracies = dict.fromkeys(("top1_pct", "top5_pct", "mean_class_pct"), 100.0)
    rest = {"nll": 12.345, "ece_pct": 25.0, "agreement_pct": 100.0, "kl_to_teacher": 10.123}
    ends = {"ci95": {name: [60.0, 90.0] for name in accuracies}}
    row = result("r" * 27, **accuracies, **rest, **ends, minutes=1234.5)
    assert max(map(len, tables.results_table([row]).splitlines())) <= 120


def test_mcnemar_lines() -> None:
    test = {"only_this": 1200, "only_other": 12, "test": "chi-square", "p_value": 1e-9}
    small = {"only_this": 3, "only_other": 5, "test": "exact", "p_value": 0.7266}
    against = [{"against": "a", **test}, {"against": "b", **small}]
    assert tables.mcnemar_lines([result("a"), result("c", mcnemar=against)]) == [
        "c against a: alone right on 1,200 and 12 images, p < 0.001 (McNemar)",
        "c against b: alone right on 3 and 5 images, p = 0.727 (exact McNemar)",
    ]


def test_columns_that_no_run_has_are_left_out() -> None:
    text = tables.results_table([result("a", top1_pct=50.0)])
    assert "agree" not in text
    assert "minutes" not in text
    assert "top-5" not in text


def test_a_row_a_domain_where_there_are_several() -> None:
    parts = {
        "cub": {"num_images": 1000, "top1_pct": 80.0},
        "dogs": {"num_images": 433, "top1_pct": 90.0},
    }
    one = {"cub": {"num_images": 1433, "top1_pct": 83.02}}
    rows = [
        result("both", top1_pct=83.02, domains=parts, minutes=1.0),
        result("one", top1_pct=83.02, domains=one),
    ]
    lines = tables.results_table(rows).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["both", "cub", "dogs", "one"]
    assert lines[3].startswith("  cub ")
    assert lines[3].split() == ["cub", "1,000", "80.00"]
    assert lines[4].split() == ["dogs", "433", "90.00"]


def test_minutes_add_up_resumed_parts(tmp_path: Path) -> None:
    assert tables.minutes(tmp_path) is None
    files.append_line(tmp_path / "timings.jsonl", {"epoch": 0, "train_s": 60.0, "eval_s": 30.0})
    files.append_line(tmp_path / "timings.jsonl", {"stage": "cache-logits", "train_s": 90.0})
    assert tables.minutes(tmp_path) == pytest.approx(3.0)
