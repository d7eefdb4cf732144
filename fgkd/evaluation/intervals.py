"""Confidence intervals of accuracies, and McNemar's test between two models.

Plain functions of NumPy arrays. Shapes: N images, R resamples, K classes, M cells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fgkd import rng
from fgkd.evaluation import metrics

NUM_RESAMPLES = 2000
CHUNK_DRAWS = 1 << 20  # bounds the memory; the draws do not depend on it
EXACT_BELOW = 25  # discordant pairs under which the chi-square is a poor approximation


def resampled_counts(
    cells_N: np.ndarray, num_cells: int, resamples: int = NUM_RESAMPLES
) -> np.ndarray:
    """int64 [R, M]: how many of N images, drawn with replacement, fall into each cell.

    The draws are a function of N alone, so that runs on one split are resampled alike.
    """
    n = len(cells_N)
    stream = rng.stream("bootstrap", n)
    parts = []
    for first in range(0, resamples, per := max(CHUNK_DRAWS // n, 1)):
        count = min(per, resamples - first)
        # Multiply-shift on 32 bits: a row in [0, n), with a bias below n / 2**32.
        rows = ((stream.raw(count * n) >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32)
        drawn = cells_N[rows.astype(np.int64)].reshape(count, n)
        drawn += np.arange(count)[:, None] * num_cells
        parts.append(np.bincount(drawn.ravel(), minlength=count * num_cells))
    return np.concatenate(parts).reshape(resamples, num_cells)


def accuracy_ci95(
    *, logits_NK: Tensor, labels_N: Tensor, resamples: int = NUM_RESAMPLES
) -> dict[str, list[float]]:
    """95 % percentile bootstrap intervals [low, high] of the three accuracies, in percent.

    A resample's class mean is over the classes drawn. Efron and Tibshirani, "An Introduction to
    the Bootstrap", 1993, chapter 13. Images without a label are left out; of none, nan.
    """
    known_N = labels_N >= 0
    names = ("top1_pct", "top5_pct", "mean_class_pct")
    if not known_N.any():
        return {name: [math.nan, math.nan] for name in names}
    num_classes = logits_NK.shape[1]
    top1_N, top5_N = (
        metrics.topk_correct(logits_NK=logits_NK, labels_N=labels_N, k=k)[known_N].numpy()
        for k in (1, 5)
    )
    # The accuracies depend on label and hits alone, so counts of 4 cells per class describe a
    # sample.
    cells_N = labels_N[known_N].numpy() * 4 + top1_N * 2 + top5_N
    counts = resampled_counts(cells_N, 4 * num_classes, resamples).reshape(resamples, -1, 2, 2)
    images_RK, hits_RK = counts.sum((2, 3)), counts[:, :, 1].sum(2)
    with np.errstate(invalid="ignore"):  # 0 / 0: a class that was not drawn
        recall_RK = hits_RK / images_RK
    means = (
        hits_RK.sum(1) / len(cells_N),
        counts[..., 1].sum((1, 2)) / len(cells_N),
        np.nanmean(recall_RK, axis=1),
    )
    return {
        name: [float(x) for x in np.percentile(100 * mean_R, (2.5, 97.5))]
        for name, mean_R in zip(names, means, strict=True)
    }


def difference_ci95(*, hit_N: np.ndarray, other_hit_N: np.ndarray) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a difference of two accuracies, in points.

    The two are of the same images, which are resampled together. Of no image, nan.
    """
    if not len(hit_N):
        return math.nan, math.nan
    counts_R4 = resampled_counts(2 * hit_N.astype(np.int64) + other_hit_N, 4)
    gain_R = 100 * (counts_R4[:, 2] - counts_R4[:, 1]) / len(hit_N)
    low, high = np.percentile(gain_R, (2.5, 97.5))
    return float(low), float(high)


@dataclass(frozen=True)
class McNemar:
    """McNemar's test of two models on the same images.

    only_this, only_other: images that one alone has right. test: "exact" (binomial, two-sided) or
    "chi-square" (with continuity correction). p_value: of no difference.
    """

    only_this: int
    only_other: int
    test: str
    p_value: float


def mcnemar(*, hit_N: np.ndarray, other_hit_N: np.ndarray) -> McNemar:
    """McNemar's test of two models, from whether each has each image right.

    Exact below 25 images that one alone has right, else chi-square. McNemar, Psychometrika 1947;
    Edwards, Psychometrika 1948.
    """
    only_this, only_other = int((hit_N & ~other_hit_N).sum()), int((other_hit_N & ~hit_N).sum())
    n, fewer = only_this + only_other, min(only_this, only_other)
    if n < EXACT_BELOW:
        tail = sum(math.comb(n, i) for i in range(fewer + 1)) / 2**n
        return McNemar(only_this, only_other, "exact", min(1.0, 2 * tail))
    chi_square = max(abs(only_this - only_other) - 1, 0) ** 2 / n
    p_value = math.erfc(math.sqrt(chi_square / 2))
    return McNemar(only_this, only_other, "chi-square", p_value)
