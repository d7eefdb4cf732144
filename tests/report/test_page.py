"""Pages of untrusted names: escaped, self-contained, and never over a file that is not ours."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from helpers.datasets import encode, pixels
from helpers.errors import expected
from helpers.pages import HOSTILE, Outline, assert_stands_alone, bytes_of, hostile_page
from PIL import Image

from fgkd.errors import OptionError, WriteError
from fgkd.report import page, plots
from fgkd.report.findings import Answers
from fgkd.report.page import Cell, Table
from fgkd.report.thumbnails import Thumbs


@pytest.fixture(scope="module")
def html() -> str:
    return hostile_page()


def test_hostile_text_is_text(html: str, tmp_path: Path) -> None:
    found = Outline(html)
    assert_stands_alone(found)
    for name in HOSTILE:
        assert name in found.text
    assert "49" not in found.text
    written = page.write(tmp_path, html).read_text(encoding="utf-8")  # it is UTF-8 for all that
    assert "bell" in written


def test_equal_parts_give_an_equal_page(html: str) -> None:
    assert hostile_page() == html


def test_plots_are_well_formed_and_only_their_ink_differs_in_the_dark() -> None:
    classes = [*HOSTILE, "a class with a name that is far too long for a plot"]
    figure = plots.confusion("a $ run", classes, np.arange(36).reshape(6, 6))
    light, dark = (bytes_of(src).decode() for src in (figure.picture.src, figure.picture.dark))
    assert ET.fromstring(light).tag.endswith("svg")
    assert "漢字" in light
    assert light != dark
    swapped = light.replace(plots.INK, plots.DARK_INK).replace(plots.GRID, plots.DARK_GRID)
    assert swapped == dark
    assert "far too long for a plot" not in light


@pytest.mark.parametrize("hit", [True, False])
def test_plots_of_one_image(hit: bool) -> None:
    """The least there can be: nothing divides by zero, nothing is empty."""
    one = Answers(np.array([0]), np.array([1.0]), np.array([hit]))
    figures = [
        plots.reliability("run", 0, one, 0.0),
        plots.confidences("run", one),
        plots.coverage({"run": one}),
        plots.class_curve({"run": np.array([100.0])}),
        plots.shares({"run": {"top-1": (0.0, 0.0, 100.0)}}, "Accuracy", "One image."),
        plots.outcomes({"all": 1, "nobody": 0}),
    ]
    for figure in figures:
        ET.fromstring(bytes_of(figure.picture.src))
    assert plots.by_value("pixels", np.array([3.0]), {"run": one}) is None
    assert plots.curves({"run": []}, {}, "loss", "Loss", "nats", "") is None


def test_numbers_sort_as_numbers_and_unknown_ones_have_no_key() -> None:
    assert page.number(1234) == Cell("1,234", 1234.0)
    assert page.number(None) == Cell("")
    assert page.number(float("nan")) == Cell("nan")
    assert page.number(-0.5, "{:.2f}") == Cell("-0.50", -0.5)
    rows = [[page.text("a"), page.number(2)], [page.text("b"), page.number(None)]]
    assert Table("t", ["name", "n"], rows).numeric == [False, True]


def test_a_folder_is_claimed_before_work_and_only_an_own_page_is_replaced(tmp_path: Path) -> None:
    page.claim(tmp_path / "new" / "folder", "--report")
    own = tmp_path / "new" / "folder"
    page.write(own, page.render("t", "l", []))
    page.claim(own, "--report")
    (own / "index.html").write_text("<h1>somebody else's</h1>")
    with expected(OptionError, option="--report"):
        page.claim(own, "--report")
    assert (own / "index.html").read_text() == "<h1>somebody else's</h1>"
    (tmp_path / "file").write_text("")
    with expected(OptionError, option="--report"):
        page.claim(tmp_path / "file", "--report")
    (tmp_path / "f" / "index.html").mkdir(parents=True)
    with expected(WriteError, path=tmp_path / "f" / "index.html"):
        page.claim(tmp_path / "f", "--report")


def test_thumbnails_keep_small_images_whole_and_the_budget() -> None:
    thumbs = Thumbs(budget_bytes=20_000, side=100)
    small = np.asarray(pixels(0, 0, (40, 30)))
    whole = thumbs.of_pixels(small, "small")
    assert whole
    assert (whole.width, whole.height) == (40, 30)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(bytes_of(whole.src)))), small)
    large = thumbs.of_file(encode(pixels(0, 1, (400, 300)), "JPEG"), "large")
    assert large
    assert (large.width, large.height) == (100, 75)
    made = [whole, large, *(thumbs.of_pixels(small, "more") for _ in range(20))]
    assert made[-1] is None
    assert sum(len(p.src) for p in made if p) <= 20_000
    assert thumbs.of_file(b"no image", "x.jpg") is None
