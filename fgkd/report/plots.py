"""Plots of a report: arrays to SVG pictures for light and dark pages.

Shape legend: N images, C bins.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fgkd.report import findings
from fgkd.report.findings import Answers
from fgkd.report.page import Figure, Picture, data_uri

INK, GRID = "#3b4148", "#dfe3e7"  # replaced by the next two on a dark page
DARK_INK, DARK_GRID = "#cdd3da", "#3a414a"
# Middle tones that are distinct on white, on near-black, and to colour-blind readers.
COLOURS = ("#2f86d1", "#d97c1e", "#1f9e77", "#b565c7", "#d1495b", "#8a8f2a", "#6b7fd7")
RIGHT_WRONG = ("#1f9e77", "#e0703a")
STYLE = {
    **{"font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8, "legend.frameon": False},
    **{"text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK},
    **{"xtick.color": INK, "ytick.color": INK, "grid.color": GRID, "axes.grid": True},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True},
    **{"svg.fonttype": "none", "svg.hashsalt": "fgkd", "lines.linewidth": 1.6},
    "text.parse_math": False,  # a dollar sign in a class name is one
}
Draw = Callable[[Any], None]  # draws into a matplotlib Axes
Row = Mapping[str, float]


def label(name: str, length: int = 22) -> str:
    """A name as a plot shows it: printable and short."""
    clean = "".join(c if c.isprintable() else "\ufffd" for c in name)
    return clean if len(clean) <= length else clean[: length - 1] + "…"


def colour(index: int) -> str:
    """The colour of the run with this number, the same in every plot."""
    return COLOURS[index % len(COLOURS)]


def plot(title: str, caption: str, draw: Draw, height: float = 2.9, columns: int = 1) -> Figure:
    """Draw one set of axes (or `columns` of them, passed as a list) as a Figure."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    width = 4.8
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE}), warnings.catch_warnings():
        # A browser finds the glyphs that the font used for measuring lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        canvas = Canvas(figsize=(width, height), layout="constrained")
        axes = canvas.subplots(1, columns, squeeze=False, sharex=True, sharey=True)[0]
        draw(axes[0] if columns == 1 else list(axes))
        out = io.StringIO()
        canvas.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    light = out.getvalue()
    dark = light.replace(INK, DARK_INK).replace(GRID, DARK_GRID)
    sources = [data_uri(svg.encode(), "image/svg+xml") for svg in (light, dark)]
    size = (round(96 * width), round(96 * height))
    return Figure(
        Picture(sources[0], f"{title}. {caption}", *size, dark=sources[1]), title, caption
    )


def _legend(ax: Any) -> None:
    """Name the runs or series, if there are several."""
    if len(ax.get_legend_handles_labels()[1]) > 1:
        ax.legend()


def _whole_numbers(ax: Any) -> None:
    ax.xaxis.get_major_locator().set_params(integer=True)


def curves(
    runs: Mapping[str, Sequence[Row]],
    best: Mapping[str, int],
    column: str,
    title: str,
    unit: str,
    caption: str,
) -> Figure | None:
    """A column of each run's metrics by epoch; None where no run has it.

    best: the epoch of each run whose weights were kept, which is marked.
    """
    found = {
        name: [r for r in rows if {column, "epoch"} <= r.keys()] for name, rows in runs.items()
    }
    if not any(found.values()):
        return None

    def draw(ax: Any) -> None:
        for i, (name, rows) in enumerate(found.items()):
            x, y = [r["epoch"] for r in rows], [r[column] for r in rows]
            if rows:
                ax.plot(x, y, color=colour(i), label=label(name), marker="o", markersize=2.5)
                for at in [j for j, epoch in enumerate(x) if epoch == best.get(name)]:
                    ax.plot(x[at], y[at], color=colour(i), marker="*", markersize=11)
        ax.set(xlabel="epoch", ylabel=unit)
        _whole_numbers(ax)
        _legend(ax)

    return plot(title, f"{caption} Star: the epoch that was kept." if best else caption, draw)


