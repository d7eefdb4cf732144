"""The pages in a real browser: no error, no request, images that load, tables that sort."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import browser as browser
from helpers.pages import hostile_page

from fgkd.report import page

pytestmark = pytest.mark.skipif(
    browser.find() is None, reason=f"no browser on the PATH (looked for {', '.join(browser.NAMES)})"
)

LOOK = """(async () => {
  const images = [...document.images];
  await Promise.all(images.map((image) => image.decode().catch(() => 0)));
  const style = (name) => getComputedStyle(document.body)[name];
  return {
    images: images.length,
    broken: images.filter((image) => !image.complete || !image.naturalWidth).length,
    shown: images.map((i) => i.currentSrc).filter((src) => src.startsWith("data:image/svg")),
    overflow: document.documentElement.scrollWidth - innerWidth,
    ink: style("color"), paper: style("backgroundColor"), pwned: window.pwned === undefined ? 0 : 1,
  };
})()"""

SORT = """(() => {
  const results = [];
  for (const table of document.querySelectorAll("table")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const cells = () => [...table.tBodies[0].rows].map((row) => row.cells[column]);
      const keys = () => cells().map((cell) => cell.dataset.key ?? null);
      const alphabetic = keys().filter((key) => key !== null).sort(new Intl.Collator().compare);
      for (const press of [1, 2]) {
        head.querySelector("button").click();
        const others = heads.filter((h) => h !== head).map((h) => h.getAttribute("aria-sort"));
        results.push({ number: head.classList.contains("num"), keys: keys(), press, alphabetic,
          order: head.getAttribute("aria-sort"), others: [...new Set(others)] });
      }
    });
  }
  const button = document.querySelector("thead button");
  button.focus();
  return { results, focused: document.activeElement === button };
})()"""


def brightness(colour: str) -> float:
    """The mean channel of `rgb(r, g, b)`."""
    return sum(map(float, colour.removeprefix("rgb(").removesuffix(")").split(","))) / 3


@pytest.fixture(scope="module", params=["report", "gallery"])
def path(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(f"tiny_{request.param}")
    return found


def assert_quiet(seen: browser.Seen, page_path: Path) -> None:
    """No console message, and nothing asked for but the file itself."""
    assert seen.messages == []
    assert [url for url in seen.requests if not url.startswith("data:")] == [page_path.as_uri()]


def test_it_opens_light_and_dark_wide_and_narrow(path: Path) -> None:
    looks: dict[tuple[int, str], Any] = {}
    for width, scheme in ((1280, "light"), (390, "dark")):
        seen = browser.visit(path, script=LOOK, width=width, scheme=scheme)
        assert_quiet(seen, path)
        look = looks[width, scheme] = seen.value
        assert look["broken"] == 0
        assert look["images"] >= 8
        assert look["overflow"] == 0
        assert (brightness(look["paper"]) > 200) == (scheme == "light")
        assert abs(brightness(look["paper"]) - brightness(look["ink"])) > 150
    light, dark = looks.values()
    assert len(light["shown"]) == len(dark["shown"])
    assert not set(light["shown"]) & set(dark["shown"])  # plots have ink for either


def test_tables_sort_by_every_column_both_ways(path: Path) -> None:
    """Numbers from the largest at first, text from a; pressed again the other way; blanks last."""
    seen = browser.visit(path, script=SORT)
    assert_quiet(seen, path)
    assert seen.value["focused"]  # headings are buttons: the keyboard reaches and presses them
    assert seen.value["results"]
    for one in seen.value["results"]:
        down = one["number"] == (one["press"] == 1)
        assert one["order"] == ("descending" if down else "ascending")
        assert one["others"] == ["none"]
        known = [key for key in one["keys"] if key is not None]
        assert one["keys"] == known + [None] * (len(one["keys"]) - len(known))
        if one["number"]:
            assert [float(key) for key in known] == sorted(map(float, known), reverse=down)
        else:
            assert known == (one["alphabetic"][::-1] if down else one["alphabetic"])


def test_a_key_press_sorts(tiny_report: Path) -> None:
    """Enter on a focused heading, as a keyboard sends it."""
    order = "document.querySelector('thead th').getAttribute('aria-sort')"
    seen = browser.visit(
        tiny_report,
        script="document.querySelector('thead button').focus()",
        key="Enter",
        then=order,
    )
    assert seen.value == "ascending"


def test_a_press_on_a_plot_enlarges_it(tiny_report: Path) -> None:
    """And another one closes it."""
    script = """(() => {
      const seen = [], dialog = document.querySelector("dialog");
      const plot = document.querySelector(".plot .zoom");
      seen.push(dialog.open);
      plot.click();
      seen.push(dialog.open);
      const [small, large] = [plot, dialog].map((e) => e.querySelector("img"));
      seen.push(large.currentSrc === small.currentSrc || large.src === small.src);
      seen.push(large.getBoundingClientRect().width > small.getBoundingClientRect().width * 1.5);
      dialog.click();
      seen.push(dialog.open);
      return seen;
    })()"""
    seen = browser.visit(tiny_report, script=script)
    assert_quiet(seen, tiny_report)
    assert seen.value == [False, True, True, True, False]


def test_an_enlarged_view_says_how_it_was_made(tiny_gallery: Path) -> None:
    """What the mouse shows is to be read on a phone as well; and nothing where nothing is said."""
    script = """(() => {
      const dialog = document.querySelector("dialog"), words = dialog.querySelector("p");
      return [...document.querySelectorAll("figure.card")].map((card) => {
        card.querySelector(".zoom").click();
        const [image, text] = [dialog.querySelector("img"), words].map(
          (e) => e.getBoundingClientRect());
        const room = dialog.getBoundingClientRect();
        const found = [card.title, words.textContent, image.height / room.height,
          image.bottom <= text.top || text.height === 0, room.bottom >= text.bottom];
        dialog.click();
        return found;
      });
    })()"""
    seen = browser.visit(tiny_gallery, script=script, width=390)
    assert_quiet(seen, tiny_gallery)
    assert any("crop of" in title for title, *_ in seen.value)
    for title, said, share, apart, fits in seen.value:
        assert said == title
        assert share > 0.7
        assert apart
        assert fits


def test_a_button_copies_the_command(tiny_report: Path) -> None:
    script = """(async () => {
      const copied = [];
      navigator.clipboard.writeText = async (text) => { copied.push(text); };
      const said = [];
      for (const button of document.querySelectorAll(".copy")) {
        button.click();
        await new Promise((done) => setTimeout(done, 10));
        said.push([button.textContent, button.parentElement.querySelector("pre").textContent]);
      }
      return [copied, said];
    })()"""
    seen = browser.visit(tiny_report, script=script)
    assert_quiet(seen, tiny_report)
    copied, said = seen.value
    assert len(copied) == 4  # three runs and a cache
    assert said == [["Copied", text] for text in copied]
    assert all(text.startswith("fgkd ") for text in copied)


def test_small_images_are_enlarged_by_a_whole_number(path: Path) -> None:
    """So that every pixel of a 32 px icon is as large as the next; nothing is smoothed."""
    script = """[...document.querySelectorAll("img.small")].map((image) =>
      [image.getBoundingClientRect().width / image.naturalWidth,
       getComputedStyle(image).imageRendering])"""
    seen = browser.visit(path, script=script)
    assert seen.value
    assert {(float(scale).is_integer(), how) for scale, how in seen.value} == {(True, "pixelated")}


def test_on_paper_nothing_scrolls(path: Path) -> None:
    script = """[...document.styleSheets[0].cssRules].filter((r) => r.conditionText === "print")
      .flatMap((rule) => [...rule.cssRules].map((inner) => inner.cssText)).join(" ")"""
    seen = browser.visit(path, script=script)
    assert "max-height: none" in seen.value
    assert ".copy, nav { display: none; }" in seen.value


def test_hostile_names_do_nothing(tmp_path: Path) -> None:
    path = page.write(tmp_path, hostile_page())
    seen = browser.visit(path, script=LOOK)
    assert_quiet(seen, path)
    assert (seen.value["pwned"], seen.value["broken"]) == (0, 0)


def test_the_policy_stops_what_slips_in(tmp_path: Path) -> None:
    """Were a name ever not escaped, its script would not run and its image not be fetched."""
    evil = "<script>window.pwned = 1</script><img src=http://127.0.0.1:9/x.png onerror=pwned=1>"
    path = page.write(tmp_path, hostile_page().replace("</header>", evil + "</header>"))
    seen = browser.visit(path, script=LOOK)
    assert seen.value["pwned"] == 0
    assert any("Content Security Policy" in message for message in seen.messages)
