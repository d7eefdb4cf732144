"""`inspect --gallery`: pixels have the digests of the cache, answers are the stored ones."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.failures import run_command as command
from helpers.pages import Outline, assert_stands_alone, bytes_of, outline
from helpers.runs import fgkd
from PIL import Image

from fgkd.cache.reader import Reader
from fgkd.views import transforms
from stages import next_step

MIXED = ("--mixup", "0.8", "--cutmix", "1.0", "--aug-recipe", "light", "--color-jitter", "0.3")


@pytest.fixture(scope="module")
def mixed_tars(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WebDataset cache of mixed views that keeps the top 3 of 8 classes, at T = 2 and 4 alone."""
    cache = tmp_path_factory.mktemp("tars") / "cache"
    fgkd(
        *("cache-logits", "--teacher", tiny_teacher, "--output", cache, "--views", 3, *MIXED),
        *("--format", "webdataset", "--encoding", "topk", "--top-k", 3, "--temperatures", "2,4"),
        *("--shard-size", 20, "--workers", 0),
    )
    return cache


def view_pictures(page: Outline) -> list[tuple[int, np.ndarray]]:
    """(view, pixels) of every view shown, in the order of the page."""
    found = []
    for image in page.images:
        if number := re.fullmatch(r"view (\d+)", image["alt"]):
            pixels = np.asarray(Image.open(io.BytesIO(bytes_of(image["src"]))))
            found.append((int(number[1]), pixels))
    return found


def shown_keys(page: Outline) -> list[str]:
    """The images whose views are shown."""
    return [i["alt"] for i, v in zip(page.images, page.images[1:], strict=False)
            if v["alt"].startswith("view") and not i["alt"].startswith("view")]  # fmt: skip


