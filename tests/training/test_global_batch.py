"""A batch cut into ranks and micro-batches adds up to the whole one: unlabelled rows, dist."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.loops import CPU, assert_equal_weights, fit, make_batches, state_of
from helpers.models import CLASSES, build
from helpers.runs import (
    STUDENT,
    TEACHER,
    assert_same_run,
    fgkd,
    rows,
    run_ranks,
    saved,
    start_ranks,
)
from torch import Tensor, nn

from fgkd import data, losses
from fgkd.loading.batch import Batch
from fgkd.losses import distill_loss, task_loss

RUN = ("--epochs", 2, "--batch-size", 16, "--workers", 0, "--opt", "sgd", "--lr", 0.05)


def assert_close(got: Path, want: Path, atol: float = 1e-5) -> None:
    """Equal but for the order of a sum's terms, which 14 steps carry on."""
    mine, other = saved(got)["model"], saved(want)["model"]
    for name in other:
        torch.testing.assert_close(mine[name], other[name], rtol=1e-4, atol=atol, msg=name)
    for row, expected in zip(rows(got), rows(want), strict=True):
        assert row == pytest.approx(expected, rel=1e-3)


# ---- shares --------------------------------------------------------------------------------


def half_labelled() -> list[Batch]:
    """The labels of every batch's first half are unknown but for one."""
    batches = make_batches()
    for batch in batches:
        labels_B = batch.labels_B.clone()
        labels_B[1 : len(labels_B) // 2 + 1] = -1
        batches[batch.spec.step] = dataclasses.replace(batch, labels_B=labels_B)
    return batches


def two_terms(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    logits_BK = model(batch.image_u8_BHW3).head_BK
    task = task_loss(logits=logits_BK, labels=batch.labels_B, smoothing=0.1)
    size = logits_BK.square().mean()
    return {"loss": task * batch.label_share + size * batch.image_share}


@pytest.mark.parametrize("accumulate", [2, 3, 99])
def test_micro_batches_weigh_labels_by_labels_and_images_by_images(accumulate: int) -> None:
    whole, parts = (state_of(build("convnext_atto"), "sgd") for _ in range(2))
    plain = fit(whole, half_labelled(), two_terms)
    cut = fit(parts, half_labelled(), two_terms, grad_accum_steps=accumulate)
    assert_equal_weights(whole.model, parts.model, atol=2e-6)
    for a, b in zip(plain, cut, strict=True):
        assert a.losses == pytest.approx(b.losses, rel=1e-5)


def test_shares_of_a_batch_sum_to_one() -> None:
    for batch, num_parts in itertools.product(half_labelled(), (1, 3, 5)):
        labels = batch.num_labelled()
        parts = list(batch.split(num_parts, len(batch.labels_B), labels, CPU))
        assert sum(part.image_share for part in parts) == pytest.approx(1)
        assert sum(part.label_share for part in parts) == pytest.approx(1)
        assert torch.equal(torch.cat([part.labels_B for part in parts]), batch.labels_B)


def test_a_rank_without_rows_for_every_part_gives_stand_ins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    batch = make_batches()[0]
    one = dataclasses.replace(batch, count=1, row_ids=batch.row_ids[:1])
    parts = list(one.split(3, 5, 5, CPU))
    assert [part.count for part in parts] == [0, 0, 1]
    assert [len(part.image_u8_BHW3) for part in parts] == [1, 1, 1]
    assert [part.image_share for part in parts] == [0, 0, 0.2]


def test_an_unmixed_row_needs_no_label_of_its_partner() -> None:
    logits_BK = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    labels_B, partners_B = torch.tensor([2, 1, -1, -1, 3]), torch.tensor([-1, -1, 0, 0, 1])
    lam_B = torch.tensor([1.0, 0.5, 0.0, 0.5, 0.25])
    pairs: dict[str, Any] = {"labels": labels_B, "partner_labels": partners_B, "lam": lam_B}
    assert losses.labelled(**pairs).tolist() == [True, False, True, False, True]
    log_q = logits_BK.log_softmax(1)
    want = -(log_q[0, 2] + log_q[2, 0] + 0.25 * log_q[4, 3] + 0.75 * log_q[4, 1]) / 3
    torch.testing.assert_close(task_loss(logits=logits_BK, smoothing=0.0, **pairs), want)


# ---- through the stages, on two processes --------------------------------------------------


def _train_half_labelled(*args: object) -> None:
    """Run a command for which every third training image has no label, nor have the first 40."""
    real = data.DATASETS["folder"]

    def load(root: Path) -> data.Dataset:
        dataset = real(root)
        train = dataset.splits["train"]
        numbers = np.arange(len(train))
        labels = np.where((numbers % 3 == 0) | (numbers < 40), -1, train.labels)
        splits = dataset.splits | {"train": dataclasses.replace(train, labels=labels)}
        return dataclasses.replace(dataset, splits=splits)

    data.DATASETS["folder"] = load
    try:
        fgkd(*args)
    finally:
        data.DATASETS["folder"] = real


@pytest.mark.parametrize("mixup", [0, 1])
def test_unlabelled_images_on_two_processes_and_in_micro_batches(
    tiny_data: Path, tmp_path: Path, mixup: int
) -> None:
    """Each step's mean is over the labelled images, wherever they are; half of the pairs mixed."""
    command = ("train-teacher", "--data", f"folder:{tiny_data}", *TEACHER, *RUN)
    command += ("--mixup", mixup, "--mix-prob", 0.5)
    _train_half_labelled(*command, "--output", tmp_path / "one")
    more = ("--output", tmp_path / "two", "--grad-accum-steps", 2)
    for child in (ranks := start_ranks(2, _train_half_labelled, *command, *more)):
        child.join(60)
    assert [child.exitcode for child in ranks] == [0, 0]
    assert_close(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize("accumulate", [1, 3])
def test_dist_on_two_processes_is_that_of_one(
    tiny_cache: Path, tmp_path: Path, accumulate: int
) -> None:
    """Its batch term reaches over ranks; an epoch's last batch is one image, none for a rank."""
    command = ("train-student", "--cache", tiny_cache, *STUDENT, *RUN, "--kd-loss", "dist")
    run_ranks(2, *command, "--output", tmp_path / "two", "--grad-accum-steps", accumulate)
    if accumulate == 1:
        fgkd(*command, "--output", tmp_path / "one")
        assert_close(tmp_path / "two", tmp_path / "one", atol=5e-5)  # correlations amplify
    else:  # of micro-batches: other terms, the same on every run
        run_ranks(2, *command, "--output", tmp_path / "one", "--grad-accum-steps", accumulate)
        assert_same_run(tmp_path / "two", tmp_path / "one")
        assert "within a micro-batch" in (tmp_path / "one/log.txt").read_text()


def test_dist_gathers_its_rows() -> None:
    """`gather` gives the loss of the whole batch, row terms and batch term apart."""
    generator = torch.Generator().manual_seed(1)
    s, t = (torch.randn(6, len(CLASSES), generator=generator).double() for _ in range(2))
    s.requires_grad_()
    batch: dict[str, Any] = {"labels": torch.zeros(6, dtype=torch.int64), "temperature": 2.0}
    whole = distill_loss(name="dist", student_logits=s, teacher_logits=t, **batch)
    p, q = (s / 2).softmax(1), (t / 2).softmax(1)
    total = torch.zeros((), dtype=torch.float64)
    for cut in (slice(0, 1), slice(1, 6)):
        everyone = iter((p, q))
        part = {"student_logits": s[cut], "teacher_logits": t[cut], "labels": batch["labels"][cut]}
        gather = functools.partial(lambda parts, own: next(parts), everyone)
        loss = distill_loss(name="dist", **part, temperature=2.0, gather=gather)
        total = total + loss * (cut.stop - cut.start) / 6
    torch.testing.assert_close(total, whole)
    got, want = (torch.autograd.grad(x, s, retain_graph=True)[0] for x in (total, whole))
    torch.testing.assert_close(got, want)
