"""Statistics of the teacher on a cache's views: sums for each shard, and their summary.

Shape legend: V views, S samples, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fgkd.cache.encodings import Codec
from fgkd.cache.shards import (
    LOSS_TEMPERATURES,
    NUM_BINS,
    DomainCounts,
    ShardRow,
    ShardStats,
    Suspect,
)

MAX_SUSPECTS = 20


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """float64 log-probabilities along the last axis."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


# Statistics of one target; those of a shard are sums over its [V, S] of these.
TARGET = np.dtype(
    [
        ("top", np.int32),  # the class that the teacher predicts
        ("rank", np.int32),  # classes above the label: a tie counts for the label
        ("confidence", np.float64),
        ("entropy", np.float64),  # nats
        ("ratio", np.float64),  # the largest logit over the second; nan where that is 0
        ("encoding_kl", np.float64, len(LOSS_TEMPERATURES)),  # nan: the encoding does not have it
    ]
)


def of_targets(
    logits: np.ndarray, labels: np.ndarray, codec: Codec, arrays: dict[str, np.ndarray]
) -> np.ndarray:
    """TARGET of float32 teacher logits [..., C], labels [...] (-1: none) and what is stored."""
    found = np.zeros(logits.shape[:-1], TARGET)
    own = np.take_along_axis(logits, np.maximum(labels, 0)[..., None], -1)
    found["rank"] = (logits > own).sum(-1)
    found["top"] = logits.argmax(-1)
    log_p = log_softmax(logits)
    found["confidence"] = np.exp(log_p.max(-1))
    found["entropy"] = -(np.exp(log_p) * log_p).sum(-1)
    second, first = np.moveaxis(np.partition(logits, -2, axis=-1)[..., -2:], -1, 0)
    found["ratio"] = first / np.where(np.abs(second) < 1e-6, np.nan, second)
    for i, t in enumerate(LOSS_TEMPERATURES):
        found["encoding_kl"][..., i] = encoding_kl(logits, codec, arrays, t)
    return found


def of_shard(
    targets_VS: np.ndarray,
    labels_S: np.ndarray,
    domains_S: np.ndarray,
    keys: Sequence[str],
    partner_labels_VS: np.ndarray | None = None,
) -> ShardStats:
    """Sums over a shard's TARGETs; accuracy counts labelled samples.

    partner_labels_VS: the labels that views were mixed with, if they were.
    """
    known, rank_VS, confidence_VS = labels_S >= 0, targets_VS["rank"], targets_VS["confidence"]
    inner_edges = np.linspace(0, 1, NUM_BINS + 1)[1:-1]
    bins_VS = np.searchsorted(inner_edges, confidence_VS)  # (low, high]
    domains = [
        DomainCounts(
            images=int((known & (domains_S == d)).sum()),
            top1=tuple((rank_VS[:, known & (domains_S == d)] < 1).sum(1).tolist()),
            top5=tuple((rank_VS[:, known & (domains_S == d)] < 5).sum(1).tolist()),
        )
        for d in range(int(domains_S.max(initial=0)) + 1)
    ]

    def binned(weights_VS: np.ndarray) -> tuple[float, ...]:
        flat = bins_VS[:, known].ravel()
        return tuple(np.bincount(flat, weights_VS[:, known].ravel(), NUM_BINS).tolist())

    ratios = targets_VS["ratio"][np.isfinite(targets_VS["ratio"])]
    kls = targets_VS["encoding_kl"].sum((0, 1)).tolist()
    return ShardStats(
        domains=tuple(domains),
        targets=int(targets_VS.size),
        entropy=float(targets_VS["entropy"].sum()),
        ratios=float(np.median(ratios)) if ratios.size else 0.0,
        bin_hits=binned((rank_VS < 1).astype(float)),
        bin_confidence=binned(confidence_VS),
        encoding_kl=tuple(None if np.isnan(kl) else kl for kl in kls),
        suspects=suspects(labels_S, targets_VS["top"], confidence_VS, keys, partner_labels_VS),
    )


def encoding_kl(
    logits: np.ndarray, codec: Codec, arrays: dict[str, np.ndarray], t: float
) -> np.ndarray:
    """KL(teacher || stored) at temperature t, in nats, [...]; nan where the encoding has no t."""
    if codec.truncated and t not in codec.temperatures:
        return np.full(logits.shape[:-1], np.nan)
    log_p = log_softmax(logits / t)
    log_q = log_softmax(codec.decode(arrays, t) / t)
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)


