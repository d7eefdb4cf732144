"""Image classifiers behind one output type: a class head, and a distillation head or none.

Shape legend: B batch, H, W pixels, K classes, L drop-path layers.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fgkd import files, rng
from fgkd.device import to_device
from fgkd.errors import ModelError
from fgkd.models import backbone
from fgkd.views.clean import EvalTransform


class Logits(NamedTuple):
    """A model's output: logits of the class head, and of the distillation head or None.

    A model of which the distillation head alone is trained has its logits in `head_BK`.
    """

    head_BK: Tensor
    dist_BK: Tensor | None = None

    @property
    def answer_BK(self) -> Tensor:
        """The logits to evaluate: the average of the trained heads."""
        return self.head_BK if self.dist_BK is None else (self.head_BK + self.dist_BK) / 2


class KeyedDropPath(nn.Module):
    """Stochastic depth (Huang et al., ECCV 2016) with given draws, one per sample.

    scale_B: 0 for the samples that are dropped, 1 / (1 - drop_prob) for the others.
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.scale_B: Tensor | None = None

    def scales(self, uniform_B: np.ndarray) -> np.ndarray:
        """float32 `scale_B` of draws in [0, 1)."""
        kept_B = uniform_B.astype(np.float32) >= np.float32(self.drop_prob)
        return kept_B.astype(np.float32) / np.float32(1.0 - self.drop_prob)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.scale_B is None:
            return x
        scale_B = self.scale_B.to(x.dtype)
        scale_B = scale_B.repeat_interleave(len(x) // len(scale_B))  # TNT: rows are parts of images
        return x * scale_B.view(-1, *[1] * (x.ndim - 1))


class Classifier(nn.Module):
    """An image classifier: uint8 images to logits, with its normalisation, classes and input size.

    net: a timm model, or any module with a timm-like `pretrained_cfg` that takes normalised float
    images [B, 3, H, W] (see `as_classifier`). uses_dist, uses_head: train and evaluate the
    distillation head and the class head of a distilled DeiT; a head that no loss trains is left out
    of the average. mean, std: float [1, 3, 1, 1], of pixels in 0 to 1.
    weights_path: the file that the weights were loaded from, if there is one.
    """

    mean: Tensor
    std: Tensor
    weights_path: Path | None = None
    _sha256_as_loaded = ""

    def __init__(self, net: nn.Module, uses_dist: bool, uses_head: bool = True) -> None:
        super().__init__()
        self.net = net
        channels, height, width = self.config["input_size"]
        if (channels, height) != (3, width):
            message = f"{self.architecture} takes {channels} x {height} x {width} pixels, and not "
            raise ModelError(message + "a square in RGB", model=self.architecture)
        self.has_dist = hasattr(net, "dist_token") and hasattr(net, "head_dist")
        self.uses_dist = uses_dist and self.has_dist
        self.uses_head = uses_head or not self.uses_dist
        if self.has_dist:
            net.head_dist.requires_grad_(self.uses_dist)
            net.head.requires_grad_(self.uses_head)
        for name in ("mean", "std"):
            value = torch.tensor(self.config[name], dtype=torch.float32).view(1, 3, 1, 1)
            self.register_buffer(name, value, persistent=False)
        self.drop_paths = _key_drop_paths(net)
        self.is_frozen = self.recomputes = False

    @property
    def config(self) -> dict[str, Any]:
        """timm's pretrained_cfg: input_size, crop_pct, interpolation, mean, std, label_names."""
        config: dict[str, Any] = self.net.pretrained_cfg  # type: ignore[assignment]
        return config

    @property
    def architecture(self) -> str:
        """timm's name of the architecture, or the name that was given."""
        return str(self.config["architecture"])

    @property
    def classes(self) -> list[str]:
        """Class names, by index of the logits; [] if the weights came without names."""
        names = self.config.get("label_names") or []
        if isinstance(names, dict):  # timm's other form: index -> name
            names = [names[key] for key in sorted(names, key=int)]
        return [str(name) for name in names]

    @property
    def num_classes(self) -> int:
        """The number of logits."""
        return int(getattr(self.net, "num_classes", 0) or self.config["num_classes"])

    @property
    def eval_transform(self) -> EvalTransform:
        """How timm prepares an image for its evaluation."""
        return EvalTransform.of(self.config)

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(3, height, width) of the images that it takes."""
        channels, height, width = self.config["input_size"]
        return channels, height, width

    @functools.cached_property
    def weights_sha256(self) -> str:
        """Hex SHA-256 of the weights: of their file, or of all parameters and buffers by name."""
        if self.weights_path is not None:
            return files.sha256(self.weights_path)
        return str(self.config.get("weights_sha256") or state_sha256(self.net.state_dict()))

    def remembered(self) -> Classifier:
        """Itself; `rehash` will know whether the weights are still those of the file."""
        if self.weights_path:
            self._sha256_as_loaded = state_sha256(self.net.state_dict())
        return self

    def rehash(self) -> None:
        """Make `weights_sha256` that of the weights as they are now: they may have been trained."""
        self.__dict__.pop("weights_sha256", None)
        if self.weights_path and self._sha256_as_loaded != state_sha256(self.net.state_dict()):
            self.weights_path = None

    @torch.no_grad()
    def logits(self, images: Tensor | np.ndarray) -> Tensor:
        """float32 [B, C] logits of uint8 images [B, 3, H, W] or [B, H, W, 3], in eval mode.

        The images are neither resized nor cropped. The result is on the model's device. Raises:
        ModelError for images of another type or shape.
        """
        batch = torch.as_tensor(images)
        shape = list(batch.shape)
        if batch.dtype != torch.uint8 or len(shape) != 4 or 3 not in (shape[1], shape[3]):
            message = f"images are {batch.dtype} of shape {shape}, not uint8 [B, 3, H, W]"
            raise ModelError(message, model=self.architecture)
        if batch.shape[1] == 3:
            batch = batch.permute(0, 2, 3, 1)
        with in_eval_mode(self):
            return self(batch.to(self.mean.device)).answer_BK.float()

    def forward(self, image_u8_BHW3: Tensor) -> Logits:
        x = image_u8_BHW3.permute(0, 3, 1, 2)  # channels-last memory, without a copy
        x = x.to(self.mean.dtype, copy=True).div_(255).sub_(self.mean).div_(self.std)
        if not self.has_dist:
            return Logits(self.net(x))
        net: Any = self.net
        tokens = net.head_drop(net.forward_features(x)[:, :2])
        if not self.uses_head:
            return Logits(net.head_dist(tokens[:, 1]))
        dist = net.head_dist(tokens[:, 1]) if self.uses_dist else None
        return Logits(net.head(tokens[:, 0]), dist)

    def freeze(self) -> None:
        """Train the heads alone; see `backbone`."""
        self.is_frozen = True
        backbone.freeze(self.net)

    def train(self, mode: bool = True) -> Classifier:
        """As torch's, but a frozen backbone stays in eval mode."""
        super().train(mode)
        if mode and self.is_frozen:
            backbone.hold_still(self.net)
        return self

    def recompute_activations(self, name: str) -> None:
        """Gradient checkpointing: recompute activations in the backward pass, to save memory."""
        backbone.recompute(self.net, name)
        self.recomputes = True

    def statistics_kept(self) -> contextlib.AbstractContextManager[None]:
        """A context for backward passes, in which batch-norm statistics are not updated again."""
        return backbone.statistics_kept(self.net) if self.recomputes else contextlib.nullcontext()

    def set_drop_path_draws(self, seed: int, step: int, row_ids: np.ndarray) -> None:
        """Key this step's stochastic depth by (seed, step, sample), whatever the batch."""
        if self.drop_paths:
            draws_BL = rng.row_uniforms(row_ids, len(self.drop_paths), "drop_path", seed, step)
            pairs = zip(self.drop_paths, draws_BL.T, strict=True)
            scales_LB = np.stack([module.scales(uniform_B) for module, uniform_B in pairs])
            on_device = to_device(torch.from_numpy(scales_LB), self.mean.device)
            for module, scale_B in zip(self.drop_paths, on_device, strict=True):
                module.scale_B = scale_B


@contextlib.contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards each module is in the mode that it was in."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode


@contextlib.contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, on any device and in any number type; afterwards all is as it was.

    The very tensors: an optimizer or a captured graph that holds them notices nothing.
    """
    parameters = [(parameter, parameter.data) for parameter in model.parameters()]
    buffers = [(m, name, value) for m in model.modules() for name, value in m._buffers.items()]
    with in_eval_mode(model):
        try:
            yield
        finally:
            for parameter, data in parameters:
                parameter.data = data
            for module, name, value in buffers:
                module._buffers[name] = value


def state_sha256(state: dict[str, Tensor]) -> str:
    """Hex SHA-256 of named tensors: their names, types, shapes and bytes, in order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _key_drop_paths(net: nn.Module) -> list[KeyedDropPath]:
    from timm.layers import DropPath

    found = []
    for parent in net.modules():
        for name, child in parent.named_children():
            if isinstance(child, DropPath) and child.drop_prob:
                setattr(parent, name, KeyedDropPath(float(child.drop_prob)))
                found.append(getattr(parent, name))
    return found
