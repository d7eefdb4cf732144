"""Options at 0, at 1 and at their bounds, against a few lines of timm and torch.

One step of gradient descent on all training images, from known weights: its loss and the weights
after it are computed again from `CachedViews` by formulas of the papers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from helpers.runs import STUDENT, fgkd, rows, saved
from torch import Tensor

import fgkd as library
from fgkd import losses

NUM, LR = 97, 0.5
# Plain gradient descent, one step per epoch.
PLAIN = (
    *("--opt", "momentum", "--momentum", 0, "--weight-decay", 0, "--sched", "constant", "--lr", LR),
    *("--warmup-epochs", 0, "--epochs", 1, "--batch-size", NUM, "--workers", 0),
)


@pytest.fixture(scope="module")
def begun(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student after an epoch, whose two heads differ."""
    run = tmp_path_factory.mktemp("begun") / "run"
    command = ("train-student", "--cache", tiny_cache, *STUDENT, "--epochs", 1, "--lr", 5e-3)
    fgkd(*command, "--batch-size", 16, "--workers", 0, "--output", run)
    return run


@pytest.fixture(scope="module")
def batch(tiny_cache: Path) -> dict[str, Any]:
    """All images in their first view."""
    views = library.CachedViews(tiny_cache)
    found: dict[str, Any] = next(iter(torch.utils.data.DataLoader(views, NUM)))
    assert len(found["label"]) == NUM
    return found


def initial(begun: Path) -> torch.nn.Module:
    net: torch.nn.Module = timm.create_model(f"local-dir:{begun / 'model'}", pretrained=True)
    net.train()
    net.set_distilled_training(True)  # type: ignore[operator]
    return net


