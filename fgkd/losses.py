"""Losses of a student: cross entropy to labels, and distillation losses to a teacher's logits.

Pure and keyword-only, so that student and teacher, two tensors of one shape, cannot be swapped.
`student_logits` and `teacher_logits` are float [B, K], `labels` int64 [B] with -1 where unknown.
Every loss is the mean over the rows of the batch, in float32 (float64 when the student's logits
are): a softmax in half precision loses its tail. Logits of two shapes, or of another shape than
[B, K], and a temperature that is no finite number above 0 are a ValueError.

Shapes: B batch, K classes, R = K - 1 the classes that are not the target; suffix `_B1` is a column.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fgkd.errors import UnknownName, near

Gather = Callable[[Tensor], Tensor]  # rows of one rank -> rows of all


FLOAT32_UP_TO = 20.0  # a temperature


def _dtype(logits_BK: Tensor) -> torch.dtype:
    """Of a loss: float32, or float64 if the student's logits are."""
    return torch.promote_types(logits_BK.dtype, torch.float32)


def _pair(student_BK: Tensor, teacher_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the student's precision: a live float64 teacher is rounded as a float32 cache is."""
    if student_BK.shape != teacher_BK.shape or student_BK.ndim != 2:
        shapes = f"{list(student_BK.shape)} and {list(teacher_BK.shape)}"
        raise ValueError(f"the student's and the teacher's logits are {shapes}, not [B, K] twice")
    dtype = _dtype(student_BK)
    return student_BK.to(dtype), teacher_BK.to(dtype)


def _checked_temperature(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}, not a finite number above 0")


def _softened(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """A pair of logits over T; float64 where T is so high that float32 would round T^2 KL away."""
    _checked_temperature(temperature)
    student_BK, teacher_BK = _pair(student_BK, teacher_BK)
    if temperature > FLOAT32_UP_TO:
        student_BK, teacher_BK = student_BK.double(), teacher_BK.double()
    return student_BK / temperature, teacher_BK / temperature


def _kl(student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
    # "batchmean" divides by B alone. "mean" divides by B * K and makes the term K times too small,
    # so that distillation has next to no weight against the task loss.
    log_p_BK, log_q_BK = student_BK.log_softmax(1), teacher_BK.log_softmax(1)
    return F.kl_div(log_p_BK, log_q_BK, reduction="batchmean", log_target=True)


def labelled(
    *, labels: Tensor, partner_labels: Tensor | None = None, lam: Tensor | None = None
) -> Tensor:
    """bool [B]: rows in which every visible image has a label.

    In a pair with lam 1 (not mixed) or lam 0 (the pasted box covers everything), one is visible.
    Raises: ValueError for partner_labels without lam or lam without them.
    """
    if partner_labels is None and lam is None:
        return labels >= 0
    if partner_labels is None or lam is None:
        raise ValueError("partner_labels and lam go together")
    return ((labels >= 0) | (lam == 0)) & ((partner_labels >= 0) | (lam == 1))


def task_loss(
    *,
    logits: Tensor,
    labels: Tensor,
    smoothing: float = 0.0,
    partner_labels: Tensor | None = None,
    lam: Tensor | None = None,
) -> Tensor:
    """Mean cross entropy to the true labels over the rows that have one; 0 if none has.

    logits: float [B, K]. A row of a mixed batch has lam * CE(label) + (1 - lam) * CE(partner
    label); `labelled` says which rows have a label. labels, partner_labels: int64 [B], -1 where
    unknown; lam: [B] in [0, 1]; smoothing: in [0, 1), the share spread evenly over all K classes,
    as in torch.
    """

    def ce(target_B: Tensor) -> Tensor:
        return F.cross_entropy(
            logits.to(_dtype(logits)),
            target_B,
            ignore_index=-1,
            reduction="none",
            label_smoothing=smoothing,
        )

    known_B = labelled(labels=labels, partner_labels=partner_labels, lam=lam)
    loss_B = ce(labels)
    if partner_labels is not None and lam is not None:
        loss_B = lam * loss_B + (1 - lam) * ce(partner_labels)
    return (loss_B * known_B).sum() / known_B.sum().clamp(min=1)


def kl(
    *,
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    labels: Tensor | None = None,
) -> Tensor:
    """T^2 KL(teacher || student) of the distributions softened by T, in nats.

    T^2 keeps the size of the gradient when T changes. `labels` is not read.
    Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015.
    """
    softened = _softened(student_logits, teacher_logits, temperature)
    return (temperature**2 * _kl(*softened)).to(_dtype(student_logits))


def hard(
    *,
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    labels: Tensor | None = None,
) -> Tensor:
    """Cross entropy to the teacher's argmax, the lowest class on a tie.

    Neither `temperature` nor `labels` is read. Touvron et al., "DeiT", ICML 2021.
    """
    student_BK, teacher_BK = _pair(student_logits, teacher_logits)
    return F.cross_entropy(student_BK, teacher_BK.argmax(1))


def ce(
    *,
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    labels: Tensor | None = None,
) -> Tensor:
    """T^2 cross entropy to the teacher's softened distribution: `kl` + T^2 entropy of the teacher.

    Same gradient as `kl`; it does not reach 0. `labels` is not read.
    """
    student_BK, teacher_BK = _softened(student_logits, teacher_logits, temperature)
    loss = temperature**2 * F.cross_entropy(student_BK, teacher_BK.softmax(1))
    return loss.to(_dtype(student_logits))


def bkd(
    *,
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    labels: Tensor | None = None,
    class_weights: Tensor | None = None,
) -> Tensor:
    """`kl` for data with rare classes: the softened teacher times class weights, made to sum to 1.

    class_weights: positive [K], as `class_balanced_weights` gives them; None: `kl`. `labels` is not
    read. Zhang et al., "Balanced Knowledge Distillation for Long-tailed Learning", 2021.
    """
    student_BK, teacher_BK = _softened(student_logits, teacher_logits, temperature)
    if class_weights is not None:
        teacher_BK = teacher_BK + class_weights.log().to(teacher_BK)
    return (temperature**2 * _kl(student_BK, teacher_BK)).to(_dtype(student_logits))


def class_balanced_weights(counts: Tensor, beta: float = 0.9999) -> Tensor:
    """Float64 weights [K] of classes by their numbers of images [K], with mean 1.

    (1 - beta) / (1 - beta^n): about 1 / n where n is far below 1 / (1 - beta), and flat above. A
    class without images counts as one with one. Cui et al., "Class-Balanced Loss Based on Effective
    Number of Samples", CVPR 2019. Raises: ValueError for a beta outside [0, 1).
    """
    if not 0 <= beta < 1:
        raise ValueError(f"beta is {beta}, not in [0, 1)")
    weights = 1 / (1 - torch.pow(beta, counts.clamp(min=1).double()))
    return weights / weights.mean()


def dkd(
    *,
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    labels: Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """T^2 (alpha TCKD + beta NCKD): KL split at the target class, its two parts weighted apart.

    TCKD is the KL of (target, all others), NCKD the KL among the others. The target is the label,
    of a mixed row the label of its own image, and the teacher's argmax where there is no label.
    Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022.
    """
    softened = _softened(student_logits, teacher_logits, temperature)
    target_B = teacher_logits.argmax(1)
    if labels is not None:
        target_B = torch.where(labels >= 0, labels, target_B)
    classes_K = torch.arange(student_logits.shape[1], device=student_logits.device)
    target_first_BK = (target_B[:, None] + classes_K) % student_logits.shape[1]

    def split(softened_BK: Tensor) -> tuple[Tensor, Tensor]:
        full_BK = softened_BK.gather(1, target_first_BK)
        target_B1, others_BR = full_BK[:, :1], full_BK[:, 1:]
        return torch.cat([target_B1, others_BR.logsumexp(1, keepdim=True)], 1), others_BR

    binary_B2, others_BR = split(softened[0])
    teacher_binary_B2, teacher_others_BR = split(softened[1])
    tckd, nckd = _kl(binary_B2, teacher_binary_B2), _kl(others_BR, teacher_others_BR)
    return (temperature**2 * (alpha * tckd + beta * nckd)).to(_dtype(student_logits))


def dist(
    *,
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    labels: Tensor | None = None,
    beta: float = 1.0,
    gamma: float = 1.0,
    gather: Gather | None = None,
) -> Tensor:
    """T^2 (beta inter + gamma intra): 1 - Pearson correlation of student and teacher.

    Of their softened probabilities: inter along the classes of each row, intra along the batch of
    each class, so the value depends on the other rows of the batch; gather: adds the rows of the
    other ranks, differentiably. `labels` is not read. Huang et al.,
    "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022.
    """
    _checked_temperature(temperature)
    p_BK, q_BK = ((x / temperature).softmax(1) for x in _pair(student_logits, teacher_logits))

    def distance(p_BK: Tensor, q_BK: Tensor, dim: int) -> Tensor:
        p, q = p_BK - p_BK.mean(dim, keepdim=True), q_BK - q_BK.mean(dim, keepdim=True)
        # The paper's own epsilon: it also quiets classes of which the batch shows next to nothing.
        return 1 - ((p * q).sum(dim) / (p.norm(dim=dim) * q.norm(dim=dim) + 1e-8)).mean()

    inter = distance(p_BK, q_BK, 1)
    if gather:
        p_BK, q_BK = gather(p_BK), gather(q_BK)
    return temperature**2 * (beta * inter + gamma * distance(p_BK, q_BK, 0))


Loss = Callable[..., Tensor]  # (*, student_logits, teacher_logits, labels, temperature) -> scalar
LOSSES: dict[str, Loss] = {"kl": kl, "hard": hard, "ce": ce, "bkd": bkd, "dkd": dkd, "dist": dist}
FORMULAS: dict[str, str] = {  # as `equation` prints them
    "kl": "T^2 KL(teacher || {head}; T={T:g})",
    "hard": "CE({head}, argmax of teacher)",
    "ce": "T^2 CE({head}, teacher; T={T:g})",
    "bkd": "T^2 KL(class-weighted teacher || {head}; T={T:g})",
    "dkd": "T^2 (TCKD + 8 NCKD)(teacher || {head}; T={T:g})",
    "dist": "T^2 DIST({head}, teacher; T={T:g})",
}
# These compare rows with each other, so they are given the rows of all ranks.
ACROSS_ROWS: frozenset[str] = frozenset({"dist"})
# These weigh classes by how many training images they have.
BY_CLASS: frozenset[str] = frozenset({"bkd"})
# These need the logit of every class: a truncated target (`topk`, `topk8`) cannot feed them.
NEEDS_ALL_LOGITS: frozenset[str] = frozenset({"dkd", "dist"})


def z_scores(logits_BK: Tensor) -> Tensor:
    """Each row with mean 0 and standard deviation 1 (unbiased), to be divided by T afterwards.

    Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024.
    """
    mean_B1, std_B1 = logits_BK.mean(1, keepdim=True), logits_BK.std(1, keepdim=True)
    return (logits_BK - mean_B1) / (std_B1 + 1e-7)


def distill_loss(
    *,
    name: str,
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    labels: Tensor | None = None,
    standardize: bool = False,
    gather: Gather | None = None,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Mean over the batch of the distillation loss `name`, unlabelled rows included.

    standardize: compare the z-scores of both sides. gather: from the rows of one rank, gives those
    of all (used by `ACROSS_ROWS`). class_weights: [K], used by `BY_CLASS`. Raises: UnknownName.
    """
    if name not in LOSSES:
        message = f"unknown distillation loss {name!r}{near(name, list(LOSSES))}"
        raise UnknownName(message, option="kd_loss", value=name, known=list(LOSSES))
    student_BK, teacher_BK = _pair(student_logits, teacher_logits)
    if standardize:
        student_BK, teacher_BK = z_scores(student_BK), z_scores(teacher_BK)
    batch = {"student_logits": student_BK, "teacher_logits": teacher_BK, "labels": labels}
    more: dict[str, object] = {"gather": gather} if name in ACROSS_ROWS else {}
    more |= {"class_weights": class_weights} if name in BY_CLASS else {}
    return LOSSES[name](**batch, temperature=temperature, **more)


def equation(
    *,
    task_weight: float,
    distill_weight: float,
    name: str,
    temperature: float,
    smoothing: float,
    standardize: bool,
    has_dist_head: bool,
    distillation: bool,
) -> str:
    """The training loss in one line for a person; terms of weight 0 are left out."""
    task_head, head = ("class head", "distillation head") if has_dist_head else ("head", "head")
    if standardize:
        head = f"z-scores of {head}"
    smooth = f"; smoothing {smoothing:g}" if smoothing else ""
    terms = [(task_weight, f"CE({task_head}, label{smooth})")]
    if distillation:
        terms.append((distill_weight, FORMULAS[name].format(head=head, T=temperature)))
    return "loss = " + (" + ".join(f"{w:g} * {term}" for w, term in terms if w) or "0")
