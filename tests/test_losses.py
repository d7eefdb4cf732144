"""Each loss against its published equation written out in numpy, in value and in gradient."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.losses import by_hand
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from scipy.stats import entropy
from torch import Tensor

from fgkd import losses
from fgkd.errors import UnknownName
from fgkd.losses import LOSSES, distill_loss, equation, task_loss

torch.set_num_threads(1)
B, K = 6, 7


def logits(seed: int, rows: int = B, classes: int = K) -> Tensor:
    return 3 * torch.from_numpy(np.random.default_rng(seed).standard_normal((rows, classes)))


LABELS = torch.tensor([0, 3, -1, 6, 2, -1])
BATCH: dict[str, Any] = {"student_logits": logits(1), "teacher_logits": logits(2), "labels": LABELS}


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_equals_its_equation(name: str, temperature: float) -> None:
    loss = distill_loss(name=name, temperature=temperature, **BATCH)
    arrays = [BATCH[key].numpy() for key in ("student_logits", "teacher_logits", "labels")]
    assert loss.shape == ()
    assert loss.item() == pytest.approx(by_hand(name, *arrays, temperature), rel=1e-5)


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_that_of_the_value(name: str, standardize: bool) -> None:
    def loss(x: Tensor) -> Tensor:
        batch = BATCH | {"student_logits": x}
        return distill_loss(name=name, temperature=2.0, standardize=standardize, **batch)

    assert torch.autograd.gradcheck(loss, BATCH["student_logits"].clone().requires_grad_())


@pytest.mark.parametrize("name", LOSSES)
def test_contract_of_every_loss(name: str) -> None:
    def loss(**batch: Tensor) -> Tensor:
        return distill_loss(name=name, temperature=3.0, **(BATCH | batch))

    order = torch.tensor([5, 0, 4, 1, 3, 2])
    torch.testing.assert_close(loss(), loss(**{key: x[order] for key, x in BATCH.items()}))
    assert (
        loss(student_logits=logits(1).half(), teacher_logits=logits(2).half()).dtype
        == torch.float32
    )
    assert ("T=3" in equation_of(name=name)) == (name != "hard")
    if name != "hard":  # a student equal to its teacher has nothing to learn
        x = logits(2).requires_grad_()
        (grad,) = torch.autograd.grad(loss(student_logits=x), x)
        assert grad.abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    """Called without `distill_loss`, as in a loop of one's own."""
    batch = BATCH | {key: BATCH[key].to(dtype) for key in ("student_logits", "teacher_logits")}
    arrays = [batch[key].double().numpy() for key in ("student_logits", "teacher_logits")]
    loss = LOSSES[name](temperature=4.0, **batch)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(by_hand(name, *arrays, LABELS.numpy(), 4.0), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_what_a_loss_refuses(name: str) -> None:
    for wrong in (logits(2, rows=1), logits(2, classes=K - 1), logits(2)[None], logits(2)[0]):
        with pytest.raises(ValueError, match=re.escape(str(list(wrong.shape)))):
            LOSSES[name](**BATCH | {"teacher_logits": wrong})
    for temperature in (0, -1.0, float("nan"), float("inf")):
        if name != "hard":
            with pytest.raises(ValueError, match=str(temperature)):
                LOSSES[name](temperature=temperature, **BATCH)


def test_student_decides_the_precision() -> None:
    """A float64 live teacher gives the very loss of a cache that stores it in float32."""
    student, teacher = BATCH["student_logits"].float(), BATCH["teacher_logits"]
    live, cached = (
        distill_loss(
            name="kl", student_logits=student, teacher_logits=t, labels=LABELS, temperature=1.0
        )
        for t in (teacher, teacher.float())
    )
    assert live.dtype == torch.float32
    assert torch.equal(live, cached)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_kl_is_torch_batchmean_times_t_squared(temperature: float) -> None:
    s, t = BATCH["student_logits"] / temperature, BATCH["teacher_logits"] / temperature
    expected = F.kl_div(s.log_softmax(1), t.softmax(1), reduction="batchmean") * temperature**2
    torch.testing.assert_close(distill_loss(name="kl", temperature=temperature, **BATCH), expected)


@pytest.mark.parametrize("name", ["kl", "ce", "hard", "dkd"])
def test_classes_nobody_believes_in_change_nothing(name: str) -> None:
    """The seed project divided by batch x classes: there, twice the classes halve the term."""
    padded = {k: F.pad(v, (0, 40), value=-1e4) for k, v in BATCH.items() if k != "labels"}
    a, b = (distill_loss(name=name, temperature=2.0, **(BATCH | x)) for x in ({}, padded))
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_bkd_is_kl_to_the_reweighted_teacher(temperature: float) -> None:
    """Value and gradient, against the weights and targets written out in numpy."""
    counts_K = np.array([1000, 100, 10, 1, 0, 5, 5])
    effective_K = (1 - 0.9999 ** np.maximum(counts_K, 1)) / (1 - 0.9999)
    weights_K = losses.class_balanced_weights(torch.from_numpy(counts_K))
    np.testing.assert_allclose(weights_K, (1 / effective_K) / (1 / effective_K).mean())
    for beta in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=str(beta)):
            losses.class_balanced_weights(torch.from_numpy(counts_K), beta)
    s, t = (BATCH[key].numpy() / temperature for key in ("student_logits", "teacher_logits"))
    target_BK = softmax(t, axis=1) / effective_K
    target_BK /= target_BK.sum(1, keepdims=True)
    expected = temperature**2 * entropy(target_BK, softmax(s, axis=1), axis=1).mean()
    x = BATCH["student_logits"].clone().requires_grad_()
    batch = BATCH | {"student_logits": x, "class_weights": weights_K}
    loss = distill_loss(name="bkd", temperature=temperature, **batch)
    assert loss.item() == pytest.approx(expected)
    (grad,) = torch.autograd.grad(loss, x)
    np.testing.assert_allclose(grad, temperature * (softmax(s, axis=1) - target_BK) / B)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.5, 1.0, 4.0]), st.integers(-1, K - 1))
