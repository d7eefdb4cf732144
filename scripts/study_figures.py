"""Tables and the plot of the study's rows.

Shape legend: S seeds, N images, R resamples.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import study_arms as table

RESAMPLES = 4000
Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Gap:
    """The difference of two arms' top-1 in points, its 95 % interval and two-sided p-value."""

    points: float
    low: float
    high: float
    p: float

    def __str__(self) -> str:
        p = "p < 0.001" if self.p < 0.001 else f"p = {self.p:.2g}"
        return f"{self.points:+.1f} [{self.low:+.1f}, {self.high:+.1f}], {p}"


def hits(rows: Rows, arm: str) -> dict[int, np.ndarray]:
    """Of each seed, which images are right: bool [N]."""
    return {
        row["seed"]: np.unpackbits(np.frombuffer(bytes.fromhex(row["hits"]), np.uint8))[
            : row["images"]
        ].astype(bool)
        for row in rows
        if row["arm"] == arm
    }


def gap(rows: Rows, arm: str, other: str) -> Gap | None:
    """How far an arm is ahead of another, over the seeds that both have.

    A bootstrap over two levels, as both vary: seeds and images are drawn with replacement, the
    same ones for both arms (Davison and Hinkley, 1997, section 3.8).
    """
    these, others = hits(rows, arm), hits(rows, other)
    seeds = sorted(these.keys() & others.keys())
    if not seeds:
        return None
    difference_SN = np.stack([these[s].astype(np.int8) - others[s] for s in seeds])
    draw = np.random.Generator(np.random.Philox(0))
    num_seeds, num_images = difference_SN.shape
    means_R = np.empty(RESAMPLES)
    for r in range(RESAMPLES):
        seeds_S = draw.integers(num_seeds, size=num_seeds)
        images_N = draw.integers(num_images, size=num_images)
        means_R[r] = difference_SN[seeds_S][:, images_N].mean()
    low, high = np.percentile(100 * means_R, (2.5, 97.5))
    p = 2 * min(np.mean(means_R <= 0), np.mean(means_R >= 0))
    return Gap(100 * float(difference_SN.mean()), float(low), float(high), min(1.0, float(p)))


def scores(rows: Rows, arm: str) -> list[float]:
    """Test top-1 of each seed."""
    return [row["test_top1_pct"] for row in rows if row["arm"] == arm]


def mean_and_spread(values: Sequence[float]) -> str:
    """`51.36 ± 0.42`: the mean, and the standard deviation over seeds."""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def tables(rows: Rows) -> str:
    """Markdown: the teachers; of each size its methods by epochs, with the gap to labels; then what
    was compared with another method than labels."""
    parts = []
    teachers = [row for row in rows if row["arm"].startswith("teacher/")]
    if teachers:
        named = (f"{row['arm'][8:]} {row['test_top1_pct']:.2f} %" for row in teachers)
        parts.append("Teachers, test top-1: " + ", ".join(named) + ".")
    groups: dict[str, list[str]] = {}
    for method, how in table.METHODS.items():
        groups.setdefault(how.against, [how.against]).append(method)
    for size in table.SIZES:
        for against, methods in groups.items():
            lines = [
                _line(rows, f"{size}/{method}/{epochs}", f"{size}/{against}/{epochs}")
                for method in dict.fromkeys(methods)
                for epochs in table.LENGTHS
                if scores(rows, f"{size}/{method}/{epochs}")
            ]
            if len({line.split("|")[1] for line in lines}) > 1:  # with something to compare
                columns = f"{size} student", "epochs", "seeds", "test top-1 %", "against the first"
                parts += ["", f"| {' | '.join(columns)} | minutes |", "|---" * 6 + "|", *lines]
    return "\n".join(parts)


def _line(rows: Rows, arm: str, baseline: str) -> str:
    """A row of a table: an arm, and how far it is ahead of its baseline."""
    _, method, epochs = arm.split("/")
    found, ahead = scores(rows, arm), None if arm == baseline else gap(rows, arm, baseline)
    minutes = statistics.mean(row["minutes"] for row in rows if row["arm"] == arm)
    cells = [table.METHODS[method].text, epochs, str(len(found)), mean_and_spread(found)]
    return f"| {' | '.join([*cells, str(ahead or ''), f'{minutes:.1f}'])} |"


def curve_caches() -> list[table.Cache]:
    """The caches that the plotted methods learn from."""
    named = [table.METHODS[method].cache for method in table.CURVES]
    return [table.CACHES[name] for name in named if name]


def draw(rows: Rows, path: Path) -> None:
    """Top-1 by epochs, a curve a method, an axis a size; the teachers as dotted lines."""
    import matplotlib
    from matplotlib.figure import Figure

    sizes = [s for s in table.SIZES if any(row["arm"].startswith(f"{s}/") for row in rows)]
    with matplotlib.rc_context({"svg.hashsalt": "fgkd", "font.size": 9}):
        canvas = Figure(figsize=(1 + 4.2 * len(sizes), 3.6), layout="constrained")
        axes = canvas.subplots(1, len(sizes), squeeze=False, sharey=True)[0]
        for ax, size in zip(axes, sizes, strict=True):
            for index, method in enumerate(table.CURVES):
                how = table.METHODS[method]
                found = {e: scores(rows, f"{size}/{method}/{e}") for e in table.LENGTHS}
                there = [e for e in table.LENGTHS if found[e]]
                if not there:
                    continue
                means = [statistics.mean(found[e]) for e in there]
                spread = [statistics.stdev(found[e]) if len(found[e]) > 1 else 0 for e in there]
                ax.errorbar(there, means, spread, label=how.text, color=f"C{index}", capsize=3)
            used = {name for cache in curve_caches() for name in cache.teachers}
            for row in rows:
                if row["arm"].removeprefix("teacher/") in used:
                    ax.axhline(row["test_top1_pct"], color="0.5", linestyle=":")
                    place = (table.LENGTHS[0], row["test_top1_pct"])
                    ax.annotate(f"teacher, {row['arm'][8:]}", place, va="bottom", color="0.4")
            ax.margins(y=0.1)  # the teachers' names are above their lines
            ax.set_xscale("log", base=2)
            ax.set_xticks(table.LENGTHS, [str(e) for e in table.LENGTHS])
            ax.set(xlabel="epochs", title=f"{size} student")
            ax.grid(color="0.9")
        axes[0].set_ylabel("test top-1 %")
        axes[-1].legend(frameon=False, loc="lower right")
        canvas.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)
