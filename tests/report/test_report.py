"""Tables of runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from fgkd import files
from fgkd.evaluation.intervals import McNemar
from fgkd.evaluation.metrics import Metrics
from fgkd.evaluation.scoring import Result
from fgkd.report import tables
from fgkd.training import run_folder

ACCURACIES = ("top1_pct", "top5_pct", "mean_class_pct")


def measured(num_images: int = 1433, **values: Any) -> Metrics:
    """Metrics that are 50, where they are not given."""
    return Metrics(num_images, **dict.fromkeys((*ACCURACIES, "nll", "ece_pct"), 50.0) | values)


def result(run: str, minutes: float | None = None, mcnemar: Any = (), **values: Any) -> Result:
    return Result(run, "test", "deit", "none", minutes, measured(**values), mcnemar)


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
        result("teacher", top1_pct=91.256, nll=0.31),
        result("student", 12.34, top1_pct=88.0, nll=0.4567, agreement_pct=90.5),
    ]
    lines = tables.results_table(rows).splitlines()
    head, rule, first, second = (line.split() for line in lines)
    names = ["top-1", "%", "top-5", "%", "class", "mean", "%", "NLL", "ECE", "%", "agree", "%"]
    assert head == ["run", "images", *names, "minutes"]
    assert len(rule) == 9
    others = ["50.00", "50.00"]
    assert first == ["teacher", "1,433", "91.26", *others, "0.310", "50.00"]  # the rest is blank
    assert second == ["student", "1,433", "88.00", *others, "0.457", "50.00", "90.50", "12.3"]
    assert lines[2].index("91.26") == lines[3].index("88.00")
    assert lines[3].endswith("12.3")
    assert len(lines[3]) == len(lines[1])


def test_an_interval_stands_behind_its_accuracy() -> None:
    values = {"top5_pct": 75.25, "ci95": {"top1_pct": [47.0, 52.5]}}
    domains = {"a": measured(9, **values), "b": measured(8, **values)}
    _, _, row, domain, _ = tables.results_table([result("r", **values, domains=domains)]).split(
        "\n"
    )
    assert row.split()[:5] == ["r", "1,433", "50.00", "±2.8", "75.25"]
    assert domain.split()[:5] == ["a", "9", "50.00", "±2.8", "75.25"]


def test_the_full_table_stays_within_120_columns() -> None:
    """With every column, intervals, and a path of 27 characters."""
    accuracies = dict.fromkeys(ACCURACIES, 100.0)
    rest = {"nll": 12.345, "ece_pct": 25.0, "agreement_pct": 100.0, "kl_to_teacher": 10.123}
    ends = {"ci95": {name: [60.0, 90.0] for name in accuracies}}
    row = result("r" * 27, 1234.5, **accuracies, **rest, **ends)
    assert max(map(len, tables.results_table([row]).splitlines())) <= 120


def test_mcnemar_lines() -> None:
    tests = (
        ("a", McNemar(1200, 12, "chi-square", 1e-9)),
        ("b", McNemar(3, 5, "exact", 0.7266)),
    )
    assert tables.mcnemar_lines([result("a"), result("c", mcnemar=tests)]) == [
        "c against a: 1,200 images only the first gets right, 12 only the second; "
        "p < 0.001 (McNemar)",
        "c against b: 3 images only the first gets right, 5 only the second; "
        "p = 0.727 (exact McNemar)",
    ]


def test_columns_that_no_run_has_are_left_out() -> None:
    text = tables.results_table([result("a")])
    assert "agree" not in text
    assert "minutes" not in text
    assert "top-1" in text


def test_a_row_a_domain_where_there_are_several() -> None:
    parts = {"cub": measured(1000, top1_pct=80.0), "dogs": measured(433, top1_pct=90.0)}
    one = {"cub": measured(1433, top1_pct=83.02)}
    rows = [
        result("both", 1.0, top1_pct=83.02, domains=parts),
        result("one", top1_pct=83.02, domains=one),
    ]
    lines = tables.results_table(rows).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["both", "cub", "dogs", "one"]
    assert lines[3].startswith("  cub ")
    assert lines[3].split()[:3] == ["cub", "1,000", "80.00"]
    assert lines[4].split()[:3] == ["dogs", "433", "90.00"]


def test_the_json_of_a_result_is_flat_and_leaves_out_what_is_unknown() -> None:
    test = McNemar(3, 5, "exact", 0.7266)
    found = result("a", domains={"x": measured(9)}, mcnemar=(("b", test),)).to_json()
    assert list(found)[:5] == ["run", "split", "model", "tta", "minutes"]
    assert found["domains"]["x"]["num_images"] == 9
    assert found["mcnemar"] == [{"against": "b"} | vars(test)]
    assert "agreement_pct" not in found
    assert "domains" not in found["domains"]["x"]
    assert all(math.isfinite(found[name]) for name in ACCURACIES)


def test_minutes_add_up_resumed_parts(tmp_path: Path) -> None:
    assert run_folder.minutes(tmp_path) is None
    files.append_line(tmp_path / "timings.jsonl", {"epoch": 0, "train_s": 60.0, "eval_s": 30.0})
    files.append_line(tmp_path / "timings.jsonl", {"stage": "cache-logits", "train_s": 90.0})
    assert run_folder.minutes(tmp_path) == pytest.approx(3.0)
