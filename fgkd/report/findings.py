"""Analysis of predictions: calibration, confusions, and accuracy by properties of the image.

Pure functions of NumPy arrays over labelled images. Shape legend: N images, K classes, C bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fgkd.evaluation import metrics


@dataclass(frozen=True)
class Answers:
    """A run's top answers: class, confidence (its probability) and whether it is the label."""

    answers_N: np.ndarray
    confidence_N: np.ndarray
    hit_N: np.ndarray

    @staticmethod
    def of(logits_NK: torch.Tensor, labels_N: np.ndarray) -> Answers:
        """From logits; a row that is not finite is wrong, with no confidence."""
        hit_N = metrics.topk_correct(
            logits_NK=logits_NK, labels_N=torch.from_numpy(labels_N), k=1
        ).numpy()
        confidence_N = logits_NK.double().softmax(1).amax(1).numpy()
        return Answers(logits_NK.argmax(1).numpy(), np.nan_to_num(confidence_N), hit_N)

    def take(self, rows: np.ndarray) -> Answers:
        """The answers at `rows`, in that order."""
        return Answers(self.answers_N[rows], self.confidence_N[rows], self.hit_N[rows])


def wilson(hits: float, images: float) -> tuple[float, float]:
    """The 95 % interval of a share, in percent (Wilson, JASA 1927); (0, 100) of no image."""
    if not images:
        return 0.0, 100.0
    z, share = 1.959963984540054, hits / images
    middle = share + z * z / (2 * images)
    half = z * np.sqrt(share * (1 - share) / images + z * z / (4 * images * images))
    scale = 100 / (1 + z * z / images)
    return float(scale * (middle - half)), float(scale * (middle + half))


def reliability(confidence_N: np.ndarray, hit_N: np.ndarray) -> np.ndarray:
    """[C, 3]: images, mean confidence and accuracy of each bin of `metrics.ece_pct`; nan if empty.

    A bin is (low, high].
    """
    inner_edges = np.linspace(0, 1, metrics.NUM_BINS + 1)[1:-1]
    bin_N = np.searchsorted(inner_edges, confidence_N)
    images_C, confidence_C, hits_C = (
        np.bincount(bin_N, weights, metrics.NUM_BINS)
        for weights in (None, confidence_N, hit_N.astype(float))
    )
    with np.errstate(invalid="ignore"):
        return np.stack([images_C, confidence_C / images_C, hits_C / images_C], axis=1)


def coverage(confidence_N: np.ndarray, hit_N: np.ndarray) -> np.ndarray:
    """[N]: accuracy among the 1, 2, ... N most confident answers; ties keep their order."""
    order_N = np.argsort(-confidence_N, kind="stable")
    return np.cumsum(hit_N[order_N]) / np.arange(1, len(hit_N) + 1)


def confused_pairs(labels_N: np.ndarray, answers_N: np.ndarray, most: int) -> list[tuple[int, int]]:
    """The pairs of classes (a < b) taken for each other most often, both ways together."""
    wrong_N = labels_N != answers_N
    low, high = np.minimum(labels_N, answers_N), np.maximum(labels_N, answers_N)
    pairs, images = np.unique(np.stack([low, high], 1)[wrong_N], axis=0, return_counts=True)
    order = np.argsort(-images, kind="stable")[:most]
    return [(int(a), int(b)) for a, b in pairs[order]]


def by_value(values_N: np.ndarray, hit_N: np.ndarray, bins: int = 5) -> np.ndarray:
    """[C, 5]: lowest, median and highest value, images and hits of parts of near-equal size.

    Equal values stay together; nothing where all are equal or unknown (nan).
    """
    known_N = np.isfinite(values_N)
    values, hits = values_N[known_N], hit_N[known_N]
    if not len(values) or values.min() == values.max():
        return np.zeros((0, 5))
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1], method="lower"))
    bin_n = np.searchsorted(edges, values)  # (low, high]
    parts = [(values[bin_n == c], hits[bin_n == c]) for c in np.unique(bin_n)]
    return np.array([(v.min(), np.median(v), v.max(), len(v), h.sum()) for v, h in parts])
