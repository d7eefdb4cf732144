"""--image-store from end to end: capture, students, live teachers, verify, kills and refusals."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from helpers.failures import Fails, copy_data, first_image
from helpers.runs import (
    STUDENT,
    TEACHER,
    assert_same,
    assert_same_run,
    fgkd,
    kill_at,
    model_files,
    run_ranks,
    saved,
    tree,
)

from fgkd import files
from fgkd.cache.reader import Reader
from fgkd.files import fingerprint

SIDE = ("--image-store-side", 24)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


@pytest.fixture(scope="module")
def caches(tiny_cache: Path, home: Path) -> dict[str, Path]:
    """One cache a format, of the images of one store; and one without a store, of the same side."""

    def capture(name: str, *more: object) -> Path:
        fgkd("cache-logits", "-c", tiny_cache / "args.yaml", "--output", home / name, *SIDE, *more)
        return home / name

    store = ("--image-store", home / "store")
    return {
        "hdf5": capture("hdf5", *store),
        "webdataset": capture("webdataset", *store, "--format", "webdataset"),
        "shrunk": capture("shrunk"),
    }


def student(run: Path, *source: object) -> Path:
    fgkd(
        *("train-student", *source, *STUDENT, "--output", run, "--workers", 0),
        *("--epochs", 2, "--batch-size", 16),
    )
    return run


def test_identity(caches: dict[str, Path], tiny_cache: Path) -> None:
    """The side is of the identity and where images are kept is not; off, nothing is added."""
    whole, shrunk = Reader(tiny_cache), Reader(caches["hdf5"])
    assert shrunk.identity.views == dataclasses.replace(whole.identity.views, short_side=24)
    assert whole.identity.views.short_side is None
    assert not (shrunk.arrays_of_view(0)["digests"] == whole.arrays_of_view(0)["digests"]).any()
    whole.close()
    shrunk.close()
    assert (
        Reader(caches["hdf5"]).manifest.identity_sha256
        == Reader(caches["shrunk"]).manifest.identity_sha256
    )
    for name in ("manifest.json", *(f"shards/{p.name}" for p in caches["hdf5"].glob("shards/*"))):
        assert (caches["hdf5"] / name).read_bytes() == (caches["shrunk"] / name).read_bytes()


def test_students_are_bit_equal_however_the_images_come(
    caches: dict[str, Path], tiny_teacher: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    """From either format, with the store and without, with a live teacher, behind a URL."""
    store, shards = ("--image-store", caches["hdf5"].parent / "store"), ("--order", "shard")
    live = ("--teacher", tiny_teacher, "--views", 2, "--dtype", "float64", *SIDE)
    want = student(tmp_path / "want", "--cache", caches["hdf5"], *store)
    for name, source in {
        "again": ("--cache", caches["hdf5"], *SIDE),
        "tars": ("--cache", caches["webdataset"], *store),
        "tars alone": ("--cache", caches["webdataset"]),
    }.items():
        assert_same_run(student(tmp_path / name, *source), want)
    for name, more in {"live": store, "live shrunk": ()}.items():
        online = student(tmp_path / name, *live, *more)
        assert_same(saved(online), saved(want))
        assert model_files(online) == model_files(want)
    views = json.loads((want / "run.json").read_text())["views"]
    assert views["image_store"] == {"short_side": 24}
    url = student(tmp_path / "url", "--cache", f"file://{caches['webdataset']}", *shards)
    assert_same_run(url, student(tmp_path / "near", "--cache", caches["hdf5"], *store, *shards))
    other = student(tmp_path / "whole", "--cache", tiny_cache)
    assert model_files(other) != model_files(want)


def test_a_dry_run_says_the_bytes_of_a_store(
    caches: dict[str, Path],
    tiny_data: Path,
    tiny_cache: Path,
    tiny_teacher: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Those of the store that is then written: to come, there, none, and of whole images."""
    there = caches["hdf5"].parent / "store"
    size = (there / "pixels.u8").stat().st_size
    assert size > 0.9 * sum(path.stat().st_size for path in there.iterdir())
    data, out = ("--data", f"folder:{tiny_data}"), ("--output", tmp_path / "out")
    small = ("--workers", 0, "--batch-size", 16, "--epochs", 1)
    shown = files.human_bytes(size)
    for command, side in (
        (("train-teacher", *TEACHER, *data, *small), SIDE),
        (("train-student", *STUDENT, "--cache", caches["hdf5"], *small), ()),
        (("train-student", *STUDENT, "--cache", tmp_path / "no", *data, *small), SIDE),
        (("cache-logits", "--teacher", tiny_teacher, "--views", 1, "--workers", 0), SIDE),
        (("cache-logits", "--teacher", tmp_path / "no", *data), SIDE),
    ):
        for where, said in {
            (): f"  store    none; an image store would take about {shown}\n",
            ("--image-store", there): f"  store    {shown} in {there}, already written\n",
            (
                "--image-store",
                tmp_path / "new",
            ): f"  store    about {shown} in {tmp_path / 'new'}; ",
        }.items():
            capsys.readouterr()
            plan = ("--dry-run", "--json", tmp_path / "plan.json")
            fgkd(*command, *side, *where, *out, *plan)
            assert said in capsys.readouterr().out, command
            assert json.loads((tmp_path / "plan.json").read_text())["image_store_bytes"] == size
    url = ("--cache", f"file://{caches['webdataset']}", "--order", "shard")
    fgkd("train-student", *STUDENT, *url, *small, *out, *plan)
    assert "  store    not known: no image can be read here\n" in capsys.readouterr().out
    fgkd("train-student", *STUDENT, "--cache", tiny_cache, *small, *out, *plan)
    assert "  store  " not in capsys.readouterr().out
    assert json.loads((tmp_path / "plan.json").read_text())["image_store_bytes"] is None
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_inspect(
    caches: dict[str, Path],
    tiny_teacher: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """verify and the gallery render from the original images, and need no store."""
    capsys.readouterr()
    for name in ("hdf5", "webdataset"):
        fgkd("inspect", caches[name], "--verify", "--teacher", tiny_teacher)
        said = capsys.readouterr().out
        assert "views again: 0 differences" in said
        assert "of images with a shorter side of 24 px" in said
    fgkd("inspect", caches["hdf5"], "--gallery", tmp_path / "gallery")
    assert "The pixels of 16 of 16 views" in (tmp_path / "gallery/index.html").read_text()


def test_refusals(
    caches: dict[str, Path], tiny_cache: Path, tiny_data: Path, fails: Fails, tmp_path: Path
) -> None:
    """A store for a cache of whole images, another side, a stale store: and nothing is written."""
    store = ("--image-store", caches["hdf5"].parent / "store")
    out = ("--output", tmp_path / "out")
    learn = ("train-student", *STUDENT, *out)
    whole = f"the views of {tiny_cache} were cropped from full-size images"
    assert whole in fails(*learn, "--cache", tiny_cache, *store)
    assert whole in fails(*learn, "--cache", tiny_cache, *SIDE)
    said = fails(*learn, "--cache", caches["hdf5"], *store, "--image-store-side", 28)
    assert "were made with 24" in said
    url = ("--cache", f"file://{caches['webdataset']}", "--order", "shard")
    assert "come with the shards of a URL" in fails(*learn, *url, *store)
    teach = ("train-teacher", *TEACHER, *out, "--data", f"folder:{tiny_data}")
    assert "image_store_side was not given" in fails(*teach, *store)
    assert "short_side: 24 -> 28" in fails(*teach, *store, "--image-store-side", 28)
    again = ("cache-logits", "-c", tiny_cache / "args.yaml", "--output", tiny_cache)
    assert "views.short_side: None -> 24" in fails(*again, *SIDE)
    assert not (tmp_path / "out").exists()
    data = copy_data(tiny_data, tmp_path / "data")
    image = first_image(data)
    image.write_bytes(image.read_bytes() + b"more")
    moved = ("train-teacher", *TEACHER, *out, "--data", f"folder:{data}")
    assert "is of other images" in fails(*moved, *store, *SIDE)


def test_no_bounding_boxes_of_shrunk_images(tiny_data: Path, fails: Fails, tmp_path: Path) -> None:
    from helpers.datasets import write_cub

    write_cub(tmp_path / "CUB_200_2011", train=6)
    data = ("--data", f"cub:{tmp_path / 'CUB_200_2011'}", "--bbox-crop")
    said = fails("train-teacher", *TEACHER, *data, *SIDE, "--output", tmp_path / "out")
    assert "bounding boxes are those of full-size images" in said
    assert not (tmp_path / "out").exists()


POINTS = (
    ("fgkd.data.image_store.shrink", 50),
    ("os.replace", 3),
    ("os.fsync", 6),
    ("os.replace", 4),
)


def test_killed_while_the_store_is_written(tiny_data: Path, tmp_path: Path) -> None:
    """In the pixels, and around their rename and the index's: --resume writes a whole store."""

    def command(name: str) -> tuple[object, ...]:
        return (
            *("train-teacher", "--data", f"folder:{tiny_data}", *TEACHER, "--epochs", 1, *SIDE),
            *("--image-store", tmp_path / f"{name} store", "--output", tmp_path / name),
            *("--workers", 0, "--batch-size", 32),
        )

    fgkd(*command("want"))
    want = tree(tmp_path / "want store")
    assert list(want) == ["index.json", "pixels.u8"]
    for number, point in enumerate(POINTS):
        kill_at(point, *command(str(number)))
        assert not (tmp_path / f"{number} store/index.json").exists()
        assert (tmp_path / f"{number} store/pixels.u8").exists() == (number >= 2)
        fgkd(*command(str(number)), "--resume")
        assert tree(tmp_path / f"{number} store") == want
        assert_same_run(tmp_path / str(number), tmp_path / "want")


def test_ranks_share_one_store(caches: dict[str, Path], tmp_path: Path) -> None:
    """The first to come writes it, and the others wait."""
    run_ranks(
        *(2, "train-student", "--cache", caches["hdf5"], "--image-store", tmp_path / "store"),
        *(
            *STUDENT,
            "--epochs",
            1,
            "--batch-size",
            16,
            "--workers",
            0,
            "--output",
            tmp_path / "run",
        ),
    )
    assert tree(tmp_path / "store") == tree(caches["hdf5"].parent / "store")


@pytest.mark.parametrize("value", ["x", "24", {"short_side": 24}, -1, 0, 2.5, True, [1]])
def test_a_manifest_that_names_no_side_is_damaged(
    caches: dict[str, Path], tmp_path: Path, fails: Fails, value: object
) -> None:
    cache = copy_data(caches["hdf5"], tmp_path / "cache")
    held = json.loads((cache / "manifest.json").read_text())
    held["identity"]["views"]["short_side"] = value
    held["identity_sha256"] = fingerprint(held["identity"])
    (cache / "manifest.json").write_text(json.dumps(held))
    assert "its identity is not one" in fails("inspect", cache)
