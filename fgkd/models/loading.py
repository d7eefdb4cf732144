"""Loading trained classifiers from wherever they are: runs, timm folders, the hub, other code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fgkd.errors import HubError, MissingModel, ModelError, WrongKind
from fgkd.models.classifier import Classifier
from fgkd.models.local_dir import load

HUBS = ("hf-hub:", "timm:")
LOCAL_DIR = "local-dir:"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_classifier(source: str | Path) -> Classifier:
    """A trained classifier, in eval mode on the CPU.

    source: a run folder of `train_teacher` or `train_student`; a folder in timm's local-dir form
    (config.json, model.safetensors), also as `local-dir:PATH`; `hf-hub:ORG/NAME`; or `timm:NAME`
    for pretrained weights by name. Raises: MissingModel; WrongKind for a cache;
    UnreadableFile, ModelError; HubError when the weights cannot be fetched.
    """
    text = str(source)
    if text.startswith(HUBS):
        return _from_hub(text)
    return load(model_folder(text))


def model_folder(source: str | Path) -> Path:
    """The folder of config.json and model.safetensors of a run folder or a local-dir source."""
    path = Path(str(source).removeprefix(LOCAL_DIR))
    if (path / "config.json").is_file():
        return path
    if (path / "identity.json").is_file():
        raise WrongKind(f"{path} is a cache, not a model", path=path, found="cache")
    if not path.is_dir():
        raise MissingModel(f"no model at {path}", path=path)
    return path / "model"


def _from_hub(source: str) -> Classifier:
    import timm

    name = source.removeprefix("timm:")
    if source.startswith("timm:") and not timm.is_model(name):
        raise ModelError(f"timm {timm.__version__} has no model {name!r}", model=name)
    try:
        net = timm.create_model(name, pretrained=True)
    except Exception as error:  # each hub client has its own; a KeyError says no more than the key
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise HubError(f"cannot load {source}: {reason}", model=source) from error
    if not net.pretrained_cfg.get("label_names"):
        net.pretrained_cfg["label_names"] = _imagenet_names(net)
    return Classifier(net, uses_dist=True).eval()


def _imagenet_names(net: Any) -> list[str]:
    """WordNet ids of a model of ImageNet or a subset that timm knows; [] for others."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(net)
    return list(ImageNetInfo(subset).label_names()) if subset else []


class _Wrapped(nn.Module):
    """Any classifier, with the facts that timm keeps in `pretrained_cfg`."""

    def __init__(self, model: Callable[[Tensor], Any], config: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.pretrained_cfg = model, config

    def forward(self, x: Tensor) -> Tensor:
        out = self.model(x)
        return getattr(out, "logits", out)  # Hugging Face models return an object


def as_classifier(
    model: Callable[[Tensor], Any],
    *,
    name: str,
    classes: Sequence[str],
    input_size: int | tuple[int, int, int] = 224,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    crop_pct: float = 1.0,
    interpolation: str = "bicubic",
) -> Classifier:
    """Any classifier as a `Classifier`: an `nn.Module`, or a function of a batch of images.

    model: from float32 images [B, 3, H, W], normalised by mean and std, to logits [B, C] (or to an
    object with `.logits`). name: recorded in caches. classes: names by index of the logits.
    input_size: the side in pixels, or (3, H, W). crop_pct, interpolation: of the evaluation view,
    as in timm. The weights of a function are not known: its name stands for them in a cache.
    """
    size = (3, input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
    config: dict[str, Any] = {
        "architecture": name,
        "num_classes": len(classes),
        "label_names": list(classes),
        "input_size": size,
        "mean": tuple(map(float, mean)),
        "std": tuple(map(float, std)),
        "crop_pct": crop_pct,
        "interpolation": interpolation,
        "weights_sha256": None if isinstance(model, nn.Module) else f"function {name}",
    }
    return Classifier(_Wrapped(model, config), uses_dist=False).eval()
