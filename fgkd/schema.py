"""How options are declared, checked, loaded and compared; `config` declares them.

Importing this module is cheap: `--help` must not wait for numpy or torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import types
import typing
from dataclasses import field
from typing import Any, TypeVar

from .errors import FgkdError, near

T = TypeVar("T")


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    free: bool = False,
    many: str = "",
) -> Any:
    """A field with its help and range (low <= x <= high, x > above); free: may change on resume.

    many: the option takes every word up to the next option; they are shown by this name.
    """
    meta = {"help": help, "choices": choices, "low": low, "high": high, "above": above}
    return field(default=default, metadata={**meta, "free": free, "many": many})


def check(value: Any, meta: typing.Mapping[str, Any]) -> str | None:
    """What is wrong with one value by its field's choices and range, or None."""
    if value is None:
        return None
    if isinstance(value, tuple):
        return next((problem for v in value if (problem := check(v, meta))), None)
    if meta["choices"] and value not in meta["choices"]:
        return f"{value!r} is not one of {', '.join(meta['choices'])}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is not a finite number"
    if meta["above"] is not None and value <= meta["above"]:
        return f"{value} is not above {meta['above']:g}"
    if meta["low"] is not None and value < meta["low"]:
        return f"{value} is below {meta['low']:g}"
    if meta["high"] is not None and value > meta["high"]:
        return f"{value} is above {meta['high']:g}"
    return None


def hints(cls: type) -> dict[str, Any]:
    """Field name -> resolved type, in declaration order."""
    kinds = typing.get_type_hints(cls)
    return {f.name: kinds[f.name] for f in dataclasses.fields(cls)}


def convert(value: Any, kind: Any) -> Any:
    """A plain value as a field's type, where nothing is lost: lists become tuples, 1 becomes 1.0.

    Raises: ValueError saying what was expected.
    """
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if value is None and type(None) in kinds:
        return None
    kind = kinds[0]
    if typing.get_origin(kind) is tuple:
        item, last = typing.get_args(kind)
        if not isinstance(value, list | tuple):
            raise ValueError(f"{value!r} is not a list")
        if last is not Ellipsis and len(value) != 2:
            raise ValueError(f"{value!r} has {len(value)} values, not 2")
        return tuple(convert(v, item) for v in value)
    if kind is float and isinstance(value, str):
        with contextlib.suppress(ValueError):  # YAML reads 1e-3, without a point, as text
            value = float(value)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        expected = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
        raise ValueError(f"{value!r} is not {expected[kind]}")
    return value


def build(cls: type[T], values: dict[str, Any], where: str) -> T:
    """A config from plain values; unknown keys are refused with the nearest known.

    Raises: FgkdError naming `where`, the key and the value.
    """
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, cls))}
    kinds, clean = hints(cls), {}
    for key, value in values.items():
        if key not in fields:
            raise FgkdError(
                f"unknown option {key!r} in {where}{near(key, list(fields))}",
                "--help   # lists the options of the command",
            )
        try:
            clean[key] = convert(value, kinds[key])
            problem = check(clean[key], fields[key].metadata)
        except ValueError as error:
            problem = str(error)
        if problem:
            raise FgkdError(f"{where}: {key}: {problem}", "--help   # says what the option takes")
    return cls(**clean)


def to_dict(config: Any) -> dict[str, Any]:
    """Plain values for YAML: tuples become lists."""
    return {
        f.name: list(v) if isinstance(v := getattr(config, f.name), tuple) else v
        for f in dataclasses.fields(config)
    }


def diff(old: Any, new: Any) -> list[str]:
    """`name: old -> new` for each option that differs and changes numbers (not the free ones)."""
    return [
        f"{f.name}: {getattr(old, f.name)} -> {getattr(new, f.name)}"
        for f in dataclasses.fields(old)
        if not f.metadata["free"] and getattr(old, f.name) != getattr(new, f.name)
    ]
