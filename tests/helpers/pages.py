"""What a page is made of, read with the standard library's parser alone."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from fgkd.report import page, plots
from fgkd.report.page import Card, Group, Line, Section, Table
from fgkd.report.thumbnails import Thumbs

VOID = {"meta", "link", "img", "source", "br", "hr", "input"}


class Outline(HTMLParser):
    """Counts and collects; `problems` are tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.problems: list[str] = []
        self.images: list[dict[str, str]] = []
        self.loads: list[str] = []  # whatever a browser would fetch
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tables: list[list[list[str]]] = []  # rows of cells; the first is the heading
        self.text = ""
        self.num_scripts = 0
        self._in_cell = False
        self.feed(html)
        self.close()
        self.problems += self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attrs}
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [named["id"]] if "id" in named else []
        self.loads += [named[name] for name in ("src", "srcset", "poster", "data") if name in named]
        self.loads += [named["href"]] if tag == "link" else []
        self.links += [named["href"]] if tag == "a" else []
        if tag == "img":
            self.images.append(named)
        if tag == "script":
            self.num_scripts += 1
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("th", "td"):
            self.tables[-1][-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}>")
        if tag in ("th", "td"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data
        if self._in_cell:
            self.tables[-1][-1][-1] += data.strip()


def outline(page: Path) -> Outline:
    """The outline of a file."""
    return Outline(page.read_text(encoding="utf-8"))


def bytes_of(src: str) -> bytes:
    """The content of a base64 data URI."""
    head, _, body = src.partition(";base64,")
    assert head.startswith("data:image/"), head
    return base64.b64decode(body, validate=True)


def assert_stands_alone(found: Outline) -> None:
    """It nests, loads nothing from anywhere, its links lead inside, and every table has a head."""
    assert found.problems == []
    assert all(load.startswith("data:") for load in found.loads)
    assert found.links
    assert {link.removeprefix("#") for link in found.links} <= set(found.ids)
    assert len(set(found.ids)) == len(found.ids)
    assert found.num_scripts == 1
    assert all(image["alt"] and image["width"] and image["height"] for image in found.images)
    for head, *rows in found.tables:
        assert all(head)
        assert rows
        assert all(len(row) == len(head) for row in rows)


HOSTILE = (
    "<script>window.pwned=1</script>",
    '"><img src=x onerror="window.pwned=1">',
    "{{ 7 * 7 }}",
    "漢字 $\\frac{1}{0$ &",
    "bell\x07 and \udce9 and ]]>",
)


def hostile_page() -> str:
    """A page with hostile text in every place that takes text."""
    sections = []
    for i, name in enumerate(HOSTILE):
        picture = Thumbs().of_pixels(np.zeros((8, 8, 3), np.uint8), name)
        card = Card(name, picture, [Line(name, name, "wrong", 0.5)])
        table = Table(name, [name], [[page.text(name)]])
        curve = plots.curves({name: [{"epoch": 1, "x": 1.0}]}, {name: 1}, "x", name, "nats", name)
        assert curve
        sections.append(
            Section(f"s{i}", name, name, [name], [curve], [table], [Group(name, name, [card])])
        )
    return page.render(HOSTILE[0], HOSTILE[1], sections)
