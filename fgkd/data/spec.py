"""Dataset specs: `NAME:PATH`, perhaps with options, as `csv:FILE?label_column=species`."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode

from fgkd.errors import OptionError, UnknownName, near
from fgkd.files import is_text, is_url

QUERY = re.compile(r"(.*?)\?([a-z_]+=.*)", re.DOTALL)
ANY = "*"  # an option of every dataset
OPTIONS = {  # the datasets that have it
    "test_fraction": (ANY,),
    "val_list": (ANY,),
    "image_column": ("csv", "hf"),
    "label_column": ("csv", "hf"),
    "split_column": ("csv",),
    "image_root": ("csv",),
    "config": ("hf",),
    "revision": ("hf",),
    "label_key": ("webdataset",),
    "val": ("webdataset",),
    "test": ("webdataset",),
}
PATHS = ("image_root", "val", "test", "val_list")  # options that are paths
OF_PLACE = ("image_root", "val", "test")  # not those of the same data elsewhere
MAX_TEST_FRACTION = 0.5


@dataclass(frozen=True)
class Spec:
    """A dataset's name, where it is, and options of how it is read."""

    name: str
    path: str
    options: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def parse(text: str) -> Spec:
        """The spec that is written so. Raises: UnknownName, OptionError for its options."""
        name, _, path = text.partition(":")
        found = QUERY.fullmatch(path)
        if not found:
            return Spec(name, path)
        options = dict(parse_qsl(found[2], keep_blank_values=True))
        known = [option for option in OPTIONS if takes(name, option)]
        for option, value in options.items():
            if option not in known:
                message = f"unknown option {option!r} in {text}{near(option, known)}"
                raise UnknownName(
                    message,
                    option="data",
                    value=text,
                    known=known,
                    suggestion=(f"{name}:{found[1]}",),
                )
            if not value or (option == "test_fraction" and not _is_share(value)):
                example = "0.2" if option == "test_fraction" else "NAME"
                message = f"{option} is {value!r} in {text}"
                suggestion = (f"{name}:{found[1]}?{option}={example}",)
                raise OptionError(message, option="data", value=text, suggestion=suggestion)
        return Spec(name, found[1], options)

    def __str__(self) -> str:
        query = urlencode(self.options, quote_via=quote, safe="/:{},*[]")
        where = f"{self.name}:{self.path}" if self.path or query else self.name
        return f"{where}?{query}" if query else where

    @property
    def test_fraction(self) -> float:
        """The share of training images that become the test split if there is none."""
        return float(self.options.get("test_fraction", 0))

    def absolute(self) -> Spec:
        """The same with absolute paths. URLs and names on a hub stay as they are."""
        is_hub = self.name == "hf" and not Path(self.path).expanduser().exists()
        path = self.path if is_hub or not self.path else _absolute(self.path)
        options = {k: _absolute(v) if k in PATHS else v for k, v in self.options.items()}
        return replace(self, path=path, options=options)


def takes(name: str, option: str) -> bool:
    """Whether a dataset of this name has the option."""
    return ANY in OPTIONS[option] or name in OPTIONS[option]


def absolute_specs(specs: Sequence[str]) -> list[str]:
    """Specs with their paths made absolute, to be read from any folder."""
    return [str(Spec.parse(spec).absolute()) for spec in specs]


def moved(given: Sequence[str], recorded: Sequence[str]) -> list[str]:
    """The specs given, or those that were recorded where none is.

    One that only says where the same dataset is now keeps the options it was read with.
    """
    if not given:
        return list(recorded)
    parsed = [Spec.parse(spec) for spec in given]
    if len(given) == len(recorded):
        for i, old in enumerate(map(Spec.parse, recorded)):
            if old.name == parsed[i].name and not parsed[i].options:
                kept = {k: v for k, v in old.options.items() if k not in OF_PLACE}
                parsed[i] = replace(parsed[i], options=kept)
    return [str(spec) for spec in parsed]


def _absolute(path: str) -> str:
    found = path if is_url(path) else os.path.abspath(os.path.expanduser(path))
    if not is_text(found):
        message = f"{found!r} is not UTF-8 text"
        raise OptionError(message, option="data", value=path, advice="a link to it (ln -s)")
    return found


def _is_share(text: str) -> bool:
    try:
        return 0 <= float(text) <= MAX_TEST_FRACTION
    except ValueError:
        return False
