"""Training set-up: each option reaches the part that it names."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.loops import CPU, fit, lr_at, make_batches
from helpers.models import CLASSES, TINY_CONVNEXT, build
from helpers.runs import TEACHER, fgkd
from timm.scheduler import StepLRScheduler
from torch import nn

from fgkd import config, device, models
from fgkd.commands.banner import describe_device
from fgkd.config import ModelSpec, OptimSpec, TrainTeacherConfig
from fgkd.data import open_dataset
from fgkd.loading.schedule import Schedule
from fgkd.loading.train_loader import TrainLoader
from fgkd.training import loop, setup
from fgkd.views.clean import clean_renderer
from fgkd.views.rendering import Request

LR = 1e-3


def make_state(spec: OptimSpec, model: models.Classifier, channels_last: bool = True) -> loop.State:
    return setup.make_state(spec, LR, model, CPU, channels_last)


def test_averaged_weights_are_the_recursion_written_out() -> None:
    """Horizon in samples; timm's warmup 1 - (1 + t)^(-2/3) lets early steps count less."""
    given = OptimSpec(model_ema=True, model_ema_samples=10, batch_size=8, opt="sgd")
    state = make_state(given, build("convnext_atto"))
    model = copy.deepcopy(state.model)
    replay = make_state(OptimSpec(opt="sgd"), model)
    want = {name: value.clone() for name, value in model.state_dict().items()}
    fit(state, make_batches())
    for step, one in enumerate(make_batches()):
        fit(replay, [one])
        decay = min(math.exp(-8 / 10), 1 - (1 + step) ** (-2 / 3))
        for name, value in model.state_dict().items():
            want[name] = decay * want[name] + (1 - decay) * value
    for name, value in state.ema.module.state_dict().items():
        torch.testing.assert_close(value, want[name], msg=name)
    assert replay.ema is None


@pytest.mark.parametrize("value", [1e-3, 10.0])
def test_clipping_by_value_in_the_loop_is_torchs(value: float) -> None:
    state = make_state(OptimSpec(opt="momentum", momentum=0), build("convnext_atto"))
    one = make_batches()[0]
    model = copy.deepcopy(state.model).train()
    logits_BK = model(one.image_u8_BHW3).head_BK
    nn.functional.cross_entropy(logits_BK, one.labels_B).backward()
    nn.utils.clip_grad_value_(model.parameters(), value)
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            decay = 0.05 * (parameter.ndim > 1)
            parameter -= lr_at(0) * (parameter.grad + decay * parameter)
    (report,) = fit(state, [one], clip_grad=value, clip_mode="value")
    assert report.grad_norm > 1e-3
    for got, want in zip(state.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


def test_epochs_of_the_schedule_are_steps() -> None:
    given = OptimSpec(sched="step", epochs=10, warmup_epochs=1.5, decay_epochs=2, decay_rate=0.5)
    ours = setup.lr_schedule(given, LR, steps_per_epoch=4)
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=setup.peak_lr(given, ModelSpec()))
    common: dict[str, Any] = {"t_in_epochs": False, "warmup_prefix": True, "warmup_lr_init": 1e-6}
    timms = StepLRScheduler(optimizer, decay_t=8, decay_rate=0.5, warmup_t=7, **common)
    for step in range(40):
        timms.step_update(step + 1)
        assert ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12), step


def test_layer_decay_and_its_style_reach_the_optimizer() -> None:
    scales = {}
    for style in ("timm", "convnext12"):
        given = OptimSpec(layer_decay=0.5, layer_decay_style=style, weight_decay=0.3)
        net = build("convnext_atto", kwargs=TINY_CONVNEXT | {"depths": [1, 1, 4, 1]})
        groups = setup.make_optimizer(given, LR, net).param_groups
        scales[style] = {group["lr_scale"] for group in groups}
        assert {group["weight_decay"] for group in groups} == {0.0, 0.3}
    # Stem, three stages, a third one of two layers (blocks 0 to 2, block 3) or of four, head.
    assert scales["convnext12"] == {0.5**k for k in range(7)}
    assert scales["timm"] == {0.5**k for k in range(9)}


