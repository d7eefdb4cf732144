"""The loop against one written by hand."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.errors import expected
from helpers.loops import (
    CPU,
    assert_equal_weights,
    fit,
    lr_at,
    make_batches,
    make_state,
    start,
    step_fn,
)
from helpers.models import CLASSES, DEIT, build, images
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fgkd import config, losses
from fgkd.distillation.step import student_step
from fgkd.errors import CheckpointError, FgkdError, NotFinite
from fgkd.loading.batch import Batch
from fgkd.training import checkpoint, loop, optim

# ---- the loop ------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_fit_is_a_plain_torch_loop(accumulate: int, clip: float | None) -> None:
    state = make_state()
    model = copy.deepcopy(state.model)
    start = copy.deepcopy(model.state_dict())
    reports = fit(state, make_batches(), grad_accum_steps=accumulate, clip_grad=clip)

    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.05}]
    )
    ema = ModelEmaV3(model, decay=0.9, use_warmup=True)
    model.train()
    for step, batch in enumerate(make_batches()):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step)
        cuts = [len(batch.labels_B) * i // accumulate for i in range(accumulate + 1)]
        mean = 0.0
        for low, high in itertools.pairwise(cuts):
            logits = model(batch.image_u8_BHW3[low:high]).head_BK
            loss = F.cross_entropy(logits, batch.labels_B[low:high])
            (loss * ((high - low) / len(batch.labels_B))).backward()
            mean += loss.item() * (high - low) / len(batch.labels_B)
        if clip is not None:
            norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
            assert reports[step].grad_norm == norm.item()
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model, step=step + 1)  # timm's train.py counts updates before it averages
        assert reports[step].losses == pytest.approx({"loss": mean, "half": mean / 2})
        assert reports[step].lr == lr_at(step)
    assert_equal_weights(state.model, model)
    assert_equal_weights(state.ema.module, ema.module)
    moved = [not torch.equal(value, start[name]) for name, value in model.state_dict().items()]
    assert all(moved)


def test_reports_and_sums() -> None:
    state = make_state(ema=False)
    reports = fit(state, make_batches())
    assert [r.step for r in reports] == [1, 2, 3, 4, 5, 6]
    assert [r.epoch for r in reports] == [0, 0, 0, 1, 1, 1]
    assert [r.epoch_ends for r in reports] == [False, False, True] * 2
    assert [r.num_images for r in reports] == [8, 8, 6] * 2
    assert state.step == 6
    assert state.sums["images"] == 44
    total = sum(r.losses["loss"] * r.num_images for r in reports)
    assert state.sums["loss"] == pytest.approx(total)
    assert all(0 <= r.times["wait_s"] <= r.times["step_s"] for r in reports)


def test_a_report_comes_once_the_next_step_is_launched() -> None:
    """Except where the caller may evaluate and save: there the state is that of the report."""
    state, begun = make_state(), []
    whole = make_state()
    fit(whole, make_batches()[:2])

    def count(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        begun.append(batch.spec.step)
        return step_fn(model, batch)

    reports = start(state, make_batches(), count, checkpoint_steps=2)
    settled = []
    for report in reports:
        settled.append(report.settled)
        ahead = 0 if report.settled else 1
        assert (state.step, len(begun)) == (report.step, report.step + ahead)
        if report.step == 2:
            assert_equal_weights(state.model, whole.model)
            state.model.eval()
        assert report.settled or state.model.training
    assert state.model.training  # again, after the evaluation
    assert settled == [False, True, True, True, False, True]  # 2, 4: checkpoints; 3, 6: epochs


@pytest.mark.parametrize("name", sorted(losses.LOSSES))
@pytest.mark.parametrize("arch", [DEIT, "convnext_atto"])
def test_a_step_never_waits_for_a_value(arch: str, name: str) -> None:
    """Reading one, as `item` and boolean indices do, makes the CPU wait for a GPU."""
    model, rows = build(arch, drop_path=0.3).train(), torch.arange(4)
    batch = dataclasses.replace(
        make_batches()[0]._cut(slice(0, 4), 4),
        labels_B=torch.tensor([0, 1, -1, 2]),
        partner_labels_B=torch.tensor([1, 0, 2, -1]),
        lam_B=torch.tensor([1.0, 0.3, 0.5, 0.0]),
        teacher_BK=torch.randn(4, len(CLASSES)),
    )
    step = student_step(config.LossSpec(kd_loss=name, temperature=2.0, smoothing=0.1))
    model.set_drop_path_draws(0, 0, rows.numpy().astype(np.uint64))
    parameters = [p for p in model.parameters() if p.requires_grad]
    with ValuesRead() as read:
        step(model, batch)["loss"].backward()
        optim.clip_grad(parameters, 1.0)
    assert read.ops == []
    with ValuesRead() as read:
        assert rows[rows > 1].sum().item() == 5
    assert read.ops == ["index", "_local_scalar_dense"]


class ValuesRead(TorchDispatchMode):
    """Notes operations for which the CPU has to know a value that a GPU computes."""

    READING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "bincount")

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        chosen = args[1] if name in ("index", "index_put", "index_put_") else []
        by_truth = any(isinstance(i, Tensor) and i.dtype == torch.bool for i in chosen)
        if name in self.READING or by_truth:
            self.ops.append(name)
        return func(*args, **kwargs or {})


def test_an_error_of_the_data_comes_up_at_its_own_step() -> None:
    """A batch is taken ahead, while a GPU computes; the steps before it are finished, and settled.

    So a caller has saved them.
    """

    def failing() -> Iterator[Batch]:
        yield from make_batches()[:2]
        raise FgkdError("cannot decode")

    state, steps, settled = make_state(), [], []

    def count(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        steps.append(batch.spec.step)
        return step_fn(model, batch)

    reports = start(state, failing(), count)
    with pytest.raises(FgkdError):
        settled.extend(report.settled for report in reports)
    assert (steps, state.step) == ([0, 1], 2)
    assert settled == [False, True]
    whole = make_state()
    fit(whole, make_batches()[:2])
    assert_equal_weights(state.model, whole.model)


def test_accumulated_gradients_are_the_whole_batchs() -> None:
    """Plain SGD keeps the error of the gradients as it is; AdamW divides it by their size."""
    states = []
    for accumulate in (1, 4, 99):  # 99: one image at a time
        state = make_state(ema=False)
        state.optimizer = torch.optim.SGD(state.model.parameters(), lr=0.1)
        state.optimizer.param_groups[0]["lr_scale"] = 1.0
        fit(state, make_batches(), grad_accum_steps=accumulate, lr_at=lambda step: 0.1)
        states.append(state)
    for state in states[1:]:
        assert_equal_weights(states[0].model, state.model, atol=1e-6)


@pytest.mark.parametrize("drop", [{"drop": 0.3, "drop_path": 0.3}, {}])
def test_a_resumed_loop_takes_the_same_steps(drop: dict[str, float], tmp_path: Path) -> None:
    whole = make_state(**drop)
    fit(whole, make_batches())
    first = make_state(**drop)
    fit(first, make_batches()[:4])
    checkpoint.save(tmp_path / "last.pt", first.save())
    torch.rand(7)  # whatever else drew from the generator in between
    second = make_state(**drop)
    second.restore(checkpoint.load(tmp_path / "last.pt"))
    assert second.step == 4
    fit(second, make_batches(4))
    assert_equal_weights(second.model, whole.model)
    assert_equal_weights(second.ema.module, whole.ema.module)
    assert second.sums == whole.sums


def test_stopping_is_reported() -> None:
    calls = iter([False, True])
    fitting = loop.fit(
        make_state(),
        batches=make_batches(),
        step_fn=step_fn,
        steps_per_epoch=3,
        lr_at=lr_at,
        seed=0,
        device=CPU,
        should_stop=lambda: next(calls),
    )
    assert [next(fitting).stopping, next(fitting).stopping] == [False, True]


def test_an_empty_batch_changes_nothing() -> None:
    state = make_state()
    before = copy.deepcopy(state.model.state_dict())
    batch = make_batches()[0]
    none = {"row_ids": batch.row_ids[:0], "labels_B": batch.labels_B[:0]}
    empty = dataclasses.replace(batch, count=0, image_u8_BHW3=images(2)[:0], **none)
    (report,) = fit(state, [empty])
    assert (report.num_images, report.step) == (0, 1)
    assert all(torch.equal(v, before[k]) for k, v in state.model.state_dict().items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_loss_stops_before_the_update(value: float) -> None:
    state = make_state()
    kept: dict[str, Tensor] = {}

    def broken(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        out = step_fn(model, batch)
        if batch.spec.step == 4:
            kept.update(copy.deepcopy(state.model.state_dict()))
            out["loss"] = out["loss"] * value
        return out

    with expected(NotFinite, step=4):
        fit(state, make_batches(), broken)
    assert state.step == 4
    assert kept
    assert all(torch.equal(v, kept[k]) for k, v in state.model.state_dict().items())


# ---- number types --------------------------------------------------------------------------


def test_bfloat16_autocast() -> None:
    seen = []

    def step(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        logits = model(batch.image_u8_BHW3).head_BK
        seen.append(logits.dtype)
        return {"loss": F.cross_entropy(logits, batch.labels_B) * batch.image_share}

    state, single = make_state(), make_state()
    reports = fit(state, make_batches(), step, amp_dtype=torch.bfloat16)
    plain = fit(single, make_batches())
    assert set(seen) == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in state.model.parameters())
    assert reports[0].losses["loss"] == pytest.approx(plain[0].losses["loss"], abs=0.02)


def test_float16_loss_scale_survives_a_restart() -> None:
    overflowing = 2.0**40  # gradients overflow: the step is left out, the scale halved
    state = make_state(scale=overflowing)
    before = copy.deepcopy(state.model.state_dict())
    fit(state, make_batches()[:1], amp_dtype=torch.float16)
    assert all(torch.equal(v, before[k]) for k, v in state.model.state_dict().items())
    assert state.scaler.get_scale() == overflowing / 2
    again = make_state(scale=1.0)
    again.restore(copy.deepcopy(state.save()))
    assert again.scaler.state_dict() == state.scaler.state_dict()
    usual = make_state(scale=1024.0)
    scaled = fit(usual, make_batches(), amp_dtype=torch.float16)
    plain = fit(make_state(), make_batches())  # clipping sees gradients without the scale
    assert scaled[0].grad_norm == pytest.approx(plain[0].grad_norm, rel=0.05)
    assert not torch.equal(usual.model.net.head.fc.weight, before["net.head.fc.weight"])


def test_restore_of_another_model() -> None:
    saved = make_state().save()
    other = make_state(class_names=[*CLASSES, "dog"])
    with expected(CheckpointError):
        other.restore(saved)
    del saved["optimizer"]
    with expected(CheckpointError):
        make_state().restore(saved)
    without = make_state(ema=False).save()
    with expected(CheckpointError):
        make_state(ema=True).restore(without)
