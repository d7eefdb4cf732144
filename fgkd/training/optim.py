"""Optimizers, parameter groups with layer-wise decay, and gradient clipping."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from fgkd.errors import OptionError, UnknownName, UnusedOption, near

LAYER_DECAY_STYLES = ("timm", "convnext12")
CLIP_MODES = ("norm", "value")
# One kernel for all parameters on a GPU. Not sgd: of a first step that is skipped, torch 2.14 keeps
# momentum that was never written.
FUSED = ("adam", "adamw")
MOMENTUM = 0.9  # timm's default


def _convnext_layers(names: list[str]) -> dict[str, int]:
    """ConvNeXt's own layers: stem 0, stages 1 and 2, stage 3 by threes, stage 4, then the head.

    A downsampling goes with the block it feeds, a last norm with the head. Three blocks a layer in
    the third stage: 27 blocks make 12 layers between stem and head, the 9 of tiny make 6. See
    `get_num_layer_for_convnext` in facebookresearch/ConvNeXt (there with 12 written in).
    """
    blocks = [int(n.split(".")[3]) for n in names if n.startswith("stages.2.blocks.")]
    if not blocks:
        what = "layer decay style 'convnext12' is for ConvNeXt: no 'stages.2.blocks' in the model"
        raise OptionError(what, option="layer_decay_style", suggestion="timm")
    last = 4 + max(blocks) // 3

    def layer(name: str) -> int:
        if name.startswith("stem"):
            return 0
        if match := re.match(r"stages\.([0-3])\.(?:blocks\.(\d+))?", name):
            stage, block = int(match[1]), int(match[2] or 0)
            return (1, 2, 3 + block // 3, last)[stage]
        return last + 1

    return {name: layer(name) for name in names}


def _layers(model: nn.Module, style: str) -> dict[str, int]:
    """Parameter name -> layer, 0 at the stem and largest at the head."""
    if style == "convnext12":
        return _convnext_layers([name for name, _ in model.named_parameters()])
    if style != "timm":
        message = f"unknown layer decay style {style!r}"
        known = LAYER_DECAY_STYLES
        raise UnknownName(message, option="layer_decay_style", value=style, known=known)
    from timm.models import group_parameters

    matcher = getattr(model, "group_matcher", None)
    if matcher is None:
        what = f"{type(model).__name__} does not say which layer a parameter is in"
        raise OptionError(what, option="layer_decay", suggestion=1)
    layers: dict[str, int] = group_parameters(model, matcher(coarse=False), reverse=True)
    return layers


class ParamGroup(TypedDict):
    """A group of parameters as torch's optimizers take it. lr_scale: times the learning rate."""

    params: list[nn.Parameter]
    names: list[str]
    weight_decay: float
    lr_scale: float


def param_groups(
    *,
    model: nn.Module,
    weight_decay: float,
    layer_decay: float | None = None,
    layer_decay_style: str = "timm",
) -> list[ParamGroup]:
    """Groups of the parameters that require a gradient.

    No decay on vectors, biases and `model.no_weight_decay()`. `lr_scale` is layer_decay ** (layers
    above), 1 at the head. `model` is the bare network: a wrapper's prefix hides its layers. Blocks
    are layers to "timm", about three times as many as to "convnext12", so a value of `layer_decay`
    does not carry over.
    """
    per_layer = 1.0 if layer_decay is None else layer_decay
    layers = {} if per_layer == 1 else _layers(model, layer_decay_style)
    top = max(layers.values(), default=0)
    undecayed: Iterable[str] = getattr(model, "no_weight_decay", set)()
    groups: dict[tuple[int, float], ParamGroup] = {}
    for name, param in model.named_parameters():
        if not param.requires_grad:
            continue
        layer = layers.get(name, top)
        spared = (
            param.ndim <= 1 or name.endswith(".bias") or any(fnmatch(name, u) for u in undecayed)
        )
        decay = 0.0 if spared else weight_decay
        scale = per_layer ** (top - layer)
        empty = ParamGroup(params=[], names=[], weight_decay=decay, lr_scale=scale)
        group = groups.setdefault((layer, decay), empty)
        group["params"].append(param)
        group["names"].append(name)
    return list(groups.values())


