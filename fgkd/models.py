"""timm models behind one output type: a class head, and a distillation head or none.

Shape legend: B batch, H, W pixels, K classes, L drop-path layers.
"""

from __future__ import annotations

import ast
import contextlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from . import fsio, rng, trunk, weights
from .errors import FgkdError, near, quoted


class Logits(NamedTuple):
    """What a model says of a batch: the class head's logits, the distillation head's or None."""

    head_BK: Tensor
    dist_BK: Tensor | None = None

    @property
    def answer_BK(self) -> Tensor:
        """The logits to evaluate: the average of the trained heads."""
        return self.head_BK if self.dist_BK is None else (self.head_BK + self.dist_BK) / 2


class KeyedDropPath(nn.Module):
    """Stochastic depth (Huang et al., ECCV 2016) whose draws are set from outside, one a sample."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.uniform_B: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.uniform_B is None:
            return x
        keep_B = (self.uniform_B >= self.drop_prob).to(x.dtype) / (1.0 - self.drop_prob)
        keep_B = keep_B.repeat_interleave(len(x) // len(keep_B))  # TNT: rows are parts of images
        return x * keep_B.view(-1, *[1] * (x.ndim - 1))


class Classifier(nn.Module):
    """A timm classifier that takes uint8 images and answers `Logits`.

    uses_dist: train and evaluate the distillation head of a distilled DeiT; False leaves it out.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, uses_dist: bool) -> None:
        super().__init__()
        self.net = net
        self.has_dist = hasattr(net, "dist_token") and hasattr(net, "head_dist")
        self.uses_dist = uses_dist and self.has_dist
        if self.has_dist:
            net.head_dist.requires_grad_(self.uses_dist)
        for name in ("mean", "std"):
            value = torch.tensor(self.config[name]).view(1, 3, 1, 1)
            self.register_buffer(name, value, persistent=False)
        self.drop_paths = _key_drop_paths(net)
        self.is_frozen = self.recomputes = False

    @property
    def config(self) -> dict[str, Any]:
        """timm's pretrained_cfg: input_size, crop_pct, interpolation, mean, std, label_names."""
        config: dict[str, Any] = self.net.pretrained_cfg  # type: ignore[assignment]
        return config

    def forward(self, image_u8_BHW3: Tensor) -> Logits:
        x = image_u8_BHW3.permute(0, 3, 1, 2)  # channels-last memory, without a copy
        x = x.to(self.mean.dtype, copy=True).div_(255).sub_(self.mean).div_(self.std)
        if not self.has_dist:
            return Logits(self.net(x))
        net: Any = self.net
        tokens = net.head_drop(net.forward_features(x)[:, :2])
        dist = net.head_dist(tokens[:, 1]) if self.uses_dist else None
        return Logits(net.head(tokens[:, 0]), dist)

    def freeze(self) -> None:
        """Train the heads alone; see `trunk`."""
        self.is_frozen = True
        trunk.freeze(self.net)

    def train(self, mode: bool = True) -> Classifier:
        """As torch's, but a frozen trunk stays in evaluation."""
        super().train(mode)
        if mode and self.is_frozen:
            trunk.hold_still(self.net)
        return self

    def recompute_activations(self, name: str) -> None:
        """Keep few activations for the backward pass and compute the rest again: less memory."""
        trunk.recompute(self.net, name)
        self.recomputes = True

    def statistics_kept(self) -> contextlib.AbstractContextManager[None]:
        """Around a backward pass, which must not move what the forward pass has moved."""
        return trunk.statistics_kept(self.net) if self.recomputes else contextlib.nullcontext()

    def set_drop_path_draws(self, seed: int, step: int, row_ids: np.ndarray) -> None:
        """Key this step's stochastic depth by (seed, step, sample), whatever the batch."""
        if self.drop_paths:
            draws = rng.row_uniforms(row_ids, len(self.drop_paths), "drop_path", seed, step)
            draws_BL = torch.from_numpy(draws).to(self.mean.device, torch.float32)
            for module, uniform_B in zip(self.drop_paths, draws_BL.unbind(1), strict=True):
                module.uniform_B = uniform_B


def _key_drop_paths(net: nn.Module) -> list[KeyedDropPath]:
    from timm.layers import DropPath

    found = []
    for parent in net.modules():
        for name, child in parent.named_children():
            if isinstance(child, DropPath) and child.drop_prob:
                setattr(parent, name, KeyedDropPath(float(child.drop_prob)))
                found.append(getattr(parent, name))
    return found


def parse_kwargs(texts: tuple[str, ...]) -> dict[str, Any]:
    """`("patch_size=2,depths=[1,1,2,1]",) -> {...}`: Python literals; a bare word is a string.

    Raises: FgkdError naming the text that is not K=V,K=V.
    """
    out: dict[str, Any] = {}
    for text in texts:
        try:
            call = ast.parse(f"f({text})", mode="eval").body
            if not isinstance(call, ast.Call) or call.args:
                raise ValueError
            for word in call.keywords:
                if word.arg is None:  # **x
                    raise ValueError
                value = word.value
                out[word.arg] = value.id if isinstance(value, ast.Name) else ast.literal_eval(value)
        except (SyntaxError, ValueError):
            raise FgkdError(
                f"--model-kwargs {text!r} is not K=V,K=V with Python literals",
                "--model-kwargs 'patch_size=2,depths=[1,1,2,1]'",
            ) from None
    return out


