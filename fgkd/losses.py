"""What a student is trained on: the task loss, the distillation losses and their equation.

Pure and keyword-only, so that student and teacher, two tensors of one shape, cannot be swapped.
Every loss is the mean over the rows of the batch. `task_loss` and `distill_loss`, the two that
training calls, compute in float32 (float64 when the student's logits are).

Shapes: B batch, K classes, R = K - 1 the classes that are not the target; suffix `_B1` is a column.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fgkd.errors import FgkdError, near

Gather = Callable[[Tensor], Tensor]  # rows of one rank -> rows of all


def _wide(logits_BK: Tensor) -> Tensor:
    """`logits_BK` in float32, or float64 if it is: a softmax in half precision loses its tail."""
    return logits_BK if logits_BK.dtype == torch.float64 else logits_BK.float()


def _kl(student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
    # "batchmean" divides by B alone. "mean" divides by B * K and makes the term K times too small,
    # so that distillation all but vanishes beside the task loss.
    log_p_BK, log_q_BK = student_BK.log_softmax(1), teacher_BK.log_softmax(1)
    return F.kl_div(log_p_BK, log_q_BK, reduction="batchmean", log_target=True)


def labelled(
    *, labels_B: Tensor, partner_labels_B: Tensor | None = None, lam_B: Tensor | None = None
) -> Tensor:
    """bool [B]: rows of which every image that is seen has a label.

    Of a pair that was not mixed (lam 1, or a cut-out that covers all: lam 0) one image is seen.
    """
    if partner_labels_B is None or lam_B is None:
        return labels_B >= 0
    return ((labels_B >= 0) | (lam_B == 0)) & ((partner_labels_B >= 0) | (lam_B == 1))


def task_loss(
    *,
    logits_BK: Tensor,
    labels_B: Tensor,
    smoothing: float,
    partner_labels_B: Tensor | None = None,
    lam_B: Tensor | None = None,
) -> Tensor:
    """Mean cross entropy to the true labels over the rows that have one; 0 if none has.

    A row of a mixed batch is lam * CE(label) + (1 - lam) * CE(partner label); which rows have a
    label says `labelled`. `labels_B` and `partner_labels_B` are int64, -1 where unknown; `lam_B` is
    in [0, 1]; `smoothing` in [0, 1) is the share spread evenly over all K classes, as in torch.
    """

    def ce(target_B: Tensor) -> Tensor:
        return F.cross_entropy(
            _wide(logits_BK),
            target_B,
            ignore_index=-1,
            reduction="none",
            label_smoothing=smoothing,
        )

    loss_B = ce(labels_B)
    if partner_labels_B is not None and lam_B is not None:
        loss_B = lam_B * loss_B + (1 - lam_B) * ce(partner_labels_B)
    known_B = labelled(labels_B=labels_B, partner_labels_B=partner_labels_B, lam_B=lam_B)
    return (loss_B * known_B).sum() / known_B.sum().clamp(min=1)


def kl(*, logits_BK: Tensor, teacher_BK: Tensor, labels_B: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of the distributions softened by T, in nats.

    T^2 keeps the size of the gradient when T changes. `labels_B` is not read.
    Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015.
    """
    return temperature**2 * _kl(logits_BK / temperature, teacher_BK / temperature)


def hard(*, logits_BK: Tensor, teacher_BK: Tensor, labels_B: Tensor, temperature: float) -> Tensor:
    """Cross entropy to the teacher's argmax, the lowest class on a tie.

    Neither `temperature` nor `labels_B` is read. Touvron et al., "DeiT", ICML 2021.
    """
    return F.cross_entropy(logits_BK, teacher_BK.argmax(1))


def ce(*, logits_BK: Tensor, teacher_BK: Tensor, labels_B: Tensor, temperature: float) -> Tensor:
    """T^2 cross entropy to the teacher's softened distribution: `kl` + T^2 entropy of the teacher.

    Same gradient as `kl`; it does not reach 0. `labels_B` is not read.
    """
    target_BK = (teacher_BK / temperature).softmax(1)
    return temperature**2 * F.cross_entropy(logits_BK / temperature, target_BK)


