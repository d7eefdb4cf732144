"""scripts/emoji.py: the dataset of emoji from a miniature of the npm registry."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import importlib
import io
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from PIL import Image

from fgkd.data import open_dataset

SCRIPTS = Path(__file__).parent.parent / "scripts"
RED = '<path fill="#f00" d="M0 0h16v32H0z"/>'  # the left half
EMOJI = ["ant", "apple", "bee"]


@pytest.fixture
def emoji(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield importlib.import_module("emoji")
    sys.modules.pop("emoji", None)


def publish(registry: Path, emoji: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of each set: fxemoji lacks the bee, twemoji has it by another name."""
    sets = {}
    for name, given in emoji.SETS.items():
        icons: dict[str, Any] = {one: {"body": RED, "width": 32, "height": 32} for one in EMOJI}
        content: dict[str, Any] = {"icons": icons, "width": 16, "height": 16}
        if name == "fxemoji":
            del icons["bee"]
        if name == "twemoji":
            icons["honeybee"] = icons.pop("bee")
            content["aliases"] = {"bee": {"parent": "honeybee"}}
        icons |= {"car": {"body": RED}, "rare-ant": {"body": RED}}
        members: dict[str, Any] = {"icons.json": content}
        if name == emoji.NAMES:
            categories = {"Animals & Nature": ["ant", "bee", "wolf"], "Food & Drink": ["apple"]}
            members["metadata.json"] = {"categories": categories | {"Travel": ["car"]}}
        path = registry / given.url(name, "")[1:]
        path.parent.mkdir(parents=True)
        with tarfile.open(path, "w:gz") as archive:
            for member, value in members.items():
                data = json.dumps(value).encode()
                info = tarfile.TarInfo(f"package/{member}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
        sets[name] = dataclasses.replace(given, sha512=digest)
    monkeypatch.setattr(emoji, "SETS", sets)


def build(emoji: Any, output: Path, registry: Path, *options: str) -> None:
    command = [str(output), "--size", "32", "--registry", registry.as_uri(), *options]
    emoji.main(command, standalone_mode=False)


def test_designers_are_in_one_split_each(
    emoji: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    publish(tmp_path / "npm", emoji, monkeypatch)
    build(emoji, tmp_path / "data/emoji", tmp_path / "npm")
    dataset = open_dataset(f"folder:{tmp_path / 'data/emoji'}")
    assert dataset.classes == EMOJI
    counts = {split: len(samples) for split, samples in dataset.splits.items()}
    assert counts == {"train": 3 * 6 - 1, "val": 3 * 2, "test": 3 * 2}
    hands = {
        split: {Path(path).stem for path in samples.paths}
        for split, samples in dataset.splits.items()
    }
    assert hands["test"] == {"twemoji", "openmoji"}
    assert not hands["train"] & hands["val"]
    image = np.asarray(Image.open(dataset.splits["test"].paths[-1]).convert("RGB"))
    assert image.shape == (32, 32, 3)
    assert (image[:, :15] == (255, 0, 0)).all()
    assert (image[:, 17:] == 255).all()
    licences = (tmp_path / "data/emoji/LICENSES.md").read_text()
    assert all(one.licence in licences for one in emoji.SETS.values())
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["emoji"]


def test_emoji_of_everything(emoji: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also those of other categories; not what is in none, and not what one set has."""
    publish(tmp_path / "npm", emoji, monkeypatch)
    build(emoji, tmp_path / "emoji", tmp_path / "npm", "--all")
    assert open_dataset(f"folder:{tmp_path / 'emoji'}").classes == [*EMOJI, "car"]


def test_what_is_there_is_kept(emoji: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    publish(tmp_path / "npm", emoji, monkeypatch)
    (tmp_path / "emoji").mkdir()
    with pytest.raises(click.ClickException):
        build(emoji, tmp_path / "emoji", tmp_path / "npm")


@pytest.mark.parametrize("damage", ["other", "absent"])
def test_an_archive_that_is_not_the_one_expected(
    damage: str, emoji: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing is left behind."""
    publish(tmp_path / "npm", emoji, monkeypatch)
    path = next((tmp_path / "npm").rglob("openmoji*.tgz"))
    if damage == "other":
        path.write_bytes(path.read_bytes()[:-9] + b"x" * 9)
    else:
        path.unlink()
    with pytest.raises(click.ClickException, match="openmoji"):
        build(emoji, tmp_path / "data/emoji", tmp_path / "npm")
    assert not list((tmp_path / "data").iterdir())
