"""Training checkpoints: written whole, read without unpickling code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from fgkd import files
from fgkd.errors import FgkdError, quoted


def save(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values atomically; the same state gives the same bytes."""
    with files.replacing(path) as partial, open(partial, "wb") as file:
        torch.save(state, file)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint with `weights_only=True`, whatever device it was saved on, to the CPU.

    Whoever takes its tensors moves them; an optimizer's step counts are to stay where they are.

    Raises: FgkdError when it is missing, truncated or holds anything but tensors and plain values.
    """
    if not path.exists():
        raise FgkdError(f"no checkpoint at {path}", f"ls -R {quoted(path.parent.parent)}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch advises to load it as code
            reason = "it is no checkpoint, or holds more than tensors and plain values"
        raise FgkdError(
            f"checkpoint {path} cannot be read: {reason}",
            f"ls -l {quoted(path)}   # truncated? take another copy, or --overwrite",
        ) from None
    if not isinstance(state, dict):
        raise FgkdError(
            f"checkpoint {path} holds a {type(state).__name__}, not a dict of tensors",
            f"ls -l {quoted(path)}   # another program's file? start anew with --overwrite",
        )
    return state


def to_cpu(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A detached copy on the CPU, contiguous, that later training steps cannot change."""
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in state.items()}
