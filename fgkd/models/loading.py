"""Loading trained classifiers from wherever they are: runs, timm folders, the hub, other code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fgkd import files
from fgkd.download import from_hub, http_status
from fgkd.errors import (
    HubError,
    MissingModel,
    MissingOption,
    ModelError,
    OptionError,
    OtherLibrary,
    UnknownName,
    WeightsError,
    WrongKind,
    near,
)
from fgkd.models import external, weights
from fgkd.models.classifier import Classifier
from fgkd.models.external import TORCHVISION, TRANSFORMERS
from fgkd.models.local_dir import load

HUBS = ("hf-hub:", "timm:")
LOCAL_DIR = "local-dir:"
CHECKPOINTS = (".safetensors", ".pth", ".pt", ".tar", ".bin", ".ckpt")  # files of weights alone


def load_classifier(
    source: files.PathLike, *, model: str = "", model_kwargs: Mapping[str, Any] | None = None
) -> Classifier:
    """A trained classifier, in eval mode on the CPU.

    source: a run folder of `train_teacher` or `train_student`; a folder in timm's local-dir form
    (`save_for_hf`: config.json with model.safetensors or pytorch_model.bin), also as
    `local-dir:PATH`; `hf-hub:ORG/NAME` of timm's models; `transformers:ORG/NAME` (or a folder) of
    Hugging Face's transformers; `timm:NAME` or `torchvision:NAME` for pretrained weights by name;
    or a checkpoint file (see `weights.read_state`), of the timm architecture `model` with
    `model_kwargs` (`img_size`: the side of its input, by default the architecture's). Raises:
    MissingModel; MissingOption for a file without `model`; WrongKind for a cache; NotLocal for a
    URL; UnreadableFile, WeightsError, OtherLibrary; ModelError, also for a model in the place of a
    source; HubError when weights cannot be fetched.
    """
    return read_classifier(source, model, model_kwargs or {}).remembered()


def read_classifier(
    source: files.PathLike, model: str, model_kwargs: Mapping[str, Any]
) -> Classifier:
    """`load_classifier` for a command, whose model nobody else can change: not hashed."""
    text = located(source_text(source))
    if text.startswith(HUBS):
        return _from_hub(text)
    if text.startswith(TORCHVISION):
        return external.from_torchvision(text)
    if text.startswith(TRANSFORMERS):
        return external.from_transformers(text)
    if is_checkpoint(text):
        return _from_checkpoint(Path(text), model, dict(model_kwargs))
    return load(model_folder(text))


def source_text(source: object) -> str:
    """A source as text. Raises: ModelError for an object that is no path."""
    if isinstance(source, str | os.PathLike):
        return files.text_of(source)
    kind = type(source).__name__
    message = (
        f"{kind} is neither a path nor a Classifier; fgkd.as_classifier makes one of any model"
    )
    raise ModelError(message, model=kind)


def located(source: str | Path) -> str:
    """A source as text, the home folder in the place of `~`. Raises: NotLocal for a URL."""
    text = str(source)
    if is_remote(text):
        return text
    prefix = LOCAL_DIR if text.startswith(LOCAL_DIR) else ""
    return f"{prefix}{files.local_path(text.removeprefix(prefix))}"


def absolute(source: str | Path) -> str:
    """A source that can be read from any folder: the path of one that is here is made absolute."""
    prefix, path = _parts(source)
    return f"{prefix}{path.absolute()}" if path.exists() else str(source)


def is_here(source: str | Path) -> bool:
    """Whether a source is a file or a folder on this machine, and there."""
    return _parts(source)[1].exists()


def _parts(source: str | Path) -> tuple[str, Path]:
    """What a source says before its path, and the path."""
    text = str(source)
    prefix = next((p for p in (LOCAL_DIR, TRANSFORMERS) if text.startswith(p)), "")
    return prefix, Path(text.removeprefix(prefix)).expanduser()


def is_checkpoint(source: str) -> bool:
    """Whether a source is a file of weights, for which an architecture must be named."""
    path = Path(source)
    return path.suffix in CHECKPOINTS and not path.is_dir()


def is_remote(source: str) -> bool:
    """Whether a source names weights that a library fetches, and not a file or folder."""
    return source.startswith((*HUBS, TORCHVISION, TRANSFORMERS))


def _from_checkpoint(path: Path, name: str, kwargs: dict[str, Any]) -> Classifier:
    import timm

    if not name:
        message = f"{path} holds weights alone: of which timm model?"
        raise MissingOption(message, option="teacher_model", suggestion="convnext_base")
    if not timm.is_model(name):
        known = timm.list_models()
        message = f"timm {timm.__version__} has no model {name!r}{near(name, known)}"
        raise UnknownName(message, option="teacher_model", value=name, known=known)
    if (channels := kwargs.get("in_chans", 3)) != 3:
        message = f"teacher_model_kwargs has in_chans={channels}, but views are in RGB"
        raise OptionError(message, option="teacher_model_kwargs", value=channels)
    size, config = kwargs.get("img_size"), timm.get_pretrained_cfg(name)
    if size and not (config and config.fixed_input_size):
        kwargs.pop("img_size")  # the model takes any size, and no such argument
    try:
        net = timm.create_model(name, pretrained=False, **kwargs)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        message = f"timm cannot build {name} with {kwargs or 'its own arguments'}: {error}"
        raise ModelError(message, model=name) from None
    state = weights.read_state(path, net)
    num = weights.num_classes(state, net)
    if num is not None and num != net.num_classes:
        net.reset_classifier(num)
    notes = weights.load_initial(net, str(path))
    if fresh := [note for note in notes if note.startswith("newly initialised")]:
        reason = fresh[0].replace("newly initialised", "it lacks")
        message = f"checkpoint {path} is not for {name}: {reason}"
        raise WeightsError(message, path=path, reason=reason, model=name)
    net.pretrained_cfg = dict(net.pretrained_cfg, num_classes=net.num_classes)
    if size:
        net.pretrained_cfg["input_size"] = (3, size, size)
    net.pretrained_cfg["label_names"] = _imagenet_names(net) if num == 1000 else []
    found = Classifier(net, uses_dist=True).eval()
    found.weights_path = path
    return found


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
        net = from_hub(lambda: timm.create_model(name, pretrained=True))
    except Exception as error:  # each hub client has its own; a KeyError says no more than the key
        if isinstance(error, KeyError) and error.args == ("architecture",):
            other = f"{TRANSFORMERS}{name.partition(':')[2]}"
            message = f"{source} is no model of timm: its config.json names no architecture"
            raise OtherLibrary(message, model=source, suggestion=other) from None
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        status = http_status(error)
        raise HubError(f"cannot load {source}: {reason}", model=source, status=status) from error
    if not net.pretrained_cfg.get("label_names"):
        net.pretrained_cfg["label_names"] = _imagenet_names(net)
    return Classifier(net, uses_dist=True).eval()


def _imagenet_names(net: Any) -> list[str]:
    """WordNet ids of a model of ImageNet or a subset that timm knows; [] for others."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(net)
    return list(ImageNetInfo(subset).label_names()) if subset else []
