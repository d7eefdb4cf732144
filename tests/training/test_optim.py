"""The schedule, the groups and the optimizers against timm's and ConvNeXt's own."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import timm
import torch
from helpers.errors import expected
from timm.optim import (
    create_optimizer_v2,
    get_optimizer_info,
    list_optimizers,
    param_groups_layer_decay,
    param_groups_weight_decay,
)
from timm.scheduler import CosineLRScheduler, PolyLRScheduler, StepLRScheduler
from torch import nn

from fgkd.errors import FgkdError, OptionError, UnknownName, UnusedOption
from fgkd.training import optim, schedules

torch.set_num_threads(1)
LR, MIN_LR = 1e-3, 1e-5


def lr_at(step: int, **changes: Any) -> float:
    base: dict[str, Any] = {"total_steps": 20, "warmup_steps": 4, "lr": LR, "min_lr": MIN_LR}
    return schedules.lr_at(step=step, **(base | changes))


@pytest.mark.parametrize("warmup", [0, 1, 4])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "step"])
def test_schedule_equals_timm(schedule: str, warmup: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=LR)
    common: dict[str, Any] = {"warmup_t": warmup + 1, "warmup_lr_init": 1e-6, "t_in_epochs": False}
    common["warmup_prefix"] = True
    falling = {"t_initial": 20 - warmup - 1, "lr_min": MIN_LR}
    scheduler: Any = {
        "cosine": lambda: CosineLRScheduler(optimizer, **falling, **common),
        "linear": lambda: PolyLRScheduler(optimizer, power=1.0, **falling, **common),
        "step": lambda: StepLRScheduler(optimizer, decay_t=3, decay_rate=0.5, **common),
    }[schedule]()
    for step in range(20):
        scheduler.step_update(step + 1)
        changes = {
            "warmup_steps": warmup,
            "schedule": schedule,
            "decay_steps": 3,
            "decay_rate": 0.5,
        }
        ours = lr_at(step, warmup_lr=1e-6, **changes)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12), step


def test_schedule_starts_above_zero_peaks_once_and_ends_at_min_lr() -> None:
    rates = [lr_at(step) for step in range(20)]
    assert rates[:5] == pytest.approx([LR * k / 5 for k in (1, 2, 3, 4, 5)])
    assert rates.index(max(rates)) == 4
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] == MIN_LR == lr_at(99)
    assert {lr_at(step, schedule="constant") for step in range(4, 20)} == {LR}
    assert lr_at(19, schedule="step", warmup_steps=0) == MIN_LR  # the floor holds
    assert lr_at(0, total_steps=1, warmup_steps=0) == LR  # a lone step is not spent at the floor


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"lr": 1e-5}, "min_lr"),
        ({"lr": 1e-6, "schedule": "linear"}, "min_lr"),
        ({"warmup_steps": 20}, "warmup_epochs"),
        ({"schedule": "cosin"}, "sched"),
    ],
)
def test_senseless_schedules_are_refused(changes: dict[str, Any], option: str) -> None:
    with pytest.raises(OptionError) as error:
        lr_at(0, **changes)
    assert error.value.option == option


def build(name: str, **kwargs: Any) -> nn.Module:
    with torch.device("meta"):  # names and shapes alone
        return timm.create_model(name, num_classes=5, **kwargs)


def rules(groups: list[dict[str, Any]]) -> dict[int, tuple[float, float]]:
    """Parameter id -> what its group does with it."""
    return {
        id(p): (g["weight_decay"], pytest.approx(g.get("lr_scale", 1.0)))
        for g in groups
        for p in g["params"]
    }


DEIT = "deit_tiny_distilled_patch16_224"


@pytest.mark.parametrize("name", [DEIT, "convnext_atto", "resnet18"])
@pytest.mark.parametrize("layer_decay", [None, 0.7])
def test_groups_equal_timm(name: str, layer_decay: float | None) -> None:
    model = build(name)
    first, *_ = model.parameters()
    first.requires_grad_(False)
    groups = optim.param_groups(model=model, weight_decay=0.05, layer_decay=layer_decay)
    skip = getattr(model, "no_weight_decay", set)()
    if layer_decay is None:
        theirs = param_groups_weight_decay(model, 0.05, no_weight_decay_list=skip)
    else:
        theirs = param_groups_layer_decay(model, 0.05, skip, layer_decay=layer_decay)
    assert rules(groups) == rules(theirs)
    names = dict(model.named_parameters())
    assert [names[n] for g in groups for n in g["names"]] == [
        p for g in groups for p in g["params"]
    ]
    assert sum(len(g["names"]) for g in groups) == len(names) - 1


def test_tokens_and_position_embedding_of_deit_do_not_decay() -> None:
    groups = optim.param_groups(model=build(DEIT), weight_decay=0.05)
    free = {name for group in groups if group["weight_decay"] == 0 for name in group["names"]}
    assert {"cls_token", "dist_token", "pos_embed", "head.bias", "norm.weight"} <= free
    assert "head.weight" not in free
    assert len(optim.param_groups(model=build(DEIT), weight_decay=0.0)) == 1


def scales(name: str) -> dict[str, float]:
    style: dict[str, Any] = {"layer_decay": 0.5, "layer_decay_style": "convnext12"}
    groups = optim.param_groups(model=build(name), weight_decay=0.05, **style)
    return {name: group["lr_scale"] for group in groups for name in group["names"]}


def test_convnext_layers_are_the_originals() -> None:
    """Layers above each parameter by `get_num_layer_for_convnext`, said for timm's names."""
    golden = {
        "stem.0.weight": 13,
        "stages.0.blocks.2.gamma": 12,
        "stages.1.downsample.1.weight": 11,
        "stages.2.downsample.1.weight": 10,
        "stages.2.blocks.2.mlp.fc1.weight": 10,
        "stages.2.blocks.3.conv_dw.weight": 9,
        "stages.2.blocks.26.mlp.fc2.bias": 2,
        "stages.3.downsample.0.weight": 1,
        "stages.3.blocks.2.conv_dw.bias": 1,
        "head.norm.weight": 0,
        "head.fc.weight": 0,
    }
    base, tiny = scales("convnext_base"), scales("convnext_tiny")
    assert {name: base[name] for name in golden} == {n: 0.5**k for n, k in golden.items()}
    assert set(base.values()) == {0.5**k for k in range(14)}
    assert set(tiny.values()) == {0.5**k for k in range(8)}
    assert tiny["stages.2.blocks.8.gamma"] == 0.5**2


