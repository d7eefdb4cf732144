"""Transitional names for the commands that are not moved yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fgkd.commands.banner import describe_data, note_line
from fgkd.data import absolute_specs
from fgkd.data.duplicates import with_warnings as with_leaks
from fgkd.device import set_up as start_device
from fgkd.errors import ModelError
from fgkd.models.loading import model_folder
from fgkd.progress import Pace
from fgkd.views.recipes import resolve

from .console import check_json, echo, refuse_typed, refuse_unused
from .signals import Interrupted, StoppedAtOnce

__all__ = [
    "Interrupted",
    "Pace",
    "StoppedAtOnce",
    "absolute_specs",
    "check_json",
    "class_names",
    "describe_data",
    "echo",
    "model_folder",
    "note_line",
    "refuse_typed",
    "refuse_unused",
    "require",
    "resolve",
    "start_device",
    "with_leaks",
]


def require(value: Any, option: str, example: str) -> None:
    from .console import require as require_option

    require_option(value, option.removeprefix("--").replace("-", "_"), example)


def class_names(config: dict[str, Any], folder: Path) -> list[str]:
    """A model's class names, by index. Raises: ModelError when its config has none."""
    names = config.get("label_names") or []
    if isinstance(names, dict):  # timm's other form: index -> name
        names = [names[key] for key in sorted(names, key=int)]
    if len(names) != config["num_classes"]:
        count = config["num_classes"]
        message = f"{folder}/config.json names {len(names)} classes of {count}"
        raise ModelError(message, model=folder)
    return list(names)