def suspects(
    labels_S: np.ndarray,
    top_VS: np.ndarray,
    confidence_VS: np.ndarray,
    keys: Sequence[str],
    partner_labels_VS: np.ndarray | None = None,
) -> tuple[Suspect, ...]:
    """The samples for which the teacher predicts another class in every view, most certain first.

    A mixed view for which it predicts the partner's class does not count against the label.
    """
    denied_VS = top_VS != labels_S
    if partner_labels_VS is not None:
        denied_VS &= top_VS != partner_labels_VS
    denied_S = (labels_S >= 0) & denied_VS.all(0)
    score_S = np.where(denied_S, confidence_VS.min(0), -1.0)
    worst = np.argsort(-score_S, kind="stable")[:MAX_SUSPECTS]
    return tuple(
        Suspect(
            key=keys[i],
            label=int(labels_S[i]),
            answer=int(np.bincount(top_VS[:, i]).argmax()),
            confidence=float(score_S[i]),
        )
        for i in worst
        if score_S[i] > 0
    )


@dataclass(frozen=True)
class DomainSummary:
    """One domain's labelled images, and the teacher's accuracy on all their views."""

    images: int
    top1_pct: float
    top5_pct: float


@dataclass(frozen=True)
class Summary:
    """The teacher on all views of a cache: percentages of labelled targets, and means.

    encoding_kl: KL(teacher || stored) in nats, by temperature as text.
    """

    top1_pct: float
    top5_pct: float
    domains: dict[str, DomainSummary]
    views_top1_pct: list[float]
    views_top5_pct: list[float]
    entropy: float
    ece_pct: float
    top1_top2_ratio: float
    encoding_kl: dict[str, float]
    suspects: list[Suspect]

    def to_json(self) -> dict[str, Any]:
        """As in the report of `inspect`."""
        return asdict(self)


def summarize(rows: Sequence[ShardRow], domains: Sequence[str], views: int) -> Summary:
    """The summary of all shards of training views that have statistics."""
    parts = [(row.start, row.stop, row.stats) for row in rows if row.stats]
    images = np.zeros(len(domains))
    top1, top5 = np.zeros((len(domains), views)), np.zeros((len(domains), views))
    for start, stop, stats in parts:
        for d, counts in enumerate(stats.domains):
            images[d] += counts.images if start == 0 else 0
            top1[d, start:stop] += counts.top1
            top5[d, start:stop] += counts.top5
    found = [stats for _, _, stats in parts]
    total = sum(one.targets for one in found) or 1
    hits = np.sum([one.bin_hits for one in found], axis=0)
    confidence = np.sum([one.bin_confidence for one in found], axis=0)
    labelled = max(float(images.sum()) * views, 1.0)

    def pct(count: Any, of: Any) -> Any:
        return (100 * np.asarray(count) / np.maximum(of, 1)).tolist()

    def kl_at(i: int) -> float | None:
        values = [one.encoding_kl[i] for one in found]
        known = [kl for kl in values if kl is not None]
        return sum(known) / total if len(known) == len(values) else None

    kls = {f"{t:g}": kl_at(i) for i, t in enumerate(LOSS_TEMPERATURES)}
    return Summary(
        top1_pct=pct(top1.sum(), labelled),
        top5_pct=pct(top5.sum(), labelled),
        domains={
            name: DomainSummary(
                int(images[d]),
                pct(top1[d].sum(), images[d] * views),
                pct(top5[d].sum(), images[d] * views),
            )
            for d, name in enumerate(domains)
        },
        views_top1_pct=pct(top1.sum(0), images.sum()),
        views_top5_pct=pct(top5.sum(0), images.sum()),
        entropy=sum(one.entropy for one in found) / total,
        ece_pct=100 * float(np.abs(hits - confidence).sum()) / labelled,
        top1_top2_ratio=float(np.median([one.ratios for one in found])) if found else 0.0,
        encoding_kl={t: kl for t, kl in kls.items() if kl is not None},
        suspects=_suspects_of_every_range(rows, views),
    )


def _suspects_of_every_range(rows: Sequence[ShardRow], views: int) -> list[Suspect]:
    """Suspects of every view range of their block, by their lowest confidence."""
    found: dict[str, Suspect] = {}
    covered: dict[str, int] = {}
    for row in rows:
        for suspect in row.stats.suspects if row.stats else ():
            key = suspect.key
            covered[key] = covered.get(key, 0) + row.stop - row.start
            if key not in found or suspect.confidence < found[key].confidence:
                found[key] = suspect
    everywhere = [found[key] for key in found if covered[key] == views]
    return sorted(everywhere, key=lambda s: (-s.confidence, s.key))[:MAX_SUSPECTS]
