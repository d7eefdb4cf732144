"""Metrics of logits: accuracy and calibration against labels, agreement with a teacher, by domain.

Pure and keyword-only functions of CPU tensors; sums are taken in float64. Three rules hold in all:
a label of -1 is unknown, and its row is left out wherever labels are read; a tie goes to the lowest
class; a row with a logit that is not finite is wrong and agrees with no teacher (its nll,
calibration and divergence are nan). The mean of no row at all is nan.

Shapes: N images, K classes, C bins of confidence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NUM_BINS = 15


@dataclass(frozen=True)
class Metrics:
    """Metrics of some images' logits: accuracies, calibration and agreement in percent, else nats.

    num_images counts unlabelled images too. agreement_pct, kl_to_teacher: None without a teacher.
    domains: the metrics of each domain that has images, by its name; a domain's own has none.
    ci95: the [low, high] ends of the accuracies' 95 % intervals, by name, where they were computed.
    """

    num_images: int
    top1_pct: float
    top5_pct: float
    mean_class_pct: float
    nll: float
    ece_pct: float
    agreement_pct: float | None = None
    kl_to_teacher: float | None = None
    domains: Mapping[str, Metrics] | None = None
    ci95: Mapping[str, Sequence[float]] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values by name, without those that are not known."""
        values = dataclasses.asdict(self)
        if self.domains is not None:
            values["domains"] = {name: part.to_json() for name, part in self.domains.items()}
        return {name: value for name, value in values.items() if value is not None}


def _pct(hit_N: Tensor) -> float:
    return 100 * hit_N.double().mean().item()


def topk_correct(*, logits_NK: Tensor, labels_N: Tensor, k: int) -> Tensor:
    """`bool[N]`: fewer than k classes come before the true one; False where the label is -1.

    Counts ranks, as `torch.topk` picks any of equal logits.
    """
    label_N1 = labels_N.clamp(min=0)[:, None]
    own_N1 = logits_NK.gather(1, label_N1)
    lower_NK = torch.arange(logits_NK.shape[1]) < label_N1
    ahead_NK = (logits_NK > own_N1) | ((logits_NK == own_N1) & lower_NK)
    return (ahead_NK.sum(1) < k) & logits_NK.isfinite().all(1) & (labels_N >= 0)


def top1_pct(*, logits_NK: Tensor, labels_N: Tensor) -> float:
    """Images whose largest logit is the true class, in percent."""
    return _pct(topk_correct(logits_NK=logits_NK, labels_N=labels_N, k=1)[labels_N >= 0])


def top5_pct(*, logits_NK: Tensor, labels_N: Tensor) -> float:
    """Images with the true class among the min(5, K) largest logits, in percent."""
    return _pct(topk_correct(logits_NK=logits_NK, labels_N=labels_N, k=5)[labels_N >= 0])


def mean_class_pct(*, logits_NK: Tensor, labels_N: Tensor) -> float:
    """Top-1 of each class that has an image, averaged over these classes, in percent."""
    hit_N = topk_correct(logits_NK=logits_NK, labels_N=labels_N, k=1)
    images_K = labels_N[labels_N >= 0].bincount()
    hits_K = labels_N[hit_N].bincount(minlength=len(images_K))
    return _pct((hits_K.double() / images_K)[images_K > 0])


def nll(*, logits_NK: Tensor, labels_N: Tensor) -> float:
    """Mean negative log-likelihood of the true class, in nats."""
    return F.cross_entropy(logits_NK.double(), labels_N, ignore_index=-1).item()


def ece_pct(*, logits_NK: Tensor, labels_N: Tensor) -> float:
    """Expected calibration error of the top class over 15 bins of equal width, in percent.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017; a bin is (low, high].
    """
    hit_N = topk_correct(logits_NK=logits_NK, labels_N=labels_N, k=1)[labels_N >= 0]
    confidence_N = logits_NK[labels_N >= 0].double().softmax(1).amax(1)
    inner_edges = torch.linspace(0, 1, NUM_BINS + 1, dtype=torch.float64)[1:-1]
    bin_N = torch.bucketize(confidence_N, inner_edges)
    # n_bin / N * |accuracy - confidence| is |hits - summed confidence| / N: no empty bin to dodge.
    gap_C = torch.zeros(NUM_BINS, dtype=torch.float64).index_add(
        0, bin_N, hit_N.double() - confidence_N
    )
    return (100 * gap_C.abs().sum() / len(hit_N)).item()


def agreement_pct(*, logits_NK: Tensor, teacher_NK: Tensor) -> float:
    """Images for which both models choose the same class, in percent; labels play no part."""
    finite_N = logits_NK.isfinite().all(1) & teacher_NK.isfinite().all(1)
    return _pct((logits_NK.argmax(1) == teacher_NK.argmax(1)) & finite_N)


def kl_to_teacher(*, logits_NK: Tensor, teacher_NK: Tensor) -> float:
    """Mean KL(teacher || student) at T = 1, in nats."""
    log_p_NK, log_q_NK = logits_NK.double().log_softmax(1), teacher_NK.double().log_softmax(1)
    return F.kl_div(log_p_NK, log_q_NK, reduction="none", log_target=True).sum(1).mean().item()


def entropy(*, logits_NK: Tensor) -> float:
    """Mean entropy of the predicted distribution, in nats; at most log K."""
    log_p_NK = logits_NK.double().log_softmax(1)
    return -(log_p_NK.exp() * log_p_NK).sum(1).mean().item()


def _metrics(logits_NK: Tensor, labels_N: Tensor, teacher_NK: Tensor | None) -> Metrics:
    both = None if teacher_NK is None else {"logits_NK": logits_NK, "teacher_NK": teacher_NK}
    return Metrics(
        len(labels_N),
        top1_pct(logits_NK=logits_NK, labels_N=labels_N),
        top5_pct(logits_NK=logits_NK, labels_N=labels_N),
        mean_class_pct(logits_NK=logits_NK, labels_N=labels_N),
        nll(logits_NK=logits_NK, labels_N=labels_N),
        ece_pct(logits_NK=logits_NK, labels_N=labels_N),
        agreement_pct(**both) if both else None,
        kl_to_teacher(**both) if both else None,
    )


def summarize(
    *,
    logits_NK: Tensor,
    labels_N: Tensor,
    domains_N: Tensor,
    domain_names: Sequence[str],
    teacher_NK: Tensor | None = None,
) -> Metrics:
    """Every metric over all images, and over each domain that has any.

    `domains_N` holds indices into `domain_names`. A domain's metrics are over the full label space:
    a bird taken for a dog is wrong.
    """
    parts = {}
    for index, name in enumerate(domain_names):
        here_N = domains_N == index
        if here_N.any():
            teacher = None if teacher_NK is None else teacher_NK[here_N]
            parts[name] = _metrics(logits_NK[here_N], labels_N[here_N], teacher)
    return dataclasses.replace(_metrics(logits_NK, labels_N, teacher_NK), domains=parts)