def create(
    name: str,
    *,
    class_names: list[str],
    kwargs: dict[str, Any] | None = None,
    img_size: int | None = None,
    crop_pct: float | None = None,
    pretrained: bool = False,
    initial_checkpoint: str | None = None,
    drop: float = 0.0,
    drop_path: float = 0.0,
    head_init_scale: float = 1.0,
    uses_dist: bool = True,
) -> tuple[Classifier, list[str]]:
    """Build a timm model for these classes; also lines to say aloud (what was initialised how).

    The input size, crop and class names are recorded in the model's config, so that its export
    carries them. Raises: FgkdError for an unknown model, kwargs it does not take, weights that do
    not fit, or a hub that cannot be reached.
    """
    import timm

    if not timm.is_model(name):
        raise FgkdError(
            f"timm {timm.__version__} has no model {name!r}{near(name, timm.list_models())}",
            f"python -c \"import timm; print(*timm.list_models('*{name.split('_')[0]}*'))\"",
        )
    known = timm.get_pretrained_cfg(name)
    size_kwargs = {"img_size": img_size} if img_size and known and known.fixed_input_size else {}
    all_kwargs: dict[str, Any] = {"drop_rate": drop, "drop_path_rate": drop_path, **size_kwargs}
    all_kwargs |= {"num_classes": len(class_names), **(kwargs or {})}
    try:
        try:
            net = timm.create_model(name, pretrained=pretrained, **all_kwargs)
        except TypeError as error:  # VGG and others have no stochastic depth to switch off
            if drop_path or "'drop_path_rate'" not in str(error):
                raise
            del all_kwargs["drop_path_rate"]
            net = timm.create_model(name, pretrained=pretrained, **all_kwargs)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        if pretrained and not isinstance(error, TypeError):
            raise _no_hub(name, error) from error
        raise FgkdError(
            f"timm cannot build {name} with {kwargs or 'its own arguments'}: {error}",
            "--model-kwargs K=V,K=V with the arguments that this model takes",
        ) from None
    except Exception as error:
        raise _no_hub(name, error) from error
    said = [f"weights: timm pretrained, new {len(class_names)}-class head"] if pretrained else []
    if initial_checkpoint:
        said += weights.load_initial(net, initial_checkpoint)
    if head_init_scale != 1.0:
        for layer in _head_layers(net):
            for parameter in layer.parameters():
                parameter.data.mul_(head_init_scale)
    if img_size:
        _try_size(net, name, img_size)
    side = img_size or net.pretrained_cfg["input_size"][-1]
    net.pretrained_cfg = dict(net.pretrained_cfg, input_size=(3, side, side))
    net.pretrained_cfg["crop_pct"] = crop_pct or net.pretrained_cfg["crop_pct"]
    net.pretrained_cfg["label_names"] = class_names
    return Classifier(net, uses_dist), said or ["weights: random initialisation"]


def _head_layers(net: Any) -> list[nn.Module]:
    """The linear (or 1 x 1 convolution) layers of the heads; LeViT wraps them in a norm."""
    return [
        layer
        for head in trunk.heads(net)
        for layer in head.modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]


def _try_size(net: nn.Module, name: str, side: int) -> None:
    """Refuse an image size that the model's layers cannot take, before any work is done."""
    try:
        with torch.no_grad():
            net.eval()(torch.zeros(1, 3, side, side))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise FgkdError(
            f"{name} cannot take images of {side} px: {error}",
            "leave --img-size out, or give a multiple of the model's patch size",
        ) from None
    net.train()


def _no_hub(name: str, error: Exception) -> FgkdError:
    return FgkdError(
        f"cannot get pretrained weights of {name} from the hub ({type(error).__name__}: "
        f"{str(error).splitlines()[0] if str(error) else 'no reason given'})",
        "fetch model.safetensors where there is a network, then --initial-checkpoint FILE "
        "instead of --pretrained",
    )


def export(model: Classifier, folder: Path) -> None:
    """Write timm's local-dir form: config.json and model.safetensors.

    `timm.create_model(f"local-dir:{folder}", pretrained=True)` then gives the same logits: timm
    averages both heads, so an unused distillation head is written as zeros and the head doubled.
    """
    import safetensors.torch
    from timm.models._hub import save_config_for_hf

    net: Any = model.net
    config = dict(net.pretrained_cfg)
    state = {k: v.detach().cpu().contiguous() for k, v in net.state_dict().items()}
    if model.has_dist and not model.uses_dist:
        for name in ("weight", "bias"):
            state[f"head.{name}"] = state[f"head.{name}"] * 2
            state[f"head_dist.{name}"] = torch.zeros_like(state[f"head_dist.{name}"])
    fsio.write_bytes(folder / "model.safetensors", safetensors.torch.save(state))
    keys = ("input_size", "mean", "std", "interpolation", "crop_pct")
    with fsio.replacing(folder / "config.json") as partial:
        save_config_for_hf(
            net,
            str(partial),
            model_config={"label_names": config["label_names"]},
            data_config={key: config[key] for key in keys},
        )


def load(folder: Path) -> Classifier:
    """The model that `export` wrote, or any timm local-dir folder, in eval mode.

    Raises: FgkdError when the folder is missing, empty or damaged.
    """
    import timm

    weights.require_model(folder)
    try:
        net = timm.create_model(f"local-dir:{folder}", pretrained=True)
    except Exception as error:  # a KeyError says no more than the key
        reason = f"{type(error).__name__} {error}"
        raise FgkdError(
            f"model {folder} does not load: {reason}",
            f"ls -l {quoted(folder)}   # truncated? take another copy, or train it again",
        ) from None
    return Classifier(net, uses_dist=True).eval()
