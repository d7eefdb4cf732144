"""Identity fails closed: change one thing, and producer and consumers refuse, naming it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.failures import Fails, copy_data, exit_code, first_image
from helpers.runs import STUDENT, fgkd, tree
from safetensors.torch import load_file, save_file

import fgkd as library
from fgkd import files
from fgkd.cache.identity import Identity
from fgkd.errors import DamagedCache
from fgkd.files import fingerprint

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def held(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A topk cache of two views, in float64, of blocks of 20."""
    cache = tmp_path_factory.mktemp("held") / "cache"
    options = ("--encoding", "topk", "--top-k", 3, "--temperatures", "1,2")
    fgkd("cache-logits", "-c", tiny_cache / "args.yaml", "--output", cache, *options)
    return cache


@pytest.fixture
def cache(held: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return copy_data(held, tmp_path / "cache")


def again(cache: Path, *more: object) -> tuple[object, ...]:
    """The command that made the cache, into the same folder."""
    return ("cache-logits", "-c", cache / "args.yaml", "--output", cache, *more)


def student(cache: Path, *more: object) -> tuple[object, ...]:
    """A quick training from it."""
    quick = ("--img-size", 32, "--epochs", 1, "--workers", 0, "--output", cache.parent / "out")
    return ("train-student", "--cache", cache, *STUDENT, *quick, *more)


def verify_says(capsys: pytest.CaptureFixture[str], *more: object) -> str:
    """What `inspect --verify` says of something that it must refuse."""
    capsys.readouterr()
    assert exit_code("inspect", "--verify", "--samples", 97, *more) == 1
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert "verified: " not in out
    return out + err


# ---- options of the producer -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--seed", 1), "views.seed: 0 -> 1"),
        (("--encoding", "int8"), "encoding.name: topk -> int8"),
        (("--top-k", 2), "encoding.top_k: 3 -> 2"),
        (("--temperatures", "1,4"), "encoding.temperatures[1]: 2.0 -> 4.0"),
        (("--temperatures", "1,2,4"), "encoding.temperatures: 2 entries -> 3, from [2] on"),
        (("--shard-size", 21), "shard_size: 20 -> 21"),
        (("--dtype", "float32"), "dtype: float64 -> float32"),
        (("--crop-scale", 0.4, 1), "views.recipe.crop_scale[0]: 0.5 -> 0.4"),
        (("--mixup", 0.2), "views.recipe.mixup: 0.0 -> 0.2"),
        (("--cutmix", 0.2), "views.recipe.cutmix: 0.0 -> 0.2"),
        (("--img-size", 40), "views.img_size: 32 -> 40"),
        (("--format", "webdataset"), "format: hdf5 -> webdataset"),
    ],
)
def test_a_changed_option(
    options: tuple[object, ...], said: str, fails: Fails, cache: Path
) -> None:
    """Refused where it would change a cache; the consumer cannot change it either."""
    before = tree(cache)
    error = fails(*again(cache, *options))
    assert f"{cache} holds a cache of another identity:\n  {said}" in error
    assert tree(cache) == before


def test_a_changed_share_of_held_out_images(
    tiny_data: Path, tiny_teacher: Path, tmp_path: Path, fails: Fails
) -> None:
    """Of data without a val split: elsewhere the option has no effect, and is refused as such."""
    data, cache = copy_data(tiny_data, tmp_path / "data"), tmp_path / "cache"
    shutil.rmtree(data / "val")
    command = ("cache-logits", "--teacher", tiny_teacher, "--data", f"folder:{data}", "--views", 1)
    fgkd(*command, "--output", cache, "--workers", 0)
    error = fails(*command, "--output", cache, "--val-fraction", 0.2)
    assert (
        f"{cache} holds a cache of another identity:\n  dataset.val_fraction: 0.1 -> 0.2" in error
    )


# ---- the teacher -------------------------------------------------------------------------------


def nudge_weight(run: Path) -> None:
    path = run / "model/model.safetensors"
    weights = load_file(path)
    next(iter(weights.values())).view(-1)[0] += 1e-3
    save_file(weights, path, metadata={"format": "pt"})