def heads(net: Any, image: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the class head and of the distillation head."""
    mean, std = (torch.tensor(net.pretrained_cfg[name]) * 255 for name in ("mean", "std"))
    x = (image - mean[:, None, None]) / std[:, None, None]
    both: tuple[Tensor, Tensor] = net(x)
    return both


def formula(given: dict[str, Any], head: Tensor, dist: Tensor, batch: dict[str, Any]) -> Tensor:
    """task_weight * CE + distill_weight * the distillation loss, as the papers write them."""
    smoothing, t = given.get("smoothing", 0.1), given.get("temperature", 1.0)
    label, teacher = batch["label"], batch["teacher_logits"].double()
    one_hot = F.one_hot(label, head.shape[1]) * (1 - smoothing) + smoothing / head.shape[1]
    task = -(one_hot * head.double().log_softmax(1)).sum(1).mean()
    kind = given.get("kd_loss", "kl")
    if given.get("logit_standardization"):
        dist, teacher = (
            (x - x.mean(1, keepdim=True)) / x.std(1, correction=1, keepdim=True)
            for x in (dist.double(), teacher)
        )
    log_p, q = (dist.double() / t).log_softmax(1), (teacher / t).softmax(1)
    if kind == "hard":
        distill = F.nll_loss(dist.double().log_softmax(1), teacher.argmax(1))
    elif kind == "ce":
        distill = -(t**2) * (q * log_p).sum(1).mean()
    else:
        distill = t**2 * (q * (q.log() - log_p)).sum(1).mean()
    weights = given.get("task_loss_weight", 1), given.get("distill_loss_weight", 1)
    return weights[0] * task + weights[1] * distill


CASES: list[dict[str, Any]] = [
    {},
    {"smoothing": 0},
    {"smoothing": 0.99},
    {"temperature": 0.05},
    {"temperature": 8},
    {"temperature": 1000},
    {"task_loss_weight": 0},
    {"task_loss_weight": 7, "distill_loss_weight": 0.01},
    {"distill_loss_weight": 0},
    {"distill_loss_weight": 30, "temperature": 2},
    {"kd_loss": "hard", "smoothing": 0},
    {"kd_loss": "ce", "temperature": 4},
    {"logit_standardization": True, "temperature": 2},
]


@pytest.mark.parametrize("given", CASES, ids=lambda case: json.dumps(case))
def test_a_step_is_that_of_the_formula(
    given: dict[str, Any], begun: Path, batch: dict[str, Any], tiny_cache: Path, tmp_path: Path
) -> None:
    flags: list[object] = []
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        flags += [flag] if value is True else [flag, value]
    command = ("train-student", "--cache", tiny_cache, *STUDENT, *PLAIN, *flags)
    fgkd(*command, "--initial-checkpoint", begun, "--output", tmp_path / "run")
    net = initial(begun)
    loss = formula(given, *heads(net, batch["image"]), batch)
    assert rows(tmp_path / "run")[0]["loss"] == pytest.approx(loss.item(), rel=2e-4)
    loss.backward()
    after = saved(tmp_path / "run")["model"]
    for name, parameter in net.named_parameters():
        step = torch.zeros_like(parameter) if parameter.grad is None else LR * parameter.grad
        moved = after[f"net.{name}"] - parameter.detach()
        scale = max(step.abs().max().item(), 1e-6)
        assert (moved + step).abs().max().item() < 2e-3 * scale + 1e-6, name


@pytest.mark.parametrize("name", ["kl", "ce", "dkd"])
@pytest.mark.parametrize("temperature", [1e-2, 1.0, 20.0, 1e3, 1e5])
def test_a_loss_is_right_at_any_temperature(name: str, temperature: float) -> None:
    """In float32 as in float64; T^2 KL is of numbers that are nearly equal where T is high."""
    torch.manual_seed(0)
    given = {"student_logits": torch.randn(64, 100) * 4, "teacher_logits": torch.randn(64, 100)}
    loss = losses.LOSSES[name]
    wide = {key: value.double().requires_grad_() for key, value in given.items()}
    want = loss(**wide, temperature=temperature)
    student = given["student_logits"].requires_grad_()
    got = loss(**given, temperature=temperature)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(want.item(), rel=1e-3)
    (gradient,) = torch.autograd.grad(got, student)
    (exact,) = torch.autograd.grad(want, wide["student_logits"])
    error = (gradient - exact).abs().max() / exact.abs().max()
    assert error < 1e-3


@pytest.mark.parametrize("head", ["head", "head_dist"])
def test_freeze_moves_the_heads_alone(
    head: str, begun: Path, batch: dict[str, Any], tiny_cache: Path, tmp_path: Path
) -> None:
    command = ("train-student", "--cache", tiny_cache, *STUDENT, *PLAIN, "--freeze")
    fgkd(*command, "--initial-checkpoint", begun, "--output", tmp_path / "run")
    net = initial(begun)
    formula({}, *heads(net, batch["image"]), batch).backward()
    after = saved(tmp_path / "run")["model"]
    for name, before in net.state_dict().items():
        if not name.startswith("head"):
            assert torch.equal(after[f"net.{name}"], before), name
    weight = net.get_parameter(f"{head}.weight")
    assert weight.grad is not None
    moved = after[f"net.{head}.weight"] - weight.detach()
    assert torch.allclose(moved, -LR * weight.grad, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("threshold", [1e-4, 1e9])
def test_clipping_at_its_bounds(
    threshold: float, begun: Path, batch: dict[str, Any], tiny_cache: Path, tmp_path: Path
) -> None:
    command = ("train-student", "--cache", tiny_cache, *STUDENT, *PLAIN, "--clip-grad", threshold)
    fgkd(*command, "--initial-checkpoint", begun, "--output", tmp_path / "run")
    net = initial(begun)
    formula({}, *heads(net, batch["image"]), batch).backward()
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    norm = torch.cat([g.flatten() for g in gradients]).norm().item()
    factor = min(1.0, threshold / norm)
    after = saved(tmp_path / "run")["model"]["net.head.weight"]
    weight = net.get_parameter("head.weight")
    assert weight.grad is not None
    moved = after - weight.detach()
    wanted = -LR * factor * weight.grad
    assert (moved - wanted).abs().max() < 2e-3 * wanted.abs().max() + 1e-7


def test_an_average_of_no_horizon_is_the_model_and_of_a_long_one_what_it_was(
    begun: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    """The decay of a step of B images is exp(-B / horizon), not more than timm's warmup allows."""
    from timm.utils import ModelEmaV3

    command = ("train-student", "--cache", tiny_cache, *STUDENT, *PLAIN, "--epochs", 2)
    command = (*command, "--initial-checkpoint", begun, "--model-ema", "--model-ema-samples")
    fgkd(*command, 1e-3, "--output", tmp_path / "short")
    state = saved(tmp_path / "short")
    for name, value in state["ema"].items():
        assert torch.allclose(value, state["model"][name.removeprefix("module.")], atol=1e-6), name
    fgkd(*command, 1e12, "--output", tmp_path / "long")
    steps = [saved(tmp_path / "long")["model"]]
    net = torch.nn.Linear(1, 1, bias=False)
    ema = ModelEmaV3(net, decay=1.0, use_warmup=True)
    decays = [ema.get_decay(step) for step in (1, 2)]
    assert 0 <= decays[0] < decays[1] < 1
    first = {k: v for k, v in initial(begun).state_dict().items() if k == "head.weight"}
    one = ("train-student", "--cache", tiny_cache, *STUDENT, *PLAIN)
    fgkd(*one, "--initial-checkpoint", begun, "--output", tmp_path / "one")
    steps.insert(0, saved(tmp_path / "one")["model"])
    average = first["head.weight"]
    for decay, step in zip(decays, steps, strict=True):
        average = decay * average + (1 - decay) * step["net.head.weight"]
    got = saved(tmp_path / "long")["ema"]
    (name,) = [key for key in got if key.endswith("net.head.weight")]
    assert torch.allclose(got[name], average, atol=1e-6)


@pytest.mark.parametrize("option", ["--drop-path", "--drop"])
def test_dropping_nothing_and_nearly_everything(
    option: str, begun: Path, batch: dict[str, Any], tiny_cache: Path, tmp_path: Path
) -> None:
    """0 is the formula; 0.99 trains, and the validation that follows drops nothing."""
    command = ("train-student", "--cache", tiny_cache, *STUDENT, *PLAIN)
    command = (*command, "--initial-checkpoint", begun, option)
    fgkd(*command, 0, "--output", tmp_path / "none")
    net = initial(begun)
    loss = formula({}, *heads(net, batch["image"]), batch).item()
    assert rows(tmp_path / "none")[0]["loss"] == pytest.approx(loss, rel=2e-4)
    fgkd(*command, 0.99, "--lr", 1e-12, "--output", tmp_path / "most")
    before = library.evaluate([begun], split="val", workers=0)[0].metrics
    after = rows(tmp_path / "most")[0]
    assert after["val_nll"] == pytest.approx(before.nll, rel=1e-4)


def test_one_view_is_shown_in_every_epoch(
    begun: Path, batch: dict[str, Any], tiny_cache: Path, tmp_path: Path
) -> None:
    command = ("train-student", "--cache", tiny_cache, *STUDENT, *PLAIN, "--lr", 1e-12)
    command = (*command, "--initial-checkpoint", begun, "--epochs", 3)
    fgkd(*command, "--views", 1, "--output", tmp_path / "one")
    fgkd(*command, "--views", 2, "--output", tmp_path / "two")
    one, two = ([row["loss"] for row in rows(tmp_path / name)] for name in ("one", "two"))
    assert one == pytest.approx([one[0]] * 3, rel=1e-6)
    assert two[0] == pytest.approx(two[2], rel=1e-6) == pytest.approx(one[0], rel=1e-6)
    assert two[1] != pytest.approx(two[0], rel=1e-4)
