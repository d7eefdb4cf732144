"""Tables of results in plain text."""

from __future__ import annotations

from collections.abc import Sequence

from fgkd.evaluation.metrics import Metrics
from fgkd.evaluation.prediction import Prediction
from fgkd.evaluation.scoring import Result

COLUMNS = {
    "top1_pct": "top-1 %",
    "top5_pct": "top-5 %",
    "mean_class_pct": "class mean %",
    "nll": "NLL",
    "ece_pct": "ECE %",
    "agreement_pct": "agree %",
    "kl_to_teacher": "KL",
}


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: int = 1,
    width: int | None = None,
) -> str:
    """Columns aligned for a terminal: the first `left` to the left, the others to the right.

    width: columns of the terminal; a wider table is shown in parts, each with its first column.
    """
    if width is not None:
        first = max(len(row[0]) for row in [header, *rows])
        if first > width // 2:
            rows = [[_cut(row[0], width // 2), *row[1:]] for row in rows]
            first = width // 2
        parts, used = [[0]], first
        for i in range(1, len(header)):
            needed = 2 + max(len(row[i]) for row in [header, *rows])
            if used + needed > width and len(parts[-1]) > 1:
                parts.append([0])
                used = first
            parts[-1].append(i)
            used += needed
        if len(parts) > 1:
            return "\n\n".join(
                table([header[i] for i in part], [[row[i] for i in part] for row in rows])
                for part in parts
            )
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.ljust(w) if i < left else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    return "\n".join([line(header), "  ".join("-" * w for w in widths), *map(line, rows)])


def _cut(name: str, length: int) -> str:
    """A name with its middle left out: both ends of a path tell it from others."""
    return (
        name if len(name) <= length else f"{name[: length // 3]}…{name[1 + length // 3 - length :]}"
    )


def known_columns(results: Sequence[Result]) -> dict[str, str]:
    """Of `COLUMNS`, those that some result has."""
    return {
        name: title
        for name, title in COLUMNS.items()
        if any(getattr(one.metrics, name) is not None for one in results)
    }


def results_table(results: Sequence[Result], width: int | None = None) -> str:
    """One row per run, and below it one per domain where a run has several; see `table` for width.

    An accuracy is followed by half the width of its 95 % interval, where there is one.
    """
    shown = known_columns(results)
    timed = any(one.minutes is not None for one in results)
    header = ["run", "images", *shown.values(), *(["minutes"] if timed else [])]
    rows = []
    for one in results:
        took = "" if one.minutes is None else f"{one.minutes:.1f}"
        rows.append([one.run, *_cells(one.metrics, list(shown)), *([took] if timed else [])])
        domains = one.metrics.domains or {}
        if len(domains) > 1:
            for name, part in domains.items():
                blank = [""] if timed else []
                rows.append([f"  {name}", *_cells(part, list(shown)), *blank])
    return table(header, rows, width=width)


def _cells(values: Metrics, names: Sequence[str]) -> list[str]:
    return [f"{values.num_images:,}", *(formatted(name, values) for name in names)]


def formatted(name: str, values: Metrics) -> str:
    """A metric by name, with half the width of its 95 % interval where there is one."""
    value = getattr(values, name)
    if value is None:
        return ""
    text = f"{value:.2f}" if name.endswith("_pct") else f"{value:.3f}"
    if not values.ci95 or name not in values.ci95:
        return text
    low, high = values.ci95[name]
    return f"{text} ±{(high - low) / 2:.1f}"


def p_value(p: float) -> str:
    """`p = 0.023`, or `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def mcnemar_lines(results: Sequence[Result]) -> list[str]:
    """One line a pair of runs: images that one alone has right, and the p-value."""
    lines = []
    for one in results:
        for against, test in one.mcnemar:
            lines.append(
                f"{one.run} against {against}: "
                f"{test.only_this:,} images only the first gets right, "
                f"{test.only_other:,} only the second; "
                + p_value(test.p_value)
                + (" (exact McNemar)" if test.test == "exact" else " (McNemar)")
            )
    return lines


def predictions_table(found: Sequence[Prediction], many_models: bool) -> str:
    """A line per class, the image at its first; an error in place of the class."""
    rows = []
    for one in found:
        head = [one.image, *([one.run] if many_models else [])]
        top = [(name, f"{100 * p:.2f}") for name, p in one.top] or [(f"error: {one.error}", "")]
        for number, cells in enumerate(top):
            rows.append([*(head if number == 0 else [""] * len(head)), *cells])
    header = ["image", *(["run"] if many_models else []), "class", "probability %"]
    return table(header, rows, left=len(header) - 1)