def swap_classes(run: Path) -> None:
    path = run / "model/config.json"
    config = json.loads(path.read_text())
    names = config["label_names"]
    names[0], names[1] = names[1], names[0]
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (nudge_weight, "teachers[0].weights_sha256: "),
        (swap_classes, "teachers[0].weights_sha256: "),  # of the weights and the new order
    ],
)
def test_a_changed_teacher(
    change: Change, said: str, fails: Fails, cache: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    """One weight, or the order of its classes."""
    other = copy_data(tiny_teacher, tmp_path / "teacher")
    change(other)
    before = tree(cache)
    assert said in fails(*again(cache, "--teacher", other))
    assert tree(cache) == before


def test_an_added_teacher(fails: Fails, cache: Path, tiny_teacher: Path) -> None:
    error = fails(*again(cache, "--teacher", tiny_teacher, "--teacher", tiny_teacher))
    assert "teachers: 1 entries -> 2" in error
    assert "ensemble: None -> logits" in error


def test_another_teacher_cannot_vouch(
    capsys: pytest.CaptureFixture[str], cache: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    """--verify --teacher passes on the true one alone."""
    options = ("inspect", "--verify", "--samples", 20)
    assert exit_code(*options, "--teacher", tiny_teacher, cache) == 0
    assert "verified: " in capsys.readouterr().out
    other = copy_data(tiny_teacher, tmp_path / "teacher")
    nudge_weight(other)
    said = verify_says(capsys, "--teacher", other, cache)
    assert "the teacher given is not the cache's teacher" in said
    assert "weights_sha256[0]: " in said


# ---- the data ------------------------------------------------------------------------------------


def change_image(data: Path) -> None:
    path = first_image(data)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def rename_class(data: Path) -> None:
    """The first class becomes the last: the order of all changes."""
    name = min(path.name for path in (data / "train").iterdir())
    for split in ("train", "val", "test"):
        (data / split / name).rename(data / split / "zz")


def remove_class(data: Path) -> None:
    name = max(path.name for path in (data / "train").iterdir())
    for split in ("train", "val", "test"):
        shutil.rmtree(data / split / name)


def remove_val(data: Path) -> None:
    shutil.rmtree(data / "val")


def lengthen_val_image(data: Path) -> None:
    path = first_image(data, "val")
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize(
    ("change", "at_capture", "at_use"),
    [
        (change_image, "train.hashes[", "content of train/"),
        (rename_class, "'zz'", "dataset.classes[0]: "),
        (remove_class, "classes: 8 entries -> 7", "dataset.classes: 8 entries -> 7"),
        (remove_val, "train.keys: 97 entries -> ", "train.keys: 97 entries -> "),
        (lengthen_val_image, "val.sizes[", "val size of val/"),
    ],
)
def test_changed_data(
    change: Change,
    at_capture: str,
    at_use: str,
    fails: Fails,
    capsys: pytest.CaptureFixture[str],
    cache: Path,
    tiny_data: Path,
    tmp_path: Path,
) -> None:
    """One image's bytes at the same length, the order or number of classes, another val split."""
    data = copy_data(tiny_data, tmp_path / "data")
    change(data)
    before, spec = tree(cache), f"folder:{data}"
    assert at_capture in fails(*again(cache, "--data", spec))
    assert tree(cache) == before
    assert at_use in fails(*student(cache, "--data", spec))
    assert at_use in verify_says(capsys, "--data", spec, cache)


# ---- the files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 4])
def test_another_format_version_of_the_cache(
    version: int, fails: Fails, capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    """Of an earlier or a later fgkd: nothing of it is read, nothing is added."""
    said = f"format_version: {version} -> 3"
    identity = files.read_json(cache / "identity.json", "identity") | {"format_version": version}
    files.write_json(cache / "identity.json", identity)
    assert said in fails(*again(cache, "--views", 3))
    held = files.read_json(cache / "manifest.json", "manifest")
    held |= {"identity": identity, "identity_sha256": fingerprint(identity)}
    files.write_json(cache / "manifest.json", held)
    assert said in fails(*student(cache))
    assert said in verify_says(capsys, cache)


def test_an_identity_that_was_edited(
    fails: Fails, capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    """Without its hash; with its hash, the shards are another cache's."""
    held = files.read_json(cache / "manifest.json", "manifest")
    held["identity"]["views"]["seed"] = 1
    files.write_json(cache / "manifest.json", held)
    assert "its identity does not hash to identity_sha256" in fails(*student(cache))
    assert "its identity does not hash" in verify_says(capsys, cache)
    held["identity_sha256"] = fingerprint(held["identity"])
    files.write_json(cache / "manifest.json", held)
    assert "it is of another cache's identity" in fails(*student(cache))
    assert "it is of another cache's identity" in verify_says(capsys, cache)


@pytest.mark.parametrize(
    "changes",
    [
        {"added": [3]},
        {"earlier": ["0" * 64]},
        {"added": [3], "earlier": []},
        {"added": [], "earlier": []},
        {"added": [0], "earlier": ["0" * 64]},
        {"added": [-1], "earlier": ["0" * 64]},
        {"added": [True], "earlier": ["0" * 64]},
        {"added": ["3"], "earlier": ["0" * 64]},
        {"added": 3, "earlier": "0"},
    ],
)
def test_additions_that_are_none(changes: dict[str, Any], cache: Path) -> None:
    described = library.open_cache(cache).identity.to_json()
    assert Identity.from_json(described).to_json() == described
    with pytest.raises(ValueError):
        Identity.from_json(described | changes)


def test_more_images_are_said_to_be_added_than_there_are(cache: Path, tmp_path: Path) -> None:
    copy_data(cache, tmp_path / "copy")
    path = tmp_path / "copy" / "manifest.json"
    held = json.loads(path.read_text())
    held["identity"] |= {"added": [98], "earlier": ["0" * 64]}
    held["identity_sha256"] = fingerprint(held["identity"])
    path.write_text(json.dumps(held))
    (tmp_path / "copy" / "samples.h5").rename(tmp_path / "copy" / "samples-1.h5")
    with pytest.raises(DamagedCache):
        library.open_cache(tmp_path / "copy")