def test_the_memory_format_is_the_options_and_changes_no_number() -> None:
    answers = []
    for channels_last in (True, False):
        state = make_state(OptimSpec(), build("convnext_atto"), channels_last)
        weight = state.model.net.get_submodule("stages.1.downsample.1").weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last
        fit(state, make_batches()[:1])
        answers.append(state.model.eval()(make_batches()[0].image_u8_BHW3).answer_BK)
    torch.testing.assert_close(*answers, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "float32; channels last"),
        ({"amp": True}, "autocast bfloat16"),
        ({"amp": True, "amp_dtype": "float16"}, "autocast float16 with loss scaling"),
        ({"channels_last": False}, "channels first"),
        ({"compile": "on"}, "; compiled"),
        ({"compile": True}, "; compiled"),
        ({"grad_checkpointing": True}, "; gradient checkpointing"),
        ({"workers": 0}, "images loaded by this process"),
    ],
)
def test_the_banner_names_what_was_chosen(given: dict[str, Any], said: str) -> None:
    options = config.build(TrainTeacherConfig, given, "here")
    parts = (options.run, options.optim, options.model)
    line = describe_device(*parts, "cpu (no CUDA device found)")
    assert line.startswith("cpu (no CUDA device found); ")
    assert said in line
    scaler = make_state(options.optim, build(class_names=CLASSES)).scaler
    assert scaler.is_enabled() == (given.get("amp_dtype") == "float16")


def test_pixels_go_to_a_gpu_as_pinned_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the bytes of floats; the copy does not wait for the computation before it."""
    calls: list[tuple[str, torch.dtype, Any]] = []

    def pin_memory(self: torch.Tensor) -> torch.Tensor:
        calls.append(("pin", self.dtype, None))
        return self

    def to(self: torch.Tensor, device: torch.device, **how: Any) -> torch.Tensor:
        calls.append((device.type, self.dtype, how))
        return self

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.Tensor, "to", to)
    images = make_batches()[0].image_u8_BHW3
    device.to_device(images, torch.device("cuda"))
    assert calls == [
        ("pin", torch.uint8, None),
        ("cuda", torch.uint8, {"non_blocking": True}),
    ]
    assert device.to_device(images, CPU) is images


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ({"batch_size": 64}, 64),
        ({"batch_size": 64, "grad_accum_steps": 3}, 22),
        ({"batch_size": 4096}, 256),
        ({"batch_size": 64, "eval_batch_size": 7}, 7),
    ],
)
def test_an_evaluation_step_holds_no_more_than_a_training_step(
    given: dict[str, Any], want: int
) -> None:
    options = config.build(TrainTeacherConfig, given, "here")
    loader = object.__new__(TrainLoader)
    loader.unit, loader.stream = 1, None
    loader.schedule = Schedule(0, 5000, options.optim.batch_size, 1, 1)
    assert setup.eval_batch_size(options.run, options.optim, loader) == want


def test_validation_computes_in_the_number_type_of_training(
    tiny_data: Path, tmp_path: Path
) -> None:
    """By the logits of the saved model, under torch's own autocast."""
    command = ("train-teacher", "--data", f"folder:{tiny_data}", *TEACHER, "--epochs", 1)
    fgkd(*command, "--amp", "--workers", 0, "--output", tmp_path / "run")
    (row,) = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    model = models.load(tmp_path / "run/model")
    val = open_dataset([f"folder:{tiny_data}"], 0.1).splits["val"]
    renderer = clean_renderer(val, model.eval_transform, False)
    request = Request(np.arange(len(val)), range(1), digests=np.zeros(len(val), bool))
    images, labels = renderer[request].images[0][:, 0], torch.from_numpy(val.labels)
    nll = {}
    for amp in (True, False):
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=amp):
            logits = model(images).answer_BK.float()
        nll[amp] = F.cross_entropy(logits, labels).item()
    assert row["val_nll"] == pytest.approx(nll[True], rel=1e-4)
    assert abs(row["val_nll"] - nll[False]) > abs(row["val_nll"] - nll[True])
