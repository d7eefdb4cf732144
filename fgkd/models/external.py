"""Classifiers that are not timm's: torchvision's, transformers', any module or function."""

from __future__ import annotations

import contextlib
import math
import numbers
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from fgkd.download import from_hub, http_status
from fgkd.errors import HubError, MissingModel, ModelError, OptionError, near
from fgkd.models.classifier import Classifier
from fgkd.packages import require

TORCHVISION, TRANSFORMERS = "torchvision:", "transformers:"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESAMPLING = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    4: "box",
    5: "hamming",
}  # by Pillow's numbers
CROP_MODES = ("center", "squash", "border")  # timm's
UNNAMED = re.compile(r"LABEL_\d+")  # what transformers calls a class without a name
SQUASHED_FROM = 384  # pixels: ConvNeXt's processor resizes to a square, without a crop


class _Wrapped(nn.Module):
    """Any classifier, with the facts that timm keeps in `pretrained_cfg`."""

    def __init__(self, model: Callable[[Tensor], Any], config: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.pretrained_cfg = model, config

    def forward(self, x: Tensor) -> Tensor:
        out = self.model(x)
        out = getattr(out, "logits", out)  # Hugging Face models return an object
        want = (x.shape[0], self.pretrained_cfg["num_classes"])  # len(x) is a constant to export
        if not isinstance(out, Tensor) or out.shape != want:
            found = list(out.shape) if isinstance(out, Tensor) else f"a {type(out).__name__}"
            name = self.pretrained_cfg["architecture"]
            raise ModelError(f"{name} returned {found}, not logits {list(want)}", model=name)
        return out


def as_classifier(
    model: Callable[[Tensor], Any],
    *,
    name: str,
    classes: Sequence[str],
    input_size: int | tuple[int, int, int] = 224,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    crop_pct: float = 1.0,
    crop_mode: str = "center",
    interpolation: str = "bicubic",
) -> Classifier:
    """Any classifier as a `Classifier`: an `nn.Module`, or a function of a batch of images.

    model: from float32 images [B, 3, H, W], normalised by mean and std, to logits [B, C] (or to an
    object with `.logits`). name: recorded in caches. classes: names by index of the logits.
    input_size: the side in pixels, or (3, H, W). crop_pct, crop_mode, interpolation: of the
    evaluation view, as in timm. The weights of a function are not known: its name stands for them
    in a cache. A module is used as it is, and is afterwards in the mode and on the device that it
    was: it may be in the middle of its training.

    Raises: OptionError for an argument by which no image can be prepared. Called with images, the
    result raises ModelError where the model returns anything but logits [B, C].
    """
    given: Any = input_size
    size = (3, given, given) if np.ndim(given) == 0 else tuple(given)
    side, ways = size[-1], tuple(RESAMPLING.values())
    for option, value, fits, wanted in (
        ("model", model, callable(model), "a module or a function"),
        ("name", name, bool(name), "a name"),
        ("classes", classes, len(classes) and not isinstance(classes, str), "names of classes"),
        (
            "input_size",
            input_size,
            _is_side(side) and size == (3, side, side),
            "a side, or (3, side, side)",
        ),
        ("mean", mean, _are_three(mean, 0.0, 1.0), "3 numbers in 0 to 1, as pixels are"),
        ("std", std, _are_three(std, 1e-6, math.inf), "3 numbers above 0, of pixels in 0 to 1"),
        ("crop_pct", crop_pct, 0 < crop_pct <= 1, "above 0 and at most 1"),
        ("crop_mode", crop_mode, crop_mode in CROP_MODES, f"one of {CROP_MODES}"),
        ("interpolation", interpolation, interpolation in ways, f"one of {ways}"),
    ):
        if not fits:
            message = f"as_classifier(): {option} is {value!r}, not {wanted}"
            raise OptionError(message, option=option, value=value)
    config: dict[str, Any] = {
        "architecture": name,
        "num_classes": len(classes),
        "label_names": list(classes),
        "input_size": (3, int(side), int(side)),
        "mean": tuple(map(float, mean)),
        "std": tuple(map(float, std)),
        "crop_pct": crop_pct,
        "crop_mode": crop_mode,
        "interpolation": interpolation,
        "weights_sha256": None if isinstance(model, nn.Module) else f"function {name}",
    }
    return Classifier(_Wrapped(model, config), uses_dist=False)


def _is_side(side: object) -> bool:
    return isinstance(side, numbers.Integral) and int(side) > 0


def _are_three(values: Sequence[float], low: float, high: float) -> bool:
    return np.shape(values) == (3,) and all(low <= float(value) <= high for value in values)


def from_torchvision(source: str) -> Classifier:
    """`torchvision:NAME` with its default weights. Raises: ModelError, HubError."""
    from torchvision import models as zoo

    name = source.removeprefix(TORCHVISION)
    if name not in (known := zoo.list_models(zoo)):
        message = f"torchvision has no classifier {name!r}{near(name, known)}"
        raise ModelError(message, model=source)
    try:
        given = zoo.get_model_weights(name).DEFAULT
        net = from_hub(lambda: zoo.get_model(name, weights=given))
    except Exception as error:  # of the download, by torch's hub
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        status = http_status(error)
        raise HubError(f"cannot load {source}: {reason}", model=source, status=status) from error
    transform: Any = given.transforms()
    side, resized = transform.crop_size[0], transform.resize_size[0]
    return as_classifier(
        net.eval(),
        name=name,
        classes=given.meta["categories"],
        input_size=side,
        mean=transform.mean,
        std=transform.std,
        crop_pct=side / resized,
        interpolation=transform.interpolation.value,
    ).eval()


def from_transformers(source: str) -> Classifier:
    """`transformers:ORG/NAME` of the hub, or `transformers:FOLDER` as `save_pretrained` writes it.

    Classes are the config's `id2label`; size, resampling, crop, mean and std are the image
    processor's. Raises: MissingPackage; MissingModel; HubError when it cannot be fetched or loaded;
    ModelError without a trained head, or if the processor does more than resize, crop, normalise.
    """
    require("a model of transformers", "transformers")
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    name = os.path.expanduser(source.removeprefix(TRANSFORMERS))
    if name.startswith(("/", ".")) and not os.path.isdir(name):
        raise MissingModel(f"no model at {name}", path=name)
    auto: Any = AutoModelForImageClassification
    try:
        with _quiet():
            net, info = from_hub(lambda: auto.from_pretrained(name, output_loading_info=True))
            processor = from_hub(lambda: AutoImageProcessor.from_pretrained(name))
    except Exception as error:  # it has many, and those of the hub's client
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        status = http_status(error)
        raise HubError(f"cannot load {source}: {reason}", model=source, status=status) from error
    if missing := sorted(info["missing_keys"]):
        message = f"{source} is no trained classifier: {missing[0]} is not among its weights"
        raise ModelError(message, model=source)
    names = [str(net.config.id2label[i]) for i in range(net.config.num_labels)]
    try:
        found = _as_timm(net.float().eval(), net.config.model_type, names, processor)
    except (KeyError, TypeError, ValueError, OptionError) as error:
        message = f"the image processor of {source} is of an unknown kind: {error!r}"
        raise ModelError(message, model=source) from None
    if all(map(UNNAMED.fullmatch, names)):
        found.config["label_names"] = []
    _check_pixels(found, processor, source)
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of transformers."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _as_timm(net: nn.Module, kind: str, names: list[str], processor: Any) -> Classifier:
    """The model, with its processor's steps as timm's evaluation transform."""
    given = processor.to_dict()
    resized, cropped = given.get("size") or {}, given.get("crop_size") or {}
    shortest = resized.get("shortest_edge")
    size, mode = (shortest, "center") if shortest else (resized["height"], "squash")
    if given.get("do_center_crop"):
        crop, pct = cropped["height"], cropped["height"] / size
    elif shortest and given.get("crop_pct"):  # ConvNeXt's: the size is that of the crop
        is_cropped = size < SQUASHED_FROM
        mode = "center" if is_cropped else "squash"
        crop, pct = size, given["crop_pct"] if is_cropped else 1.0
    else:
        crop, pct = size, 1.0
    scale = 255 * given.get("rescale_factor", 1 / 255) if given.get("do_rescale", True) else 255
    normalises = given.get("do_normalize", bool(given.get("image_mean")))
    mean = given["image_mean"] if normalises else (0.0, 0.0, 0.0)
    std = given["image_std"] if normalises else (1.0, 1.0, 1.0)
    return as_classifier(
        net,
        name=kind,
        classes=names,
        input_size=crop,
        mean=[m / scale for m in mean],
        std=[s / scale for s in std],
        crop_pct=pct,
        crop_mode=mode,
        interpolation=RESAMPLING[int(given.get("resample", 2))],
    ).eval()


def _check_pixels(model: Classifier, processor: Any, source: str) -> None:
    """Compare with the processor on an image that needs no resampling. Raises: ModelError."""
    from PIL import Image
    from timm.data.transforms_factory import transforms_imagenet_eval

    transform = model.eval_transform
    side = int(transform.size / transform.crop_pct)
    image = Image.fromarray(np.arange(side * side * 3).reshape(side, side, 3).astype(np.uint8))
    ours = transforms_imagenet_eval(
        transform.size,
        crop_pct=transform.crop_pct,
        crop_mode=transform.crop_mode,
        interpolation=transform.interpolation,
        mean=model.config["mean"],
        std=model.config["std"],
    )(image)
    theirs = processor(images=image, return_tensors="pt")["pixel_values"][0]
    if ours.shape != theirs.shape or not np.allclose(ours, theirs, atol=1e-3):
        message = f"the image processor of {source} does more than resize, crop and normalise"
        raise ModelError(message, model=source)
