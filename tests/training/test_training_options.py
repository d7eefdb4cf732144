"""What training may spare (a frozen backbone's updates, activations), number types, compilation."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.errors import expected
from helpers.failures import Fails
from helpers.loops import (
    assert_equal_weights,
    broken_gradient,
    fit,
    lr_at,
    make_batches,
    make_state,
    state_of,
)
from helpers.models import DEIT, build
from helpers.runs import STUDENT, assert_same, assert_same_run, fgkd, saved
from torch import Tensor

from fgkd.errors import FgkdError, NotFinite
from fgkd.training import optim

# ---- a frozen backbone ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "where"),
    [
        ("convnext_atto", {"drop_path": 0.3}, "head.fc"),
        (DEIT, {"drop_path": 0.3}, "head"),
        ("resnet18", {}, "fc"),
    ],
)
def test_a_frozen_trunk_is_torchs_training_of_the_head_on_fixed_features(
    name: str, options: dict[str, Any], where: str
) -> None:
    """With stochastic depth and BatchNorm, which a frozen backbone neither applies nor moves."""
    model = build(name, uses_dist=False, **options)
    before = copy.deepcopy(model.state_dict())
    head = copy.deepcopy(model.net.get_submodule(where))
    features: list[Tensor] = []
    spy = copy.deepcopy(model).eval()
    spy.net.get_submodule(where).register_forward_pre_hook(lambda _, args: features.append(args[0]))
    with torch.no_grad():
        for batch in make_batches():
            spy(batch.image_u8_BHW3)
    model.freeze()
    state = state_of(model)
    fit(state, make_batches())

    bias = {"params": [head.bias], "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([bias, {"params": [head.weight], "weight_decay": 0.05}])
    for step, (batch, x) in enumerate(zip(make_batches(), features, strict=True)):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step)
        optimizer.zero_grad()
        F.cross_entropy(head(x), batch.labels_B).backward()
        optimizer.step()
    after = model.state_dict()
    moved = {key for key in after if not torch.equal(after[key], before[key])}
    assert moved == {f"net.{where}.weight", f"net.{where}.bias"}
    for key, want in head.state_dict().items():
        torch.testing.assert_close(after[f"net.{where}.{key}"], want, atol=1e-6, rtol=0)
    assert len(state.optimizer.state) == 2  # of Adam, for the head alone


def test_a_frozen_trunk_drops_nothing_but_before_the_head() -> None:
    model = build(drop=0.5, drop_path=0.5, uses_dist=True)
    model.freeze()
    model.train()
    training = {name for name, module in model.net.named_modules() if module.training and name}
    assert training == {"head", "head_dist", "head_drop"}
    model.eval()
    assert not any(module.training for module in model.modules())


def test_freeze_and_ema_through_a_run(tiny_cache: Path, tmp_path: Path) -> None:
    """A distilled student's both heads move, and nothing else."""
    command = ("train-student", "--cache", tiny_cache, *STUDENT, "--epochs", 1, "--workers", 0)
    fgkd(*command, "--output", tmp_path / "run", "--freeze", "--model-ema")
    fgkd(*command, "--output", tmp_path / "start", "--freeze", "--lr", 1e-30, "--min-lr", 0)
    now, start = saved(tmp_path / "run")["model"], saved(tmp_path / "start")["model"]
    moved = {name for name in now if not torch.equal(now[name], start[name])}
    assert moved == {f"net.{h}.{p}" for h in ("head", "head_dist") for p in ("weight", "bias")}
    for name in ("start", "run"):
        assert "trained: only the heads" in (tmp_path / name / "log.txt").read_text()


# ---- recomputed activations ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["convnext_atto", DEIT, "resnet18"])
@pytest.mark.parametrize("amp_dtype", [None, torch.bfloat16])
def test_recomputed_activations_change_no_bit(name: str, amp_dtype: torch.dtype | None) -> None:
    """Under keyed stochastic depth, dropout, accumulation, and BatchNorm's statistics."""
    trained = []
    for recomputes in (False, True):
        model = build(name, drop=0.3, drop_path=0.3)
        if recomputes:
            model.recompute_activations(name)
        fit(state_of(model), make_batches()[:3], grad_accum_steps=2, amp_dtype=amp_dtype)
        trained.append(model)
    assert_equal_weights(*trained)