def test_dkd_with_beta_of_one_minus_target_is_kl(seed: int, T: float, label: int) -> None:
    """Zhao et al.: KL = TCKD + (1 - p_target) NCKD, row by row."""
    row: dict[str, Any] = {"student_logits": logits(seed, 1), "teacher_logits": logits(seed + 1, 1)}
    row |= {"labels": torch.tensor([label]), "temperature": T}
    p = (row["teacher_logits"] / T).softmax(1)[0]
    target = label if label >= 0 else int(p.argmax())
    beta = 1 - p[target].item()
    torch.testing.assert_close(losses.dkd(**row, alpha=1.0, beta=beta), losses.kl(**row))


def test_hard_ignores_temperature_and_takes_the_lowest_of_tied_classes() -> None:
    a, b = (distill_loss(name="hard", temperature=T, **BATCH) for T in (1.0, 9.0))
    assert torch.equal(a, b)
    tie = torch.tensor([[0.0, 5.0, 5.0]])
    loss = LOSSES["hard"](
        student_logits=tie, teacher_logits=tie, labels=LABELS[:1], temperature=1.0
    )
    assert torch.equal(loss, F.cross_entropy(tie, torch.tensor([1])))


def test_dist_survives_a_batch_of_one() -> None:
    x = logits(3, rows=1).requires_grad_()
    one: dict[str, Any] = {"teacher_logits": logits(3, rows=1), "labels": LABELS[:1]}
    loss = distill_loss(name="dist", student_logits=x, temperature=1.0, **one)
    assert loss.item() == pytest.approx(1.0)  # inter 0, intra of a single row 1
    assert torch.autograd.grad(loss, x)[0].isfinite().all()


def test_z_scores() -> None:
    x = BATCH["student_logits"]
    expected = (x.numpy() - x.numpy().mean(1)[:, None]) / x.numpy().std(1, ddof=1)[:, None]
    np.testing.assert_allclose(losses.z_scores(x), expected, rtol=1e-6)
    torch.testing.assert_close(losses.z_scores(5 * x + 2), losses.z_scores(x))
    flat = torch.ones(2, 4, requires_grad=True)
    assert torch.autograd.grad(losses.z_scores(flat).sum(), flat)[0].isfinite().all()


