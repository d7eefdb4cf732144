"""The student's step: two loss terms with their weights, each on its own head."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.loops import make_batches
from helpers.losses import by_hand
from helpers.models import CLASSES, DEIT, build
from helpers.runs import STUDENT, fgkd, rows

from fgkd import losses
from fgkd.commands.train_student import class_weights
from fgkd.config import LossSpec
from fgkd.config.specs import LOSS_NAMES
from fgkd.data import Dataset, Samples
from fgkd.distillation.step import student_step

TEACHER_BK = 3 * torch.randn(8, len(CLASSES), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("kd_loss", LOSS_NAMES)
@pytest.mark.parametrize("name", [DEIT, "convnext_atto"])
def test_the_loss_is_the_two_terms_written_out(name: str, kd_loss: str, standardize: bool) -> None:
    """The labels teach the class head and the teacher the distillation token, or both the head."""
    batch = dataclasses.replace(make_batches()[0], teacher_BK=TEACHER_BK)
    model = build(name, uses_dist=True).eval()
    spec = LossSpec(
        kd_loss=kd_loss,
        temperature=2.0,
        logit_standardization=standardize,
        task_loss_weight=0.3,
        distill_loss_weight=0.6,
        smoothing=0.1,
    )
    out = model(batch.image_u8_BHW3)
    assert (out.dist_BK is None) == (name != DEIT)
    taught = out.head_BK if out.dist_BK is None else out.dist_BK
    sides = [x.detach().double() for x in (taught, TEACHER_BK)]
    if standardize:
        sides = [(x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True) for x in sides]
    task = F.cross_entropy(out.head_BK, batch.labels_B, label_smoothing=0.1).item()
    arrays = [x.numpy() for x in (*sides, batch.labels_B)]
    distill = by_hand(kd_loss, *arrays, 2.0)
    found = student_step(spec)(model, batch)
    want = {"loss": 0.3 * task + 0.6 * distill, "task_loss": task, "distill_loss": distill}
    assert {key: value.item() for key, value in found.items()} == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("how", ["soft", "hard"])
def test_the_weights_that_make_it_deits_loss(how: str) -> None:
    """As stages/README.md has them. (1 - A) CE + A x the teacher's term: facebookresearch/deit."""
    alpha, tau, num_classes = 0.3, 2.0, len(CLASSES)
    batch = dataclasses.replace(make_batches()[0], teacher_BK=TEACHER_BK)
    model = build(DEIT, uses_dist=True).eval()
    out = model(batch.image_u8_BHW3)
    base = F.cross_entropy(out.head_BK, batch.labels_B, label_smoothing=0.1)
    if how == "soft":
        sides = [F.log_softmax(x / tau, 1) for x in (out.dist_BK, TEACHER_BK)]
        total = F.kl_div(*sides, reduction="sum", log_target=True)
        term, spec = total * tau**2 / TEACHER_BK.numel(), LossSpec(kd_loss="kl", temperature=tau)
        weight = alpha / num_classes
    else:
        term, spec = F.cross_entropy(out.dist_BK, TEACHER_BK.argmax(1)), LossSpec(kd_loss="hard")
        weight = alpha
    spec = dataclasses.replace(spec, task_loss_weight=1 - alpha, distill_loss_weight=weight)
    ours = student_step(spec)(model, batch)["loss"]
    torch.testing.assert_close(ours, (1 - alpha) * base + alpha * term)


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0)])
def test_each_head_gets_a_gradient_only_from_its_own_term(weights: tuple[float, float]) -> None:
    batch = dataclasses.replace(make_batches()[0], teacher_BK=TEACHER_BK)
    model = build(DEIT, uses_dist=True)
    spec = LossSpec(task_loss_weight=weights[0], distill_loss_weight=weights[1])
    student_step(spec)(model, batch)["loss"].backward()
    net: Any = model.net
    grads = [head.weight.grad for head in (net.head, net.head_dist)]
    trained = [grad is not None and bool(grad.any()) for grad in grads]
    assert trained == [weight > 0 for weight in weights]


@pytest.mark.parametrize("name", [DEIT, "convnext_atto"])
def test_the_baseline_learns_labels_alone(name: str) -> None:
    batch = make_batches()[0]
    model = build(name, uses_dist=False).eval()
    spec = LossSpec(distillation="none", smoothing=0.0, task_loss_weight=0.5)
    found = student_step(spec)(model, batch)
    task = F.cross_entropy(model(batch.image_u8_BHW3).head_BK, batch.labels_B)
    assert list(found) == ["loss"]
    torch.testing.assert_close(found["loss"], 0.5 * task)


def test_bkd_weighs_classes_by_their_labelled_images() -> None:
    labels_N = np.array([0, 0, 0, 1, -1, -1, 2, 2])
    blank = np.zeros(8, np.int64)
    samples = Samples([f"{i}.jpg" for i in range(8)], labels_N, blank, [""] * 8)
    dataset = Dataset("made", list(CLASSES), ["made"], {"train": samples})
    spec, cpu = LossSpec(kd_loss="bkd", temperature=2.0), torch.device("cpu")
    weights_K = class_weights(spec, dataset, cpu)
    counts_K = torch.tensor([3, 1, 2, *[0] * (len(CLASSES) - 3)])
    assert weights_K is not None
    torch.testing.assert_close(weights_K.double(), losses.class_balanced_weights(counts_K))
    assert class_weights(LossSpec(kd_loss="kl"), dataset, cpu) is None
    batch = dataclasses.replace(make_batches()[0], teacher_BK=TEACHER_BK)
    model = build("convnext_atto", uses_dist=True).eval()
    found = student_step(spec, class_weights_K=weights_K)(model, batch)["distill_loss"]
    want = losses.bkd(
        student_logits=model(batch.image_u8_BHW3).head_BK,
        teacher_logits=TEACHER_BK,
        temperature=2.0,
        class_weights=weights_K,
    )
    assert found.item() == pytest.approx(want.item(), rel=1e-5)


def test_train_student_counts_the_classes(tiny_cache: Path, tmp_path: Path) -> None:
    """The tiny data's classes differ in size, so both losses differ from the first step on."""
    for name in ("kl", "bkd"):
        command = ("train-student", "--cache", tiny_cache, *STUDENT, "--kd-loss", name)
        fgkd(*command, "--epochs", 1, "--workers", 0, "--output", tmp_path / name)
    kl, bkd = (rows(tmp_path / name)[0]["distill_loss"] for name in ("kl", "bkd"))
    assert kl != bkd
    assert kl == pytest.approx(bkd, rel=0.5)