def assert_digests(page: Outline, cache: Path, num_views: int) -> None:
    """Every view's pixels have the digest that capture stored."""
    reader = Reader(cache)
    keys, pictures = shown_keys(page), view_pictures(page)
    assert len(keys) == len(set(keys)) == 8
    assert len(pictures) == 8 * num_views
    held_views = [reader.arrays_of_view(view)["digests"] for view in range(num_views)]
    for i, (view, pixels) in enumerate(pictures):
        row = reader.samples["train"].keys.index(keys[i // num_views])
        assert transforms.pixel_digest(pixels) == held_views[view][row]
    reader.close()
    total = 8 * num_views
    assert f"The pixels of {total} of {total} views are those the teacher saw" in page.text


def said(page: Outline) -> list[tuple[str, float]]:
    """(class, percent) of every answer on a view that has a bar, in the order of the page."""
    words = re.split(r"\s*\n\s*", page.text[page.text.index("views, with the teacher's") :])
    return [
        (words[i - 1].removeprefix("✓ "), float(word.removesuffix(" %")))
        for i, word in enumerate(words)
        if re.fullmatch(r"\d+\.\d %", word)
    ]


def test_dense_views_and_answers(tiny_gallery: Path, tiny_cache: Path) -> None:
    """The five likeliest classes of each view, from the stored logits by torch."""
    page = outline(tiny_gallery)
    assert_stands_alone(page)
    assert_digests(page, tiny_cache, 2)
    reader = Reader(tiny_cache)
    classes, answers = reader.classes, said(page)
    stored = [torch.from_numpy(reader.arrays_of_view(view)["logits"].copy()) for view in (0, 1)]
    reader.close()
    at = 0
    for key in shown_keys(page):
        row = reader.samples["train"].keys.index(key)
        for view in (0, 1):
            p, best = stored[view][row].softmax(0).sort(descending=True, stable=True)
            for k in range(5):
                name, pct = answers[at]
                assert name == classes[best[k]]
                assert pct == pytest.approx(100 * p[k].item(), abs=0.051)
                at += 1


def test_how_a_view_was_made_is_shown_on_hover(tiny_gallery: Path, tiny_cache: Path) -> None:
    """The crop and the flip are those of the view's own parameters."""
    found = re.findall(r'<figure class="card" title="([^"]*)">', tiny_gallery.read_text())
    reader, at = Reader(tiny_cache), iter(found)
    recipe, seed = reader.identity.views.recipe, reader.identity.views.seed
    reader.close()
    for key in shown_keys(outline(tiny_gallery)):
        for view in (0, 1):
            drawn = transforms.params(recipe, seed, key, view, (32, 32))
            x, y, width, height = drawn.box
            said = next(at)
            assert said.startswith(f"crop of {width} x {height} px at ({x}, {y}), resized to 32 px")
            assert ("mirrored" in said) == drawn.flip
            assert all(name in said for name, _ in drawn.ops)
    assert list(at) == []


def test_the_most_doubtful_labels_come_first(tiny_gallery: Path) -> None:
    text = tiny_gallery.read_text()
    order = [text.index(f">{title}</h2>") for title in ("Doubtful labels", "Views", "Cache")]
    assert order == sorted(order)


def test_mixed_views_of_tars_are_shown_mixed_and_need_no_dataset(
    mixed_tars: Path, tmp_path: Path
) -> None:
    """topk shows the classes that it knows, at a temperature that it has; tars hold the images."""
    moved = tmp_path / "moved"
    shutil.copytree(mixed_tars, moved)
    (moved / "args.yaml").write_text("data: [folder:/nowhere]\n")
    fgkd("inspect", moved, "--gallery", tmp_path)
    page = outline(tmp_path / "index.html")
    assert_stands_alone(page)
    assert_digests(page, mixed_tars, 3)
    assert "softmax at T = 2" in page.text
    pairs = re.findall(r"mixed:\s+(\d+)\s% (\S+) \+ (\d+)\s% (\S+)", page.text)
    assert pairs
    assert all(int(a) + int(b) in (99, 100, 101) for a, _, b, _ in pairs)
    names = {key.split("/")[1] for key in Reader(mixed_tars).samples["train"].keys}
    assert {name for _, first, _, second in pairs for name in (first, second)} <= names
    reader = Reader(mixed_tars)
    classes, answers, keys = reader.classes, said(page), shown_keys(page)
    held = reader.arrays_of_view(0)
    row = reader.samples["train"].keys.index(keys[0])
    kept, logits = held["indices"][row], held["values"][row].astype(float) / 2
    mass = np.exp(logits).sum() + np.exp(held["log_tail"][row][0])
    for name, pct in answers[:3]:
        (at,) = np.flatnonzero(kept == classes.index(name))
        assert pct == pytest.approx(100 * np.exp(logits[at]) / mass, abs=0.051)
    reader.close()


def test_doubtful_labels_with_their_images(
    tiny_gallery: Path, tiny_cache: Path, tiny_data: Path
) -> None:
    """Every suspect of the statistics, in the table and as a picture of its file."""
    page = outline(tiny_gallery)
    (rows,) = [rows for head, *rows in page.tables if head[0] == "image"]
    assert rows
    logits = [Reader(tiny_cache).arrays_of_view(view)["logits"] for view in (0, 1)]
    reader = Reader(tiny_cache)
    train = reader.samples["train"]
    pictures = {image["alt"]: image["src"] for image in page.images}
    for key, label, answer, confidence in rows:
        row = train.keys.index(key)
        assert label == key.split("/")[1] == reader.classes[train.labels[row]]
        p = [torch.from_numpy(view[row].copy()).softmax(0) for view in logits]
        assert answer in [reader.classes[one.argmax()] for one in p]
        assert float(confidence) == pytest.approx(
            100 * min(one.max().item() for one in p), abs=0.06
        )
        pixels = np.asarray(Image.open(io.BytesIO(bytes_of(pictures[key]))))
        assert np.array_equal(pixels, np.asarray(Image.open(tiny_data / key).convert("RGB")))


def test_without_its_images_the_remedy_is_named(
    tiny_cache: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An HDF5 cache holds no images: --data says where they are now."""
    moved = tmp_path / "cache"
    shutil.copytree(tiny_cache, moved)
    (moved / "args.yaml").write_text("data: ['folder:/nowhere']\n")
    arguments = ("inspect", str(moved), "--gallery", str(tmp_path / "page"))
    code, _, err = command(capsys, *arguments)
    assert code == 1
    assert "/nowhere" in err
    assert "--data" in err
    code, out, _ = command(capsys, *arguments, "--data", f"folder:{tiny_data}")
    assert code == 0
    gallery, following = out.splitlines()[-2:]
    assert gallery == f"gallery: {tmp_path / 'page' / 'index.html'}"
    assert following == f"next: {next_step.after_cache(moved)}"
    assert_digests(outline(tmp_path / "page" / "index.html"), moved, 2)


def test_several_caches_are_one_page(tiny_cache: Path, mixed_tars: Path, tmp_path: Path) -> None:
    fgkd("inspect", tiny_cache, mixed_tars, "--gallery", tmp_path)
    page = outline(tmp_path / "index.html")
    assert_stands_alone(page)
    assert len(view_pictures(page)) == 8 * (2 + 3)
