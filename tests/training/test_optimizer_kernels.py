"""Fused optimizers, as on a GPU (torch has them on CPUs), and runs that change their kernels."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers.errors import expected
from helpers.loops import (
    assert_equal_weights,
    broken_gradient,
    fit,
    make_batches,
    state_of,
    step_fn,
)
from helpers.models import build
from helpers.runs import assert_same
from torch import Tensor, nn

from fgkd.errors import NotFinite
from fgkd.loading.batch import Batch
from fgkd.training import optim


@pytest.mark.parametrize("opt", ["adamw", "adam"])
def test_a_fused_optimizer_leaves_the_update_out_by_itself(
    opt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where it is asked for the update before the host knows what to think of it."""
    monkeypatch.setattr(optim, "_is_on_gpu", lambda groups: True)
    state, same = state_of(build(), opt), state_of(build(), opt)
    assert optim.skip_unless(torch.tensor(True), state.optimizer)
    updates: list[int] = []
    real = state.optimizer.step
    monkeypatch.setattr(state.optimizer, "step", lambda: updates.append(1) or real())
    with expected(NotFinite, step=1):
        fit(state, make_batches(), broken_gradient)
    assert len(updates) == 2
    fit(same, make_batches()[:1])
    assert_same(state.model.state_dict(), same.model.state_dict())
    scaled = state_of(build(), opt)
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    reports = fit(scaled, make_batches(), broken_gradient, amp_dtype=torch.float16)
    assert [r.skipped for r in reports] == [False, True, False, False, False, False]


@pytest.mark.parametrize("opt", ["adamw", "adam", "sgd", "momentum", "lamb"])
def test_a_first_step_that_is_skipped_leaves_nothing_behind(
    opt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss scale often overflows at first: the steps after it are those of a new optimizer."""
    monkeypatch.setattr(optim, "_is_on_gpu", lambda groups: True)

    def overflow(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        out = step_fn(model, batch)
        if batch.spec.step == 0:
            out["loss"] = out["loss"] + sum((p * 0).sum().sqrt() for p in model.parameters())
        return out

    ends = []
    for first in (0, 1):
        state = state_of(build(), opt)
        state.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
        reports = fit(state, make_batches(first), overflow)
        assert [report.skipped for report in reports[: 2 - first]] == [True, False][first:]
        ends.append(state.model.state_dict())
    assert all(x.isfinite().all() for x in ends[0].values())
    assert_same(ends[0], ends[1])


@pytest.mark.parametrize("opt", ["adamw", "sgd", "lamb", "lookahead_adamw"])
@pytest.mark.parametrize("to_gpu", [True, False])
def test_a_run_continues_on_another_device_in_another_memory_format(
    opt: str, to_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its optimizer takes the kernels of the new one; its averages lie as the weights do."""
    whole = state_of(build(), opt)
    fit(whole, make_batches())
    monkeypatch.setattr(optim, "_is_on_gpu", lambda groups: not to_gpu)
    begun = state_of(build(), opt)
    fit(begun, make_batches()[:3])
    monkeypatch.setattr(optim, "_is_on_gpu", lambda groups: to_gpu)
    model = build()
    model.to(memory_format=torch.channels_last)
    state = state_of(model, opt)
    fused = state.optimizer.param_groups[0].get("fused")
    state.restore(copy.deepcopy(begun.save()))
    assert state.optimizer.param_groups[0].get("fused") == fused
    inner: Any = getattr(state.optimizer, "_base_optimizer", state.optimizer)
    averages = [(p, v) for p, own in inner.state.items() for v in own.values() if v.ndim]
    assert any(not param.is_contiguous() for param, _ in averages)
    assert all(average.stride() == param.stride() for param, average in averages)
    fit(state, make_batches(3))
    assert_equal_weights(state.model, whole.model, atol=1e-5)
