"""The icon set in the package: unpacked whole, once, by any number of processes."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.datasets import (
    open_error,
    unpacked_icons,
)
from PIL import Image

from fgkd.data import icons, open_dataset
from stages.remedies import remedy

REPO = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def icons_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked_icons(tmp_path_factory)


@pytest.fixture
def few_icons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive with one icon of every class in every split, in place of the whole one."""
    with np.load(icons.ARCHIVE, allow_pickle=False) as archive:
        _, rows = np.unique(np.char.add(archive["split"], archive["labels"].astype(str)), True)
        arrays = {name: archive[name][rows] for name in ("images", "labels", "split", "source")}
        few = tmp_path / "few" / "few.npz"
        few.parent.mkdir()
        np.savez(few, classes=archive["classes"], **arrays)
    shutil.copy(icons.ARCHIVE.with_name("ICONS.md"), few.parent)
    monkeypatch.setattr(icons, "ARCHIVE", few)
    return few


def test_icons(icons_dir: Path) -> None:
    dataset = icons.load(icons_dir)
    counts = {split: len(samples) for split, samples in dataset.splits.items()}
    assert counts == {"train": 5114, "val": 715, "test": 1433}
    assert len(dataset.classes) == 85
    assert dataset.chiral
    assert (icons_dir / "ICONS.md").is_file()
    with np.load(icons.ARCHIVE, allow_pickle=False) as archive:
        images, sources = archive["images"], archive["source"].tolist()
        labels, classes = archive["labels"], archive["classes"].tolist()
    assert dataset.classes == classes
    row_of = {source.replace(":", "_"): row for row, source in enumerate(sources)}
    for samples in dataset.splits.values():
        for i in range(0, len(samples), 97):
            row = row_of[Path(samples.keys[i]).stem]
            with Image.open(io.BytesIO(samples.read(i))) as image:
                assert image.mode == "L"
                np.testing.assert_array_equal(np.asarray(image), images[row])
            assert samples.labels[i] == labels[row]


def test_icons_bytes_are_pinned(icons_dir: Path) -> None:
    """The file hashes are a cache's identity: no Pillow or zlib version may change them."""
    data = (icons_dir / "test/arrow-down-circle/f7_arrow-down-circle-fill.png").read_bytes()
    assert hashlib.sha256(data).hexdigest()[:16] == "e62e18b49cbfe3cd"


def test_icons_are_unpacked_once(icons_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGKD_HOME", str(icons_dir.parent))
    before = icons_dir.stat().st_mtime_ns, os.listdir(icons_dir.parent)
    assert open_dataset(["icons"]).splits["test"].paths[0].startswith(str(icons_dir))
    assert (icons_dir.stat().st_mtime_ns, os.listdir(icons_dir.parent)) == before


def test_icons_refuse_a_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    assert "is not an icon set" in open_error(f"icons:{tmp_path}").message
    assert os.listdir(tmp_path) == ["mine.txt"]


def test_icons_refuse_a_damaged_copy(few_icons: Path, tmp_path: Path) -> None:
    root = tmp_path / "icons"
    icons.load(root)
    image = next((root / "val/arrow-down").iterdir())
    whole = image.read_bytes()
    image.write_bytes(whole[:-9])
    error = open_error(f"icons:{root}")
    assert image.name in error.message
    assert remedy(error).startswith(f"rm -r {root} ")
    image.unlink()
    assert image.name in open_error(f"icons:{root}").message
    image.write_bytes(whole)
    open_dataset([f"icons:{root}"])
    (root / icons.MARKER).write_text("an older archive")
    assert "another version" in open_error(f"icons:{root}").message


def test_icons_interrupted_unpack_leaves_nothing(
    few_icons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copy", interrupt)  # all images are written by then
    with pytest.raises(KeyboardInterrupt):
        icons.load(tmp_path / "icons")
    assert os.listdir(tmp_path) == ["few"]


def test_icons_when_another_process_is_first(
    few_icons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copy

    def be_overtaken(*paths: Path) -> None:
        monkeypatch.setattr(shutil, "copy", copy)
        icons.load(tmp_path / "icons")
        copy(*paths)

    monkeypatch.setattr(shutil, "copy", be_overtaken)
    assert len(icons.load(tmp_path / "icons").splits["train"]) == 85
    assert sorted(os.listdir(tmp_path)) == ["few", "icons"]


def test_icons_unpacked_by_two_processes(few_icons: Path, tmp_path: Path) -> None:
    code = (
        "import pathlib, sys; from fgkd.data import icons, open_dataset;"
        "icons.ARCHIVE = pathlib.Path(sys.argv[1]);"
        "print(len(open_dataset(['icons']).splits['train']))"
    )
    command = [sys.executable, "-c", code, str(few_icons)]
    env = os.environ | {"FGKD_HOME": str(tmp_path / "home")}
    runs = [
        subprocess.Popen(command, cwd=REPO, env=env, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [run.communicate()[0] for run in runs] == ["85\n", "85\n"]
    assert os.listdir(tmp_path / "home") == ["icons"]