def create_optimizer(
    *,
    name: str,
    groups: list[ParamGroup],
    lr: float,
    momentum: float = MOMENTUM,
    kwargs: Mapping[str, Any] | None = None,
) -> torch.optim.Optimizer:
    """timm's optimizer `name` (or `lookahead_<name>`) over `groups` of `param_groups`.

    timm takes groups as they are, weight decay included; each starts at `lr` times its `lr_scale`.
    kwargs: of the optimizer's own, such as betas and eps.

    Raises: UnknownName for a name that timm does not know; OptionError for an optimizer that it
    cannot build here, or kwargs that it does not take; UnusedOption for a momentum that it ignores.
    """
    from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers

    # The others (adahessian) differentiate the gradient again, which the training loop does not.
    known = [n for n in list_optimizers() if not get_optimizer_info(n).second_order]
    if name.lower().removeprefix("lookahead_") not in known:
        message = f"timm has no first-order optimizer {name!r}{near(name, known)}"
        raise UnknownName(message, option="opt", value=name, suggestion="adamw", known=known)
    info, given = get_optimizer_info(name.lower().removeprefix("lookahead_")), dict(kwargs or {})
    if momentum != MOMENTUM and not info.has_momentum:
        message = f"momentum has no effect on the optimizer {name!r}"
        raise UnusedOption(message, option="momentum", value=momentum)
    own = {"betas": info.has_betas, "eps": info.has_eps}  # timm drops them from others
    options = set(inspect.signature(create_optimizer_v2).parameters) - {"kwargs", "foreach"}
    for key in given:
        if key in options or not own.get(key, True):
            message = f"{key} is not among the kwargs of the optimizer {name!r}"
            raise OptionError(message, option="opt_kwargs", value=key)
    if _is_on_gpu(groups) and name.lower() in FUSED:
        given.setdefault("fused", True)
    try:
        optimizer = create_optimizer_v2(groups, opt=name, lr=lr, momentum=momentum, **given)
    except (AssertionError, ImportError, TypeError, ValueError) as error:
        message = f"timm cannot build the optimizer {name!r}: {error}"
        if kwargs:
            raise OptionError(message, option="opt_kwargs", value=dict(kwargs)) from error
        raise OptionError(message, option="opt", value=name, suggestion="adamw") from error
    set_lr(optimizer, lr)
    return optimizer


def _is_on_gpu(groups: list[ParamGroup]) -> bool:
    return any(param.is_cuda for group in groups for param in group["params"])


def skip_unless(finite: Tensor, optimizer: torch.optim.Optimizer) -> bool:
    """Have the next step leave the weights alone unless `finite`; False: this optimizer cannot.

    The fused ones can, on the GPU, as a GradScaler has them do: the host need not wait to know.
    """
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        return False
    optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
    return True


def restore(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Load a state that was saved on any device, in any memory format.

    torch would take over the kernels of the device it was saved on, and keep the strides.
    """
    kernels = {k: v for k, v in optimizer.param_groups[0].items() if k == "fused"}
    groups = [group | kernels for group in saved["param_groups"]]
    optimizer.load_state_dict(dict(saved) | {"param_groups": groups})
    inner = getattr(optimizer, "_base_optimizer", optimizer)  # of timm's Lookahead
    for param, state in inner.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.ndim and value.shape == param.shape:
                state[name] = torch.empty_like(param, dtype=value.dtype).copy_(value)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group `lr` times its `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def clip_grad(parameters: Iterable[Tensor], value: float | None, mode: str = "norm") -> Tensor:
    """The norm of all gradients before clipping them to `value`; None and 0 clip nothing.

    It is a scalar on the gradients' device, which need not be waited for.
    `norm` scales them together so that their norm is at most `value`, `value` clamps each element
    to [-value, value].
    """
    if mode not in CLIP_MODES:
        message = f"unknown clip mode {mode!r}"
        raise UnknownName(message, option="clip_mode", value=mode, known=CLIP_MODES)
    params = [param for param in parameters if param.grad is not None]
    norm = nn.utils.get_total_norm([param.grad for param in params if param.grad is not None])
    if value and mode == "norm":
        nn.utils.clip_grads_with_norm_(params, value, norm)
    elif value:
        nn.utils.clip_grad_value_(params, value)
    return norm
