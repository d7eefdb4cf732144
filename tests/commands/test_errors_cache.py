"""A cache is used only with the data and options it was made of, and only if undamaged."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
from helpers.failures import Fails, copy_data, exit_code, first_image
from helpers.runs import STUDENT, fgkd, tree

from fgkd import files
from fgkd.errors import DataMismatch, Difference, OptionError, TooFewViews

FAST = ("--epochs", 1, "--batch-size", 32, "--workers", 0)


@pytest.fixture
def cache(tiny_cache: Path, tmp_path: Path) -> Path:
    """A copy of the cache that a test may damage."""
    return copy_data(tiny_cache, tmp_path / "cache")


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of its images."""
    return copy_data(tiny_data, tmp_path / "data")


def student(cache: Path, *more: object) -> tuple[object, ...]:
    """A train-student command that takes a second; its run is written next to the cache."""
    return (
        *("train-student", "--cache", cache, *STUDENT, "--img-size", 32),
        *("--output", cache.parent / "student", *FAST, *more),
    )


def test_other_data(fails: Fails, tiny_cache: Path, data: Path, tmp_path: Path) -> None:
    """Other classes, a missing image, another file size: refused before a step, old -> new."""
    cache = tmp_path / "cache"
    shutil.copytree(tiny_cache, cache)
    command = student(cache, "--data", f"folder:{data}")
    victim = sorted((data / "train").iterdir())[1]
    for split in ("train", "val", "test"):
        (data / split / victim.name).rename(data / split / "renamed")
    failure = fails(*command)
    assert isinstance(failure.error, DataMismatch)
    assert failure.error.subject == "data"
    assert str(cache) in failure
    assert (failure.error.field, failure.error.old) == ("dataset.classes[1]", victim.name)
    assert "--data" in failure.remedy
    for split in ("train", "val", "test"):
        (data / split / "renamed").rename(data / split / victim.name)

    image = first_image(data)
    image.rename(tmp_path / "away.png")
    failure = fails(*command)
    assert isinstance(failure.error, DataMismatch)
    assert failure.error.field == "train.keys"
    assert "97" in str(failure.error.old)
    assert "96" in str(failure.error.new)
    assert image.relative_to(data).as_posix() in failure
    shutil.copy(tmp_path / "away.png", image)
    image.write_bytes(image.read_bytes() + b"\0")
    assert f"train size of {image.relative_to(data).as_posix()}: " in fails(*command)
    assert "train size of " in fails(*command, "--skip-bad-images")
    assert not (tmp_path / "student").exists()
    assert "unknown dataset 'fodler'" in fails(*student(cache, "--data", f"fodler:{data}"))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("extra", [(), ("--skip-bad-images",)])
def test_an_image_replaced_by_one_of_its_length(
    fails: Fails, cache: Path, data: Path, workers: int, extra: tuple[str, ...]
) -> None:
    """Only the content hash tells, and it does so before the image's first step."""
    images = sorted((data / "train").rglob("*.png"), key=lambda path: path.stat().st_size)
    old, new = images[-1], images[0]
    key, length = old.relative_to(data).as_posix(), old.stat().st_size
    old.write_bytes(new.read_bytes().ljust(length, b"\0"))
    command = student(cache, "--data", f"folder:{data}", "--workers", workers, *extra)
    failure = fails(*command)
    assert f"content of {key}: " in failure
    assert "--data" in failure.remedy
    assert "--skip-bad-images" not in failure  # it is no unreadable image
    assert not (cache.parent / "student" / "metrics.jsonl").exists()


