"""Weights files: whether a trained model is there, and initial weights for a new network."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgkd import files
from fgkd.errors import (
    FgkdError,
    MissingFile,
    MissingModel,
    OtherLibrary,
    UnreadableFile,
    WeightsError,
)

if TYPE_CHECKING:
    from torch import Tensor

NESTED = ("state_dict_ema", "model_ema", "state_dict", "model")  # in the order of preference
WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".tar")  # of weights in a timm local-dir folder


def require_model(folder: Path) -> None:
    """Raise MissingModel unless a folder has a model's config and weights, which are not read.

    Raises OtherLibrary for a config of transformers.
    """
    if not (folder / "config.json").is_file():
        raise MissingModel(f"no trained model at {folder} (config.json is missing)", path=folder)
    if not any(path.suffix in SUFFIXES for path in folder.iterdir()):
        message = f"model {folder} does not load: no weights beside its config.json"
        raise MissingModel(message, path=folder)
    config = files.read_json(folder / "config.json", "model config")
    if isinstance(config, dict) and "model_type" in config and "architecture" not in config:
        message = f"{folder} holds a model of transformers ({config['model_type']}), not of timm"
        raise OtherLibrary(message, model=str(folder), suggestion=f"transformers:{folder}")


def read_state(path: Path, net: Any) -> dict[str, Tensor]:
    """The tensors of a weights file under the names that a network gives them.

    Takes .safetensors, and what torch.save wrote: a state dict, alone or under a key of `NESTED`,
    with any prefix of its names (DataParallel's `module.`, torch.compile's `_orig_mod.`,
    Lightning's `model.` or `net.`). Nothing but tensors and plain values is unpickled. Raises:
    MissingFile; UnreadableFile when it holds anything else, or is damaged.
    """
    import safetensors.torch
    import torch

    if not path.is_file():
        raise MissingFile(f"no checkpoint at {path}", path=path)
    try:
        state: Any
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of pickle, zip, safetensors and torch
        reason = "; ".join(line.strip() for line in str(error).splitlines()[:2])
        if isinstance(error, pickle.UnpicklingError):  # torch advises to unpickle code
            reason = "it is no checkpoint, or holds more than tensors and plain values"
        message = f"checkpoint {path} does not load: {reason}"
        raise UnreadableFile(message, path=path, reason=reason) from None
    nested = next((state[k] for k in NESTED if isinstance(state, dict) and _has(state, k)), state)
    if not _is_state(nested):
        reason = "it holds no state dict of tensors"
        message = f"checkpoint {path} does not load: {reason}"
        raise UnreadableFile(message, path=path, reason=reason)
    tensors = {k: v for k, v in nested.items() if isinstance(v, torch.Tensor)}
    return _without_prefix(tensors, set(net.state_dict()))


def _has(state: Any, key: str) -> bool:
    return key in state and _is_state(state[key])


def _is_state(value: Any) -> bool:
    import torch

    return isinstance(value, dict) and any(isinstance(v, torch.Tensor) for v in value.values())


def _without_prefix(tensors: dict[str, Tensor], own: set[str]) -> dict[str, Tensor]:
    """The tensors below the prefix under which a network's own names are found, if there is one."""
    while wrapped := next((p for p in WRAPPERS if all(k.startswith(p) for k in tensors)), ""):
        tensors = {k.removeprefix(wrapped): v for k, v in tensors.items()}
    prefixes = {""}
    for name in tensors:
        parts = name.split(".")
        prefixes |= {".".join(parts[:n]) + "." for n in range(1, min(len(parts), 5))}
    found = {p: sum(p + name in tensors for name in own) for p in prefixes}
    best = max(sorted(found, key=len), key=found.__getitem__)
    if found[best] < len(own) / 2:  # of another architecture, or in the form of its authors
        return tensors
    return {k.removeprefix(best): v for k, v in tensors.items() if k.startswith(best)}


def num_classes(state: Mapping[str, Tensor], net: Any) -> int | None:
    """The number of classes of a state dict's head, found by the network's name for it."""
    for name in _head_names(net):
        if f"{name}.weight" in state:
            return int(state[f"{name}.weight"].shape[0])
    return None


def _head_names(net: Any) -> tuple[str, ...]:
    classifier = net.pretrained_cfg["classifier"]
    return (classifier,) if isinstance(classifier, str) else tuple(classifier)


def load_initial(net: Any, source: str) -> list[str]:
    """Load a weights file (see `read_state`) or a run folder's model into a new network.

    Returns lines that say what was loaded. A head of another class count is left as initialised.
    A head of a distilled DeiT that `local_dir.save` zeroed starts fresh, and the other is halved
    again. Raises: MissingFile, UnreadableFile; WeightsError for weights of another model.
    """
    path = Path(source)
    if path.is_dir():
        inside = (path / "model" / "model.safetensors", path / "model.safetensors")
        path = next((p for p in inside if p.is_file()), inside[0])
    state = read_state(path, net)
    try:
        adapt = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
        state = adapt(state, net) if adapt else state
        own, said = net.state_dict(), [f"weights: {path}"]
        for zeroed, trained in (("head_dist.", "head."), ("head.", "head_dist.")):
            if {"head.weight", "head_dist.weight"} <= set(state) and not state[
                f"{zeroed}weight"
            ].any():
                state = {k: v / 2 if k.startswith(trained) else v for k, v in state.items()}
                state = {k: v for k, v in state.items() if not k.startswith(zeroed)}
        heads = _head_names(net)
        is_head = {k for k in own if k.startswith(tuple(f"{h}." for h in heads))}
        fresh = {k for k in is_head if k not in state or state[k].shape != own[k].shape}
        state = {k: v for k, v in state.items() if k not in fresh}
        result = net.load_state_dict(state, strict=False)
    except FgkdError:
        raise
    except KeyError as error:  # of timm's filter, which expects its own architecture
        raise _other_model(path, net, f"tensor {error} does not belong") from None
    except Exception as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines()[:3])
        message = f"checkpoint {path} does not load: {reason}"
        raise UnreadableFile(message, path=path, reason=reason) from None
    missing = [k for k in result.missing_keys if k not in fresh]
    wrong = missing + [k for k in result.unexpected_keys if not k.startswith(heads)]
    if wrong:
        unknown = len(wrong) - len(missing)
        why = f"{len(missing)} of its {len(own)} tensors are missing and {unknown} unknown"
        raise _other_model(path, net, f"{why} (first: {wrong[0]})")
    if fresh:
        said.append(f"newly initialised: {', '.join(sorted(fresh))}")
    return said


def _other_model(path: Path, net: Any, why: str) -> WeightsError:
    name = net.pretrained_cfg.get("architecture", "this model")
    message = f"checkpoint {path} is not for {name}: {why}"
    return WeightsError(message, path=path, reason=why, model=name)
