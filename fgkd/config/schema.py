"""Declaring, checking, loading and comparing options.

Options are fields of small frozen dataclasses (`specs`). A command's config is composed of several.
On disk, on the command line and as keyword arguments its options are flat, each by its own name.
Importing this module is cheap, so that the commands' help need not wait for numpy or torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import types
import typing
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fgkd.config.kwargs import format_kwargs
from fgkd.errors import Difference, OptionError, UnknownName, near
from fgkd.files import is_text, is_url, text_of

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
    renamed: Mapping[str, str] | None = None,
    words: tuple[str, ...] = (),
    place: str = "",
    keywords: bool = False,
) -> Any:
    """A field with its help and range (low <= x <= high, x > above); free: may change on resume.

    renamed: old values that are still accepted, with a FutureWarning, and their new names. words:
    values of a number that are none. place: `path` for a path on this machine, `source` for one
    that may also be a URL or a name on a hub; `~` is expanded in both. keywords: K=V texts, which
    may be given as a mapping.
    """
    meta = {"help": help, "choices": choices, "low": low, "high": high, "above": above}
    more = {"free": free, "renamed": renamed or {}, "words": words, "place": place}
    return field(default=default, metadata={**meta, **more, "keywords": keywords})


def check(value: Any, meta: typing.Mapping[str, Any]) -> str | None:
    """What is wrong with one value by its field's choices and range, or None."""
    if value is None or value in meta["words"]:
        return None
    if isinstance(value, tuple):
        return next((problem for v in value if (problem := check(v, meta))), None)
    if meta["choices"] and value not in meta["choices"]:
        return f"{value!r} is not one of {', '.join(meta['choices'])}"
    if meta["place"] == "path" and is_url(value):
        return f"{value} is a URL; give a path on this machine"
    if isinstance(value, str):
        recorded = os.path.abspath(value) if meta["place"] and not is_url(value) else value
        if not is_text(recorded):
            return f"{recorded!r} is not UTF-8 text; rename it, or make a link to it (ln -s)"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is not a finite number"
    if meta["above"] is not None and value <= meta["above"]:
        return f"{value} is not above {meta['above']:g}"
    if meta["low"] is not None and value < meta["low"]:
        return f"{value} is below {meta['low']:g}"
    if meta["high"] is not None and value > meta["high"]:
        return f"{value} is above {meta['high']:g}"
    return None


@dataclass(frozen=True)
class Leaf:
    """One option of a config.

    spec: name of the part that holds it; "" if the config itself does. kind: its type.
    """

    spec: str
    field: dataclasses.Field[Any]
    kind: Any

    def of(self, config: Any) -> Any:
        """Its value in a config."""
        return getattr(getattr(config, self.spec) if self.spec else config, self.field.name)


def leaves(cls: type) -> dict[str, Leaf]:
    """Every option of a config or spec, by its flat name, in declaration order."""
    kinds, found = typing.get_type_hints(cls), {}
    for one in dataclasses.fields(cls):
        kind = kinds[one.name]
        if dataclasses.is_dataclass(kind):
            for name, leaf in leaves(typing.cast(type, kind)).items():
                assert name not in found, f"{name} is in two specs of {cls.__name__}"
                found[name] = dataclasses.replace(leaf, spec=one.name)
        else:
            found[one.name] = Leaf("", one, kind)
    return found


def plain(value: Any) -> Any:
    """A number or an array of numpy's or torch's as Python's own."""
    return value.tolist() if hasattr(value, "tolist") else value


def convert(value: Any, kind: Any) -> Any:
    """A value as a field's type, where nothing is lost: lists become tuples, paths text.

    Numbers and arrays may be numpy's or torch's, and a device or dtype torch's own object. Raises:
    ValueError saying what was expected.
    """
    value = plain(value)
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if value is None and type(None) in kinds:
        return None
    kind = kinds[0]
    if isinstance(value, os.PathLike) and kind in (str, tuple[str, ...]):
        value = text_of(value)
    if type(value).__module__ == "torch" and kind is str:
        value = str(value).removeprefix("torch.")  # torch.device("cuda:0"), torch.bfloat16
    if typing.get_origin(kind) is tuple:
        item, last = typing.get_args(kind)
        if not isinstance(value, list | tuple):
            if kind == tuple[str, ...] and isinstance(value, str):
                return (value,)
            expected = "text or a list of texts" if kind == tuple[str, ...] else "a list"
            raise _is_not(value, expected)
        if last is not Ellipsis and len(value) != 2:
            raise ValueError(f"{value!r} has {len(value)} values, not 2")
        return tuple(convert(v, item) for v in value)
    if kind is float and isinstance(value, str):
        with contextlib.suppress(ValueError):  # YAML reads 1e-3, without a point, as text
            value = float(value)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        names = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
        raise _is_not(value, names[kind])
    return value


