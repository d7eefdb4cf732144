"""HTML pages: sections of figures, tables and images in one file that loads no other.

Text may come from file and class names, which are untrusted: Jinja2 escapes all of it, and the
page's own content security policy lets nothing run but its one script, and nothing load.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fgkd import files
from fgkd.errors import OptionError
from fgkd.packages import require

TEMPLATES = Path(__file__).with_name("templates")
MARK = '<meta name="generator" content="fgkd">'  # by which an earlier page is known as ours


def data_uri(data: bytes, kind: str) -> str:
    """`data:` of a file's bytes; kind: its MIME type."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@dataclass(frozen=True)
class Picture:
    """An image as a data URI, its size in CSS pixels; dark: for a dark page, where it differs."""

    src: str
    alt: str
    width: int
    height: int
    dark: str = ""


@dataclass(frozen=True)
class Figure:
    """A plot with its title, and a caption that says what one sees."""

    picture: Picture
    title: str
    caption: str


@dataclass(frozen=True)
class Cell:
    """What a table shows in a place, and what the column is sorted by (None: always last).

    heat: -1 (all red) to 1 (all green), the shade behind it.
    """

    text: str
    key: str | float | None = None
    heat: float = 0.0


@dataclass(frozen=True)
class Table:
    """Rows of cells below column names; a column is numeric if no key in it is text."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    @property
    def numeric(self) -> list[bool]:
        """For each column, whether it is set to the right and sorted by number."""
        return [
            not any(isinstance(row[i].key, str) for row in self.rows)
            for i in range(len(self.columns))
        ]


@dataclass(frozen=True)
class Line:
    """A line below an image. mark: `right`, `wrong` or none; share: length of its bar, 0 to 1."""

    term: str
    text: str
    mark: str = ""
    share: float | None = None


@dataclass(frozen=True)
class Card:
    """An image and what is said of it; without a picture where the page's budget was spent.

    details: shown when the mouse rests on it.
    """

    name: str
    picture: Picture | None
    lines: Sequence[Line] = ()
    details: str = ""


@dataclass(frozen=True)
class Group:
    """Cards under one heading; in_row: in one row that scrolls."""

    title: str
    text: str
    cards: Sequence[Card]
    in_row: bool = False


@dataclass(frozen=True)
class Tile:
    """A figure that stands out. mark: `right` (good), `wrong` (bad) or none."""

    title: str
    value: str
    text: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Command:
    """A command line with a button that copies it."""

    title: str
    text: str


@dataclass(frozen=True)
class Section:
    """A part of a page; what is empty is not shown. anchor: its id, for the list at the top."""

    anchor: str
    title: str
    text: str = ""
    notes: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    groups: Sequence[Group] = ()
    tiles: Sequence[Tile] = ()
    commands: Sequence[Command] = ()


def text(value: object) -> Cell:
    """A cell of text, sorted by its letters."""
    return Cell(str(value), str(value).casefold())


def number(value: float | None, pattern: str = "{:,}") -> Cell:
    """A cell of a number; blank and last where it is unknown."""
    if value is None or not math.isfinite(value):
        return Cell("" if value is None else str(value))
    return Cell(pattern.format(value), float(value))


def made_now() -> str:
    """`Made on 2026-11-28 with fgkd 1.2.0`."""
    version = importlib.metadata.version("fgkd")
    return f"Made on {time.strftime('%Y-%m-%d')} with fgkd {version}"


def claim(folder: Path, option: str) -> None:
    """Make sure, before any work, that a page may be written into a folder.

    Raises: MissingPackage; WriteError if it cannot be made; OptionError if it holds an index.html
    that is not one of these pages.
    """
    require(f"the {option} page", "jinja2", "matplotlib")
    index = folder / "index.html"
    if folder.exists() and not folder.is_dir():
        message = f"{option} {folder} is a file, not a folder"
        raise OptionError(message, option=option, value=folder, suggestion="runs/page")
    try:
        files.claim(index)
        if index.exists() and MARK not in index.read_text(errors="replace"):
            message = f"{index} is not a page of fgkd; it was left alone"
            raise OptionError(message, option=option, value=folder, suggestion=folder / "fgkd")
    except OSError as error:
        raise files.write_error(index, error) from error


def render(title: str, lead: str, sections: Sequence[Section], made: str = "") -> str:
    """The page as HTML, equal for equal parts. made: when and with what, for its foot."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (TEMPLATES / "page.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html").render(
        title=title,
        lead=lead,
        made=made,
        sections=sections,
        script=script,
        script_sha256=digest,
        style=(TEMPLATES / "page.css").read_text(),
        mark=MARK,
    )


def write(folder: Path, html: str) -> Path:
    """Write the page atomically as `index.html`; names that are not UTF-8 lose those bytes."""
    path = folder / "index.html"
    files.write_bytes(path, html.encode("utf-8", "replace"))
    return path
