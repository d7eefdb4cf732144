"""Weights files: whether a trained model is there, and initial weights for a new network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from fgkd.errors import FgkdError, MissingFile, MissingModel, UnreadableFile, WeightsError

SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".tar")  # of weights in a timm local-dir folder


def require_model(folder: Path) -> None:
    """Raise MissingModel unless a folder has a model's config and weights; neither is read."""
    if not (folder / "config.json").is_file():
        raise MissingModel(f"no trained model at {folder} (config.json is missing)", path=folder)
    if not any(path.suffix in SUFFIXES for path in folder.iterdir()):
        message = f"model {folder} does not load: no weights beside its config.json"
        raise MissingModel(message, path=folder)


def load_initial(net: Any, source: str) -> list[str]:
    """Load a .safetensors or weights-only .pth file, or a run folder's model, into a new net.

    Returns lines that say what was loaded. A head of another class count is left as initialised.
    A head of a distilled DeiT that `local_dir.save` zeroed starts fresh, and the other is halved
    again. Raises: MissingFile, UnreadableFile; WeightsError for weights of another model.
    """
    from timm.models import load_state_dict

    path = Path(source)
    if path.is_dir():
        inside = (path / "model" / "model.safetensors", path / "model.safetensors")
        path = next((p for p in inside if p.is_file()), inside[0])
    if not path.is_file():
        raise MissingFile(f"no checkpoint at {path}", path=path)
    try:
        state = load_state_dict(str(path), device="cpu", weights_only=True)
        adapt = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
        state = adapt(state, net) if adapt else state
        own, said = net.state_dict(), [f"weights: {path}"]
        for zeroed, trained in (("head_dist.", "head."), ("head.", "head_dist.")):
            if {"head.weight", "head_dist.weight"} <= set(state) and not state[
                f"{zeroed}weight"
            ].any():
                state = {k: v / 2 if k.startswith(trained) else v for k, v in state.items()}
                state = {k: v for k, v in state.items() if not k.startswith(zeroed)}
        classifier = net.pretrained_cfg["classifier"]
        heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
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