def test_recomputation_happens() -> None:
    model = build("convnext_atto")
    model.recompute_activations("convnext_atto")
    calls: list[int] = []
    model.net.stages[0].blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    fit(state_of(model), make_batches()[:1])
    assert len(calls) == 2


def test_a_model_without_checkpointing_is_refused(
    fails: Fails, tiny_cache: Path, tmp_path: Path
) -> None:
    said = fails(
        *("train-student", "--cache", tiny_cache, "--model", "vgg11", "--img-size", 32),
        *("--grad-checkpointing", "--output", tmp_path / "run"),
    )
    assert "timm has no gradient checkpointing for vgg11" in said
    assert not (tmp_path / "run").exists()


# ---- an optimizer that draws ---------------------------------------------------------------


def test_what_an_optimizer_draws_is_that_of_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout is drawn by rank; where an update (of timm's kron) drew so, weights would part."""
    drawn: dict[str, list[float]] = {"0": [], "1": []}
    for rank, found in drawn.items():
        monkeypatch.setenv("RANK", rank)
        state = make_state(ema=False, drop=0.3)
        state.optimizer.register_step_pre_hook(
            lambda *_, found=found: found.append(torch.rand(1).item())
        )
        fit(state, make_batches())
    assert drawn["0"] == drawn["1"]
    assert len(set(drawn["0"])) == 6


# ---- float16 -------------------------------------------------------------------------------


def test_a_skipped_step_moves_neither_weights_nor_their_average() -> None:
    """float16 gradients overflow: the scale is halved until they do not; the step still counts."""
    state = make_state(scale=2.0**19)
    start, average = (copy.deepcopy(m.state_dict()) for m in (state.model, state.ema.module))
    (first,) = fit(state, make_batches()[:1], amp_dtype=torch.float16)
    assert first.skipped
    assert_same(state.model.state_dict(), start)
    assert_same(state.ema.module.state_dict(), average)
    assert (state.step, state.scaler.get_scale()) == (1, 2.0**18)
    rest = fit(state, make_batches(1), amp_dtype=torch.float16)
    assert not rest[-1].skipped
    assert rest[-1].lr == lr_at(5)
    assert not torch.equal(state.model.net.head.fc.weight, start["net.head.fc.weight"])


def test_a_gradient_that_is_not_finite_stops_before_the_update() -> None:
    state, same = make_state(), make_state()
    with expected(NotFinite, step=1):
        fit(state, make_batches(), broken_gradient)
    fit(same, make_batches()[:1])
    assert_same(state.model.state_dict(), same.model.state_dict())
    scaled = make_state(scale=1.0)  # ... or is skipped, where a smaller scale may help
    reports = fit(scaled, make_batches(), broken_gradient, amp_dtype=torch.float16)
    assert [r.skipped for r in reports] == [False, True, False, False, False, False]
    lost = make_state(scale=2.0**-12)
    with expected(NotFinite):
        fit(lost, make_batches(), broken_gradient, amp_dtype=torch.float16)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_run_under_autocast_resumes_bit_for_bit(
    dtype: str, tiny_cache: Path, tmp_path: Path
) -> None:
    """The loss scale and its count of good steps are in the checkpoint."""
    command = ("train-student", "--cache", tiny_cache, *STUDENT, "--epochs", 2, "--workers", 0)
    command += ("--amp", "--amp-dtype", dtype, "--drop", 0.1, "--clip-grad", 1, "--model-ema")
    fgkd(*command, "--output", tmp_path / "whole")
    stopped = tmp_path / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        real, calls = optim.clip_grad, iter(range(9))

        def failing(*args: Any, **kwargs: Any) -> float:
            if next(calls) == 3:
                raise FgkdError("stop")
            return real(*args, **kwargs)

        patch.setattr(optim, "clip_grad", failing)
        with pytest.raises(SystemExit):
            fgkd(*command, "--output", stopped, "--checkpoint-steps", 1)
    assert saved(stopped)["step"] == 3
    fgkd("train-student", "--output", stopped, "--resume")
    assert_same_run(stopped, tmp_path / "whole")
    if dtype == "float16":
        assert saved(stopped)["scaler"]["_growth_tracker"] > 0