def _is_not(value: Any, expected: str) -> ValueError:
    """The complaint about a value of any type, in a line."""
    if any(base.__module__.startswith("torch.nn.") for base in type(value).__mro__):
        kind = type(value).__name__
        return ValueError(f"a {kind} in memory is no source to record; fgkd.capture takes models")
    if specs := getattr(value, "specs", ()):  # a dataset
        return ValueError(f"{value!r} is not {expected}; its specs are {list(specs)}")
    text = " ".join(repr(value).split())
    text = text if len(text) <= 120 else f"{text[:117]}..."
    return ValueError(f"{text} is not {expected}")


def expanded(value: Any, meta: Mapping[str, Any]) -> Any:
    """A value with the home folder in the place of `~`, if its field is a path."""
    if isinstance(value, tuple):
        return tuple(expanded(one, meta) for one in value)
    return os.path.expanduser(value) if meta["place"] and isinstance(value, str) else value


def build(cls: type[T], values: Mapping[str, Any], where: str | Path) -> T:
    """A config from flat plain values; the rest keeps its defaults.

    where: what gives the values, for messages: a file, or a name like "train_student()".
    Raises: UnknownName or OptionError with the option, its value and, of a file, its path.
    """
    known, fields = leaves(cls), dict[str, dict[str, Any]]()
    for name, value in values.items():
        if name not in known:
            raise _unknown(name, value, list(known), where)
        fields.setdefault(known[name].spec, {})[name] = _checked(known[name], value, where)
    kinds = typing.get_type_hints(cls)
    own = fields.pop("", {})
    return cls(**own, **{spec: kinds[spec](**found) for spec, found in fields.items()})


def _unknown(name: str, value: Any, known: list[str], where: str | Path) -> UnknownName:
    message = f"unknown option {name!r} in {where}{near(name, known)}"
    path = where if isinstance(where, Path) else None
    return UnknownName(message, option=name, value=value, known=known, path=path)


def _checked(leaf: Leaf, value: Any, where: str | Path) -> Any:
    """A value by its present name, converted and in range."""
    name, meta, value = leaf.field.name, leaf.field.metadata, plain(value)
    if isinstance(value, bool) and "on" in meta["choices"]:
        value = "on" if value else "off"  # YAML reads the words as true and false
    if isinstance(value, str) and value in meta["renamed"]:
        value = _renamed(name, value, meta["renamed"][value])
    try:
        if meta["keywords"] and isinstance(value, Mapping):
            value = format_kwargs({key: plain(one) for key, one in value.items()})
        is_word = isinstance(value, str) and value in meta["words"]
        converted = value if is_word else convert(value, leaf.kind)
        converted = expanded(converted, meta)
        problem = check(converted, meta) or _is_empty(converted, leaf)
    except ValueError as error:
        problem = str(error)
    if problem:
        path = where if isinstance(where, Path) else None
        raise OptionError(f"{where}: {name}: {problem}", option=name, value=value, path=path)
    return converted


def _is_empty(value: Any, leaf: Leaf) -> str | None:
    """A complaint about an empty text, such as a shell's variable that is not set, or None."""
    is_empty = value == "" and leaf.field.default != ""
    in_list = leaf.field.metadata["place"] and isinstance(value, tuple) and "" in value
    return "it is empty" if is_empty or in_list else None


def _renamed(name: str, old: str, new: str) -> str:
    message = f"{name}: {old!r} is now called {new!r}; the old name will be removed"
    warnings.warn(message, FutureWarning, stacklevel=4)  # where `build` was called
    return new


def to_dict(config: Any) -> dict[str, Any]:
    """Flat plain values for YAML and JSON: tuples become lists."""
    values = {name: leaf.of(config) for name, leaf in leaves(type(config)).items()}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


def replaced(config: T, **changes: Any) -> T:
    """A copy of a config with some options changed, given by their flat names.

    Raises: as `build`.
    """
    return build(type(config), to_dict(config) | changes, "replaced()")


def diff(old: Any, new: Any) -> list[Difference]:
    """Each option that differs and changes results (not those that are free to change)."""
    return [
        Difference(name, leaf.of(old), leaf.of(new))
        for name, leaf in leaves(type(old)).items()
        if not leaf.field.metadata["free"] and leaf.of(old) != leaf.of(new)
    ]