def shares(
    rows: Mapping[str, Mapping[str, tuple[float, float, float]]], title: str, caption: str
) -> Figure:
    """Points with intervals: row -> series -> (percent, low, high)."""
    series = list(dict.fromkeys(name for parts in rows.values() for name in parts))

    def draw(ax: Any) -> None:
        for i, name in enumerate(series):
            shift = 0.22 * (i - (len(series) - 1) / 2)
            there = [
                (y + shift, *parts[name]) for y, parts in enumerate(rows.values()) if name in parts
            ]
            y, value, low, high = np.array(there).T
            bars = [np.maximum(value - low, 0), np.maximum(high - value, 0)]
            ax.errorbar(
                value,
                y,
                xerr=bars,
                fmt="o",
                markersize=4,
                capsize=2,
                color=colour(i),
                label=label(name),
            )
        ax.set_yticks(range(len(rows)), [label(name) for name in rows])
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.set_xlabel("images, %")
        ax.grid(axis="y", visible=False)
        _legend(ax)

    return plot(
        title, caption, draw, height=max(2.0, 1.0 + 0.42 * len(rows) * max(1, len(series) / 2))
    )


def reliability(name: str, index: int, answers: Answers, ece_pct: float) -> Figure:
    """Accuracy by confidence, with the share of images in each bin."""
    bins_C3 = findings.reliability(answers.confidence_N, answers.hit_N)
    images, confidence, accuracy = bins_C3[bins_C3[:, 0] > 0].T

    def draw(ax: Any) -> None:
        ax.plot([0, 100], [0, 100], color=INK, linewidth=0.8, linestyle="--")
        ax.bar(100 * confidence, 100 * images / images.sum(), width=5, color=INK, alpha=0.18)
        ax.plot(100 * confidence, 100 * accuracy, color=colour(index), marker="o", markersize=4)
        for x, y in zip(confidence, accuracy, strict=True):
            ax.plot([100 * x] * 2, [100 * x, 100 * y], color=colour(index), alpha=0.35)
        ax.set(xlabel="confidence, %", ylabel="accuracy, %", xlim=(0, 100), ylim=(0, 100))
        ax.text(4, 92, f"ECE {ece_pct:.2f} %")

    caption = (
        "Accuracy of the answers given with each confidence; on the dashed line confidence is "
        "honest, below it too high. Grey: share of images, %."
    )
    return plot(f"Reliability of {label(name, 40)}", caption, draw)


def confidences(name: str, answers: Answers) -> Figure:
    """How confident right and wrong answers are."""

    def draw(ax: Any) -> None:
        parts = [100 * answers.confidence_N[answers.hit_N == hit] for hit in (True, False)]
        names = [f"right ({len(parts[0]):,})", f"wrong ({len(parts[1]):,})"]
        ax.hist(parts, bins=np.linspace(0, 100, 21), stacked=True, label=names, color=RIGHT_WRONG)
        ax.set(xlabel="confidence, %", ylabel="images", xlim=(0, 100))
        ax.legend(loc="best")

    caption = "Images by the probability of the top answer, right answers below, wrong ones on top."
    return plot(f"Confidence of {label(name, 40)}", caption, draw)