def test_standardize_compares_z_scores_of_both() -> None:
    z = {key: losses.z_scores(BATCH[key]) for key in ("student_logits", "teacher_logits")}
    a = distill_loss(name="kl", temperature=2.0, standardize=True, **BATCH)
    assert torch.equal(a, distill_loss(name="kl", temperature=2.0, **(BATCH | z)))


def test_unknown_loss_is_refused_with_near_names() -> None:
    with pytest.raises(UnknownName, match=r"dkdd.*did you mean dkd") as error:
        distill_loss(name="dkdd", temperature=1.0, **BATCH)
    assert (error.value.option, error.value.value) == ("kd_loss", "dkdd")
    assert set(error.value.known) == set(LOSSES)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_task_loss_is_the_mean_over_labelled_rows(smoothing: float) -> None:
    x, known = BATCH["student_logits"], LABELS >= 0
    log_q = log_softmax(x.numpy(), axis=1)
    share = np.full((B, K), smoothing / K)
    share[known, LABELS[known]] += 1 - smoothing
    expected = -(share * log_q).sum(1)[known].mean()
    loss = task_loss(logits=x, labels=LABELS, smoothing=smoothing)
    assert loss.item() == pytest.approx(expected)
    noisy = torch.where(known[:, None], x, logits(9))  # what unlabelled rows say is not heard
    assert torch.equal(task_loss(logits=noisy, labels=LABELS, smoothing=smoothing), loss)


def test_task_loss_equals_timm() -> None:
    from timm.loss import LabelSmoothingCrossEntropy

    labels = LABELS.clamp(min=0)
    loss = task_loss(logits=BATCH["student_logits"], labels=labels, smoothing=0.1)
    expected = LabelSmoothingCrossEntropy(smoothing=0.1)(BATCH["student_logits"], labels)
    torch.testing.assert_close(loss, expected)


def test_task_loss_mixes_both_labels() -> None:
    partner = torch.tensor([3, 0, 1, -1, 2, -1])  # rows 2, 3 and 5 miss a label
    lam = torch.linspace(0.2, 0.9, B, dtype=torch.float64)
    x = BATCH["student_logits"].clone().requires_grad_()
    mixing = {"partner_labels": partner, "lam": lam}
    loss = task_loss(logits=x, labels=LABELS, smoothing=0.1, **mixing)
    rows = [
        lam[i] * F.cross_entropy(x[i], LABELS[i], label_smoothing=0.1)
        + (1 - lam[i]) * F.cross_entropy(x[i], partner[i], label_smoothing=0.1)
        for i in (0, 1, 4)
    ]
    torch.testing.assert_close(loss, torch.stack(rows).mean())
    (grad,) = torch.autograd.grad(loss, x)
    assert (grad[[2, 3, 5]] == 0).all()
    for key, half in mixing.items():
        with pytest.raises(ValueError, match=key):
            task_loss(logits=x, labels=LABELS, **{key: half})


def test_task_loss_without_labels_is_zero_with_a_gradient() -> None:
    x = BATCH["student_logits"].half().requires_grad_()
    loss = task_loss(logits=x, labels=torch.full((B,), -1), smoothing=0.1)
    assert loss.item() == 0
    assert loss.dtype == torch.float32
    assert (torch.autograd.grad(loss, x)[0] == 0).all()


def equation_of(**changes: Any) -> str:
    base: dict[str, Any] = {"task_weight": 0.5, "distill_weight": 0.5, "name": "kl"}
    base |= {"temperature": 3.0, "smoothing": 0.1, "standardize": False}
    return equation(**(base | {"has_dist_head": True, "distillation": True} | changes))


def test_equation() -> None:
    assert equation_of() == (
        "loss = 0.5 * CE(class head, label; smoothing 0.1)"
        " + 0.5 * T^2 KL(teacher || distillation head; T=3)"
    )
    assert equation_of(distillation=False, task_weight=1, smoothing=0, has_dist_head=False) == (
        "loss = 1 * CE(head, label)"
    )
    assert equation_of(task_weight=0, standardize=True, name="dkd") == (
        "loss = 0.5 * T^2 (TCKD + 8 NCKD)(teacher || z-scores of distillation head; T=3)"
    )
    assert equation_of(task_weight=0, distill_weight=0) == "loss = 0"
    assert losses.FORMULAS.keys() == LOSSES.keys()