def test_an_image_lost_after_the_start(
    fails: Fails, cache: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = first_image(data, "val")
    lose = lambda *args: first.unlink(missing_ok=True)  # noqa: E731
    monkeypatch.setattr("fgkd.cache.samples.check_samples", lose)
    assert f"cannot read {first}" in fails(*student(cache, "--data", f"folder:{data}"))


def flip(path: Path, at: float) -> None:
    """Flip one bit, `at` of the way through a file."""
    raw = bytearray(path.read_bytes())
    raw[int(at * len(raw))] ^= 4
    path.write_bytes(raw)


def cut(path: Path, at: float) -> None:
    """Cut a file short."""
    path.write_bytes(path.read_bytes()[: int(at * path.stat().st_size)])


@pytest.mark.parametrize("damage", [flip, cut])
@pytest.mark.parametrize("at", [0.0, 0.5, 0.999])
def test_a_damaged_shard_is_never_used_and_the_remedy_repairs_it(
    fails: Fails, cache: Path, tiny_cache: Path, damage: object, at: float
) -> None:
    shard = sorted((cache / "shards").iterdir())[2]
    damage(shard, at)  # type: ignore[operator]
    failure = fails(*student(cache))
    assert f"shard {shard} is damaged: " in failure
    assert not (cache.parent / "student" / "metrics.jsonl").exists()
    if at == 0.5:
        remove, again = failure.remedy.partition("#")[0].split("&&")
        assert shlex.split(remove) == ["rm", "-f", str(shard)]
        shard.unlink()
        before = {path: path.stat().st_mtime_ns for path in (cache / "shards").iterdir()}
        fgkd(*shlex.split(again)[1:])
        for path, time_ns in before.items():  # nothing else is written
            assert path.stat().st_mtime_ns == time_ns
        now, then = tree(cache), tree(tiny_cache)
        for name in now:
            if name.startswith("shards/") or name == "manifest.json":
                assert now[name] == then[name], name
        assert exit_code(*student(cache, "--overwrite")) == 0


def test_missing_and_foreign_shards(fails: Fails, cache: Path) -> None:
    first, second, *_ = sorted((cache / "shards").iterdir())
    kept = first.read_bytes()
    shutil.copy(second, first)
    assert f"shard {first} is damaged: " in fails(*student(cache))
    first.unlink()
    assert f"shard {first} is damaged: it is missing" in fails(*student(cache, "--resume"))
    first.write_bytes(kept)
    clean = next((cache / "val").iterdir())
    flip(clean, 0.6)
    assert f"shard {clean} is damaged: " in fails(*student(cache, "--resume"))


def test_a_damaged_or_missing_manifest(fails: Fails, cache: Path) -> None:
    path = cache / "manifest.json"
    manifest = json.loads(path.read_text())
    path.unlink()
    assert f"cache {cache} is incomplete" in fails(*student(cache))
    path.write_text(json.dumps(manifest)[:-50])
    assert f"cache manifest {path} is damaged" in fails(*student(cache))
    path.write_text("[]")
    assert "it is not a manifest" in fails(*student(cache))
    edited = {**manifest, "identity": {**manifest["identity"], "shard_size": 21}}
    path.write_text(json.dumps(edited))
    assert "its identity does not hash to identity_sha256" in fails(*student(cache))
    edited["identity"] = {**manifest["identity"], "format_version": 999}
    path.write_text(json.dumps(edited))
    assert "format_version: 999 -> " in fails(*student(cache))


@pytest.mark.parametrize(
    ("args", "option", "value", "remedy"),
    [
        (("--hflip", 0.1), "hflip", 0.1, "leave --hflip out, or write another cache"),
        (("--aug-recipe", "light"), "aug_recipe", "light", "leave --aug-recipe out, or "),
        (("--crop-scale", 0.1, 1), "crop_scale", (0.1, 1.0), "leave --crop-scale out, or "),
        (("--view-seed", 5), "view_seed", 5, "leave --view-seed out"),
        (("--val-fraction", 0.2), "val_fraction", 0.2, "leave --val-fraction out"),
        (("--image-store-side", 24), "image_store_side", 24, "leave --image-store-side out"),
        (("--image-store", "x"), "image_store", "x", "leave --image-store out"),
        (("--teacher", "t"), "teacher", ("t",), "leave --teacher out"),
    ],
)
def test_options_that_a_cache_decides(
    args: tuple[object, ...],
    option: str,
    value: object,
    remedy: str,
    fails: Fails,
    tiny_cache: Path,
    tmp_path: Path,
) -> None:
    command = ("train-student", "--cache", tiny_cache, *STUDENT, "--output", tmp_path / "out")
    failure = fails(*command, *FAST, *args)
    assert isinstance(failure.error, OptionError)
    assert (failure.error.option, failure.error.value) == (option, value)
    assert failure.remedy.startswith(remedy)
    assert not (tmp_path / "out").exists()


def test_more_views_than_a_cache_has(fails: Fails, cache: Path) -> None:
    """Both remedies work: fewer views, or adding some to the cache."""
    failure = fails(*student(cache, "--views", 3))
    assert isinstance(failure.error, TooFewViews)
    assert (failure.error.cache, failure.error.there, failure.error.value) == (str(cache), 2, 3)
    assert not (cache.parent / "student").exists()
    fewer, more = failure.remedy.split(", or add views: ")
    assert exit_code(*student(cache), *shlex.split(fewer), "--output", cache.parent / "two") == 0
    assert exit_code(*shlex.split(more)[1:]) == 0
    assert exit_code(*student(cache, "--views", 3)) == 0


def test_an_incomplete_cache_is_continued_by_the_remedy(
    fails: Fails, cache: Path, tiny_cache: Path
) -> None:
    (cache / "manifest.json").unlink()
    failure = fails(*student(cache))
    assert f"cache {cache} is incomplete" in failure
    assert exit_code(*failure.remedy_argv[1:]) == 0
    now, then = tree(cache), tree(tiny_cache)
    assert {n: now[n] for n in now if n.startswith("shards/") or n == "manifest.json"} == {
        n: then[n] for n in then if n.startswith("shards/") or n == "manifest.json"
    }


@pytest.mark.parametrize(
    ("args", "field", "old", "new"),
    [
        (("--seed", 1), "views.seed", 0, 1),
        (("--encoding", "dense"), "encoding.name", "dense32", "dense"),
        (("--shard-size", 30), "shard_size", 20, 30),
        (("--hflip", 0.25), "views.recipe.hflip", 0.5, 0.25),
        (("--dtype", "float32"), "dtype", "float64", "float32"),
        (("--img-size", 40), "views.img_size", 32, 40),
    ],
)
def test_another_identity_is_refused_and_overwrite_renames_the_old_cache(
    args: tuple[object, ...], field: str, old: object, new: object, fails: Fails, cache: Path
) -> None:
    before = tree(cache)
    command = ("cache-logits", "-c", cache / "args.yaml", "--output", cache, *args)
    failure = fails(*command)
    assert isinstance(failure.error, DataMismatch)
    assert failure.error.subject == "cache"
    assert Difference(field, old, new) in failure.error.differences
    assert f"{field}: {old} -> {new}" in failure
    assert "--overwrite" in failure.remedy
    assert tree(cache) == before
    if args[0] == "--seed":
        fgkd(*command, "--overwrite", "--views", 1)
        assert tree(cache.with_name("cache.old1")) == before
        assert len(files.read_json(cache / "manifest.json", "m")["shards"]) == 5


def test_a_complete_cache_says_so(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(cache)
    assert exit_code("cache-logits", "-c", cache / "args.yaml", "--output", cache) == 0
    assert "is complete with 2 views; nothing to do" in capsys.readouterr().out
    assert tree(cache) == before


def test_a_cache_is_not_written_over_other_files(
    fails: Fails, cache: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    before = tree(tiny_teacher)
    command = ("cache-logits", "-c", cache / "args.yaml", "--output")
    assert isinstance(fails(*command, tiny_teacher).error, OptionError)
    assert tree(tiny_teacher) == before
    (cache / "identity.json").unlink()
    assert "exists and is not empty" in fails(*command, cache)


def test_capture_stops_at_an_unreadable_image_or_leaves_it_out(
    fails: Fails, cache: Path, data: Path, tmp_path: Path
) -> None:
    """An image that is left out has no target, and no student is trained on it."""
    bad = first_image(data)
    bad.write_bytes(b"not an image")
    out = tmp_path / "other"
    command = ("cache-logits", "-c", cache / "args.yaml", "--output", out)
    command = (*command, "--data", f"folder:{data}")
    assert f"cannot decode image {bad}: not an image" in fails(*command)
    assert exit_code(*command, "--skip-bad-images") == 0
    assert exit_code(*student(out)) == 0
    row = next(r for r in files.read_json(out / "manifest.json", "m")["shards"] if r["bad"])
    assert row["bad"] == [bad.relative_to(data).as_posix()]