def coverage(runs: Mapping[str, Answers]) -> Figure:
    """Accuracy when the least confident answers are left out."""

    def draw(ax: Any) -> None:
        for i, (name, answers) in enumerate(runs.items()):
            kept = findings.coverage(answers.confidence_N, answers.hit_N)
            at = np.unique(np.linspace(max(len(kept) // 20, 1) - 1, len(kept) - 1, 100).astype(int))
            ax.plot(100 * (at + 1) / len(kept), 100 * kept[at], color=colour(i), label=label(name))
        ax.set(
            xlabel="images answered, most confident first, %", ylabel="accuracy, %", xlim=(0, 100)
        )
        _legend(ax)

    caption = "Accuracy if only the most confident answers are kept: the right end is top-1 of all."
    return plot("Accuracy against coverage", caption, draw)


def class_curve(runs: Mapping[str, np.ndarray]) -> Figure:
    """Accuracies of the classes, from the hardest to the easiest."""

    def draw(ax: Any) -> None:
        for i, (name, pct_K) in enumerate(runs.items()):
            rank = np.arange(1, len(pct_K) + 1)
            ax.plot(rank, np.sort(pct_K), color=colour(i), label=label(name), drawstyle="steps-mid")
        ax.set(
            xlabel="class, hardest first (each run in its own order)",
            ylabel="top-1, %",
            ylim=(-2, 102),
        )
        _whole_numbers(ax)
        _legend(ax)

    caption = "Top-1 of every class, sorted: how many classes are hopeless, and how many solved."
    return plot("Classes from hard to easy", caption, draw)


def confusion(name: str, classes: Sequence[str], counts_KK: np.ndarray) -> Figure:
    """Who is taken for whom among a few classes; rows are the truth."""

    def draw(ax: Any) -> None:
        from matplotlib.colors import LinearSegmentedColormap, to_rgba

        ends: Any = [to_rgba(COLOURS[0], 0), to_rgba(COLOURS[0])]
        fade = LinearSegmentedColormap.from_list("fade", ends)
        share = counts_KK / np.maximum(counts_KK.sum(1, keepdims=True), 1)
        ax.imshow(share, cmap=fade, vmin=0, vmax=1)
        for (i, j), count in np.ndenumerate(counts_KK):
            if count:
                ax.text(j, i, f"{count:,}", ha="center", va="center", fontsize=7)
        names = [label(c, 14) for c in classes]
        ax.set_xticks(
            range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=7
        )
        ax.set_yticks(range(len(names)), names, fontsize=7)
        ax.set(xlabel="answer", ylabel="truth")
        ax.grid(visible=False)

    caption = (
        "Images of the classes most often confused, by truth (row) and answer (column); answers "
        "outside these classes are left out. Shade: share of the row."
    )
    return plot(f"Confusions of {label(name, 40)}", caption, draw, height=4.2)


def by_value(unit: str, values_N: np.ndarray, runs: Mapping[str, Answers]) -> Figure | None:
    """Top-1 by a property of the image; None where the images do not differ in it."""
    parts = {n: findings.by_value(values_N, answers.hit_N) for n, answers in runs.items()}
    if not all(len(part) > 1 for part in parts.values()):
        return None

    def draw(ax: Any) -> None:
        for i, (name, part_C5) in enumerate(parts.items()):
            low, middle, high, images, hits = part_C5.T
            ends = np.array([findings.wilson(h, n) for h, n in zip(hits, images, strict=True)]).T
            pct = 100 * hits / images
            x = np.arange(len(middle)) + 0.08 * (i - (len(parts) - 1) / 2)
            bars = [np.maximum(pct - ends[0], 0), np.maximum(ends[1] - pct, 0)]
            ax.errorbar(
                x,
                pct,
                yerr=bars,
                color=colour(i),
                label=label(name),
                marker="o",
                markersize=3.5,
                capsize=2,
            )
        spans = [
            f"{a:.3g} to {b:.3g}" if a < b else f"{a:.3g}" for a, b in zip(low, high, strict=True)
        ]
        ax.set_xticks(range(len(spans)), [s.replace(" to ", "\nto ") for s in spans])
        ax.set(xlabel=unit, ylabel="top-1, %")
        ax.grid(axis="x", visible=False)
        _legend(ax)

    counts = next(iter(parts.values()))[:, 3]
    caption = (
        f"Top-1 of images grouped by {unit}, {min(counts):,.0f} to {max(counts):,.0f} images a "
        "group; bars are 95 % intervals (Wilson)."
    )
    return plot(f"Top-1 by {unit.split(' (')[0]}", caption, draw)


def outcomes(counts: Mapping[str, int]) -> Figure:
    """How many images each combination of right and wrong has."""

    def draw(ax: Any) -> None:
        bars = ax.barh(range(len(counts)), list(counts.values()), color=COLOURS[0], height=0.65)
        ax.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8)
        ax.set_yticks(range(len(counts)), list(counts), fontsize=8)
        ax.set(xlabel="images", ylim=(len(counts) - 0.5, -0.5))
        ax.margins(x=0.14)
        ax.grid(axis="y", visible=False)

    caption = "Every image once, by who is right on it."
    return plot("Who is right", caption, draw, height=3.0)