@pytest.mark.parametrize(
    ("model", "style", "kind"),
    [
        (nn.Linear(2, 2), "timm", OptionError),
        (nn.Linear(2, 2), "convnext12", OptionError),
        (nn.Linear(2, 2), "convnext", UnknownName),
    ],
)
def test_layer_decay_without_layers_is_refused(
    model: nn.Module, style: str, kind: type[FgkdError]
) -> None:
    with expected(kind):
        optim.param_groups(model=model, weight_decay=0.0, layer_decay=0.7, layer_decay_style=style)


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3))


def steps(
    model: nn.Module, optimizer: torch.optim.Optimizer, count: int = 3, first: int = 0
) -> list[torch.Tensor]:
    x = torch.linspace(-1, 1, 20).view(5, 4)
    for step in range(first, first + count):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        torch.manual_seed(1 + step)  # kron draws
        optimizer.step()
    return [p.detach() for p in model.parameters()]


NAMES = [  # of timm alone: those of bitsandbytes and apex need their package and CUDA
    name
    for name in list_optimizers(exclude_filters=["bnb*", "fused*"])
    if not get_optimizer_info(name).second_order
]


@pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum'")
@pytest.mark.parametrize("name", [*NAMES, "lookahead_adamw"])
def test_steps_equal_those_of_timm(name: str) -> None:
    ours, theirs = tiny(), tiny()
    groups = optim.param_groups(model=ours, weight_decay=0.05)
    mine = optim.create_optimizer(name=name, groups=groups, lr=1e-2, momentum=0.9)
    weights, biases = [theirs[0].weight, theirs[2].weight], [theirs[0].bias, theirs[2].bias]
    plain = [{"params": weights, "weight_decay": 0.05}, {"params": biases, "weight_decay": 0.0}]
    timms = create_optimizer_v2(plain, opt=name, lr=1e-2, momentum=0.9)
    for a, b in zip(steps(ours, mine), steps(theirs, timms), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum'")
@pytest.mark.parametrize("name", [*NAMES, "lookahead_adamw"])
def test_an_optimizer_continues_from_its_state_bit_for_bit(name: str) -> None:
    def new() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = tiny()
        groups = optim.param_groups(model=model, weight_decay=0.05)
        return model, optim.create_optimizer(name=name, groups=groups, lr=1e-2, momentum=0.9)

    whole, half, rest = new(), new(), new()
    steps(*half, count=3)
    rest[0].load_state_dict(half[0].state_dict())
    rest[1].load_state_dict(copy.deepcopy(half[1].state_dict()))
    for a, b in zip(steps(*rest, count=4, first=3), steps(*whole, count=7), strict=True):
        assert torch.equal(a, b)


def test_adamw_equals_torch_with_betas_eps_and_scaled_rates() -> None:
    ours, theirs = tiny(), tiny()
    groups = optim.param_groups(model=ours, weight_decay=0.1)
    groups[0]["lr_scale"] = 0.5
    kwargs: dict[str, Any] = {"eps": 1e-6, "betas": (0.8, 0.9)}
    mine = optim.create_optimizer(name="adamw", groups=groups, lr=1e-2, kwargs=kwargs)
    weights, biases = [theirs[0].weight, theirs[2].weight], [theirs[0].bias, theirs[2].bias]
    decayed = {"params": weights, "weight_decay": 0.1, "lr": 5e-3}
    spared = {"params": biases, "weight_decay": 0.0}
    reference = torch.optim.AdamW([decayed, spared], lr=1e-2, **kwargs)
    for a, b in zip(steps(ours, mine), steps(theirs, reference), strict=True):
        assert torch.equal(a, b)


def test_groups_survive_in_the_optimizer_and_its_state() -> None:
    groups = optim.param_groups(model=tiny(), weight_decay=0.05)
    groups[1]["lr_scale"] = 0.25
    optimizer = optim.create_optimizer(name="adamw", groups=groups, lr=1.0, momentum=0.9)
    assert [g["lr"] for g in optimizer.param_groups] == [1.0, 0.25]
    optim.set_lr(optimizer, 2.0)
    saved = optimizer.state_dict()["param_groups"]
    assert [(g["lr"], g["lr_scale"]) for g in saved] == [(2.0, 1.0), (0.5, 0.25)]
    decays = {name: g["weight_decay"] for g in saved for name in g["names"]}
    assert decays == {"0.weight": 0.05, "2.weight": 0.05, "0.bias": 0.0, "2.bias": 0.0}
    plain = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    optim.set_lr(plain, 3.0)
    assert plain.param_groups[0]["lr"] == 3.0


@pytest.mark.parametrize("name", ["adamv", "foo_adamw", "lookahead_", "adahessian"])
def test_unknown_optimizer_is_refused(name: str) -> None:
    with pytest.raises(UnknownName) as error:
        optim.create_optimizer(name=name, groups=[], lr=1.0, momentum=0.9)
    assert (error.value.option, error.value.value) == ("opt", name)
    assert "adamw" in error.value.known
    if name == "adamv":
        assert "did you mean" in error.value.message


def test_an_optimizer_that_cannot_be_built_is_refused() -> None:
    groups = optim.param_groups(model=tiny(), weight_decay=0.0)
    with expected(OptionError, option="opt", value="adamw"):
        optim.create_optimizer(name="adamw", groups=groups, lr=-1.0)
    for kwargs in ({"betas": (2.0, 0.9)}, {"beta": 0.9}, {"eps": "x"}):
        with expected(OptionError, option="opt_kwargs", value=kwargs):
            optim.create_optimizer(name="adamw", groups=groups, lr=1.0, kwargs=kwargs)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        *(("sgd", "betas"), ("sgd", "eps"), ("sgd", "layer_decay"), ("lookahead_lion", "eps")),
        *(("adamw", "weight_decay"), ("adamw", "lr"), ("adamw", "momentum")),
    ],
)
def test_kwargs_that_timm_would_drop_or_take_for_its_own_are_refused(name: str, key: str) -> None:
    groups = optim.param_groups(model=tiny(), weight_decay=0.0)
    with expected(OptionError, option="opt_kwargs", value=key):
        optim.create_optimizer(name=name, groups=groups, lr=1.0, kwargs={key: 0.5})