def dkd(
    *,
    logits_BK: Tensor,
    teacher_BK: Tensor,
    labels_B: Tensor,
    temperature: float,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """T^2 (alpha TCKD + beta NCKD): KL split at the target class, its two parts weighted apart.

    TCKD is the KL of (target, all others), NCKD the KL among the others. The target is the label,
    of a mixed row the label of its own image, and the teacher's argmax where the label is -1.
    Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022.
    """
    target_B = torch.where(labels_B >= 0, labels_B, teacher_BK.argmax(1))
    classes_K = torch.arange(logits_BK.shape[1], device=logits_BK.device)
    target_first_BK = (target_B[:, None] + classes_K) % logits_BK.shape[1]

    def split(full_BK: Tensor) -> tuple[Tensor, Tensor]:
        full_BK = (full_BK / temperature).gather(1, target_first_BK)
        target_B1, others_BR = full_BK[:, :1], full_BK[:, 1:]
        return torch.cat([target_B1, others_BR.logsumexp(1, keepdim=True)], 1), others_BR

    binary_B2, others_BR = split(logits_BK)
    teacher_binary_B2, teacher_others_BR = split(teacher_BK)
    tckd, nckd = _kl(binary_B2, teacher_binary_B2), _kl(others_BR, teacher_others_BR)
    return temperature**2 * (alpha * tckd + beta * nckd)


def dist(
    *,
    logits_BK: Tensor,
    teacher_BK: Tensor,
    labels_B: Tensor,
    temperature: float,
    beta: float = 1.0,
    gamma: float = 1.0,
    gather: Gather | None = None,
) -> Tensor:
    """T^2 (beta inter + gamma intra): 1 - Pearson correlation of student and teacher.

    Of their softened probabilities: inter along the classes of each row, intra along the batch of
    each class, so the value depends on who shares the batch: `gather` brings the other ranks' rows
    in, differentiably. `labels_B` is not read. Huang et al.,
    "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022.
    """
    p_BK, q_BK = (logits_BK / temperature).softmax(1), (teacher_BK / temperature).softmax(1)

    def distance(p_BK: Tensor, q_BK: Tensor, dim: int) -> Tensor:
        p, q = p_BK - p_BK.mean(dim, keepdim=True), q_BK - q_BK.mean(dim, keepdim=True)
        # The paper's own epsilon: it also quiets classes of which the batch shows next to nothing.
        return 1 - ((p * q).sum(dim) / (p.norm(dim=dim) * q.norm(dim=dim) + 1e-8)).mean()

    inter = distance(p_BK, q_BK, 1)
    if gather:
        p_BK, q_BK = gather(p_BK), gather(q_BK)
    return temperature**2 * (beta * inter + gamma * distance(p_BK, q_BK, 0))


Loss = Callable[..., Tensor]  # (*, logits_BK, teacher_BK, labels_B, temperature) -> scalar
LOSSES: dict[str, Loss] = {"kl": kl, "hard": hard, "ce": ce, "dkd": dkd, "dist": dist}
FORMULAS: dict[str, str] = {  # as `equation` prints them
    "kl": "T^2 KL(teacher || {head}; T={T:g})",
    "hard": "CE({head}, argmax of teacher)",
    "ce": "T^2 CE({head}, teacher; T={T:g})",
    "dkd": "T^2 (TCKD + 8 NCKD)(teacher || {head}; T={T:g})",
    "dist": "T^2 DIST({head}, teacher; T={T:g})",
}
# These compare rows with each other, so they are given the rows of all ranks.
ACROSS_ROWS: frozenset[str] = frozenset({"dist"})
# These need the logit of every class: a truncated target (`topk`) cannot feed them.
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
    logits_BK: Tensor,
    teacher_BK: Tensor,
    labels_B: Tensor,
    temperature: float,
    standardize: bool = False,
    gather: Gather | None = None,
) -> Tensor:
    """Mean over the batch of the distillation loss `name`, unlabelled rows included.

    `labels_B` is int64, -1 where unknown. `standardize` compares the z-scores of both sides.
    `gather` gives the rows of all ranks for those of one (`ACROSS_ROWS` call it).

    Raises FgkdError for a name that is not in `LOSSES`.
    """
    if name not in LOSSES:
        what = f"unknown distillation loss {name!r}{near(name, list(LOSSES))}"
        raise FgkdError(what, f"--kd-loss kl (there are {', '.join(LOSSES)})")
    student_BK = _wide(logits_BK)
    # A live float64 teacher is rounded here as a float32 cache rounds it: the same steps follow.
    teacher_BK = teacher_BK.to(student_BK.dtype)
    if standardize:
        student_BK, teacher_BK = z_scores(student_BK), z_scores(teacher_BK)
    batch = {"logits_BK": student_BK, "teacher_BK": teacher_BK, "labels_B": labels_B}
    more = {"gather": gather} if name in ACROSS_ROWS else {}
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
