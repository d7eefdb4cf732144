"""Tables of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fgkd import fsio, report


def result(run: str, **values: Any) -> dict[str, Any]:
    return {"run": run, "model": "deit", "num_images": 1433, "domains": {}} | values


def test_columns_are_aligned() -> None:
    text = report.table(["name", "n"], [["a", "1"], ["long name", "1,234"]])
    assert text.splitlines() == [
        "name           n",
        "---------  -----",
        "a              1",
        "long name  1,234",
    ]


def test_a_table_without_rows() -> None:
    assert report.table(["name", "n"], []).splitlines() == ["name  n", "----  -"]


def test_results() -> None:
    rows = [
        result("teacher", top1_pct=91.256, nll=0.31, minutes=None),
        result("student", top1_pct=88.0, nll=0.4567, agreement_pct=90.5, minutes=12.34),
    ]
    head, rule, first, second = (line.split() for line in report.results_table(rows).splitlines())
    assert head == ["run", "model", "images", "top-1", "%", "NLL", "agree", "%", "minutes"]
    assert len(rule) == 7
    assert first == ["teacher", "deit", "1,433", "91.26", "0.310"]  # what it lacks is blank
    assert second == ["student", "deit", "1,433", "88.00", "0.457", "90.50", "12.3"]
    lines = report.results_table(rows).splitlines()
    assert lines[2].index("91.26") == lines[3].index("88.00")
    assert lines[3].endswith("12.3")
    assert len(lines[3]) == len(lines[1])


def test_columns_that_no_run_has_are_left_out() -> None:
    text = report.results_table([result("a", top1_pct=50.0)])
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
    lines = report.results_table(rows).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["both", "cub", "dogs", "one"]
    assert lines[3].startswith("  cub ")
    assert lines[3].split() == ["cub", "1,000", "80.00"]
    assert lines[4].split() == ["dogs", "433", "90.00"]


def test_minutes_add_up_resumed_parts(tmp_path: Path) -> None:
    assert report.minutes(tmp_path) is None
    fsio.append_line(tmp_path / "timings.jsonl", {"epoch": 0, "train_s": 60.0, "eval_s": 30.0})
    fsio.append_line(tmp_path / "timings.jsonl", {"stage": "cache-logits", "train_s": 90.0})
    assert report.minutes(tmp_path) == pytest.approx(3.0)