@pytest.mark.parametrize(("name", "has_momentum"), [("sgd", True), ("adamw", False)])
def test_a_momentum_reaches_the_optimizer_or_is_refused(name: str, has_momentum: bool) -> None:
    groups = optim.param_groups(model=tiny(), weight_decay=0.0)
    if not has_momentum:
        with expected(UnusedOption, option="momentum", value=0.5):
            optim.create_optimizer(name=name, groups=groups, lr=1.0, momentum=0.5)
        return
    made = optim.create_optimizer(name=name, groups=groups, lr=1.0, momentum=0.5)
    assert {group["momentum"] for group in made.param_groups} == {0.5}


@pytest.mark.parametrize("value", [None, 0, 0.3, 1e9])
def test_clip_by_norm_equals_torch(value: float | None) -> None:
    ours, theirs = tiny(), tiny()
    for model in (ours, theirs):
        model(torch.ones(2, 4)).sum().backward()
    theirs_norm = nn.utils.clip_grad_norm_(theirs.parameters(), value or float("inf")).item()
    assert optim.clip_grad(ours.parameters(), value) == theirs_norm
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_clip_by_value_and_parameters_without_a_gradient() -> None:
    weight, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([3.0, -4.0])
    assert optim.clip_grad([weight, unused], 1.0, "value") == 5.0
    assert weight.grad.tolist() == [1.0, -1.0]
    assert optim.clip_grad([unused], 1.0) == 0.0
    with expected(UnknownName, option="clip_mode", value="agc"):
        optim.clip_grad([weight], 1.0, "agc")


def test_importing_optim_does_not_import_timm() -> None:
    code = "import sys, fgkd.training.optim; sys.exit('timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
