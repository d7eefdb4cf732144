"""timm models behind one output type: a class head, and a distillation head or none.

Shape legend: B batch, H, W pixels, K classes, L drop-path layers.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fgkd import rng
from fgkd.models import backbone


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
        backbone.freeze(self.net)

    def train(self, mode: bool = True) -> Classifier:
        """As torch's, but a frozen trunk stays in evaluation."""
        super().train(mode)
        if mode and self.is_frozen:
            backbone.hold_still(self.net)
        return self

    def recompute_activations(self, name: str) -> None:
        """Keep few activations for the backward pass and compute the rest again: less memory."""
        backbone.recompute(self.net, name)
        self.recomputes = True

    def statistics_kept(self) -> contextlib.AbstractContextManager[None]:
        """Around a backward pass, which must not move what the forward pass has moved."""
        return backbone.statistics_kept(self.net) if self.recomputes else contextlib.nullcontext()

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
