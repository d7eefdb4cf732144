"""Runs side by side: results -> a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fgkd import files

COLUMNS = {
    "top1_pct": "top-1 %",
    "top5_pct": "top-5 %",
    "mean_class_pct": "class mean %",
    "nll": "NLL",
    "ece_pct": "ECE %",
    "agreement_pct": "agree %",
    "kl_to_teacher": "KL",
}


def minutes(run_dir: Path) -> float | None:
    """Minutes a run or a capture took, evaluation and resumed parts included; None if unknown."""
    rows = files.read_numbers(run_dir / "timings.jsonl")
    return sum(r.get("train_s", 0.0) + r.get("eval_s", 0.0) for r in rows) / 60 if rows else None


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Columns aligned for a terminal: the first `left` to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.ljust(w) if i < left else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    return "\n".join([line(header), "  ".join("-" * w for w in widths), *map(line, rows)])


def results_table(results: Sequence[dict[str, Any]]) -> str:
    """One row a run, and below it one a domain where a run has several.

    An accuracy is followed by half the width of its 95 % interval, where there is one.
    """
    shown = {k: v for k, v in COLUMNS.items() if any(k in r for r in results)}
    timed = any(r.get("minutes") is not None for r in results)
    header = ["run", "images", *shown.values(), *(["minutes"] if timed else [])]
    rows = []
    for result in results:
        rows.append([result["run"], *_cells(result, list(shown))])
        if timed:
            took = result.get("minutes")
            rows[-1].append("" if took is None else f"{took:.1f}")
        for domain, part in result["domains"].items():
            if len(result["domains"]) > 1:
                row = [f"  {domain}", *_cells(part, list(shown)), *([""] if timed else [])]
                rows.append(row)
    return table(header, rows)


def _cells(values: dict[str, Any], names: list[str]) -> list[str]:
    return [f"{values['num_images']:,}", *(formatted(name, values) for name in names)]


def formatted(name: str, values: dict[str, Any]) -> str:
    """A metric of a result, with half the width of its 95 % interval where there is one."""
    value = values.get(name)
    if value is None:
        return ""
    text = f"{value:.2f}" if name.endswith("_pct") else f"{value:.3f}"
    low, high = values.get("ci95", {}).get(name, (None, None))
    return text if low is None else f"{text} ±{(high - low) / 2:.1f}"


def mcnemar_lines(results: Sequence[dict[str, Any]]) -> list[str]:
    """One line a pair of runs: who alone is right how often, and the p-value of no difference."""
    lines = []
    for result in results:
        for test in result["mcnemar"]:
            p = test["p_value"]
            lines.append(
                f"{result['run']} against {test['against']}: alone right on "
                f"{test['only_this']:,} and {test['only_other']:,} images, "
                + ("p < 0.001" if p < 0.001 else f"p = {p:.3f}")
                + (" (exact McNemar)" if test["test"] == "exact" else " (McNemar)")
            )
    return lines
