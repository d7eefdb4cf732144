"""A cache behind a URL, read shard by shard: the training of the local folder, in bounded room."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from helpers.failures import Fails, exit_code
from helpers.runs import (
    STUDENT,
    assert_same,
    assert_same_run,
    fgkd,
    kill_at,
    rows,
    run_children,
    run_ranks,
    saved,
)
from helpers.shard_server import serve, shards_of

from fgkd import download
from fgkd.cache import remote
from fgkd.cache.remote import RemoteReader, open_cache
from fgkd.errors import UnusedOption
from fgkd.loading import schedule
from fgkd.loading.train_loader import TrainLoader
from fgkd.views import orders
from fgkd.views.view_set import ViewSet

BLOCK, NUM_SHARDS, BUFFER = 8, 13, 2  # 97 images
FORMATS = ("hdf5", "webdataset")


@pytest.fixture(scope="module")
def caches(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("streamed")
    for format in FORMATS:
        fgkd(
            *("cache-logits", "--teacher", tiny_teacher, "--output", root / format, "--views", 2),
            *("--format", format, "--shard-size", BLOCK, "--workers", 0),
        )
    return {format: root / format for format in FORMATS}


def student(cache: object, run: Path, *more: object) -> tuple[object, ...]:
    """3 epochs x 7 steps; the shards of both views are one file, wanted again each epoch."""
    soft = () if "none" in more else ("--temperature", 2)
    return (
        *("train-student", "--cache", cache, *STUDENT, "--output", run, "--workers", 0),
        *("--epochs", 3, "--batch-size", 16, *soft, "--drop-path", 0.1),
        *("--order", "shard", "--shard-buffer", BUFFER, "--checkpoint-steps", 3, *more),
    )


@pytest.fixture(scope="module")
def local(
    caches: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The run from the local folder, for each format."""
    root = tmp_path_factory.mktemp("local")

    def run(format: str) -> Path:
        if not (root / format).exists():
            fgkd(*student(caches[format], root / format))
        return root / format

    return run


def data_for(format: str, tiny_data: Path) -> tuple[object, ...]:
    """HDF5 shards hold no images."""
    return ("--data", f"folder:{tiny_data}") if format == "hdf5" else ()


@pytest.mark.parametrize("format", FORMATS)
def test_the_url_trains_as_the_folder(
    caches: dict[str, Path],
    tiny_data: Path,
    local: Callable[[str], Path],
    tmp_path: Path,
    format: str,
) -> None:
    """Bit for bit; no shard is fetched more than once an epoch."""
    with serve(caches[format]) as (url, asked):
        fgkd(*student(url, tmp_path / "run", *data_for(format, tiny_data)))
    assert_same_run(tmp_path / "run", local(format))
    shards = shards_of(asked)
    assert len(shards) == NUM_SHARDS
    assert max(shards.values()) <= 3
    once = ("manifest.json", "samples.h5", f"val/clean{shard_suffix(format)}")
    assert [asked[name] for name in once] == [1, 1, 1]
    assert rows(tmp_path / "run")[0]["distill_loss"] > 1e-2


@pytest.mark.parametrize("format", FORMATS)
def test_the_url_is_verified_and_shown_as_the_folder(
    caches: dict[str, Path], tiny_teacher: Path, tiny_data: Path, tmp_path: Path, format: str
) -> None:
    """Its images come with the shards, where these hold them."""
    more = ("--seed", 1, *data_for(format, tiny_data))
    check = ("--verify", "--teacher", tiny_teacher)
    with serve(caches[format]) as (url, _):
        fgkd("inspect", url, *check, "--gallery", tmp_path / "url", *more)
    fgkd("inspect", caches[format], *check, "--gallery", tmp_path / "folder", *more)
    pages = [(tmp_path / name / "index.html").read_text() for name in ("url", "folder")]
    pictures = [re.findall(r'src="(data:image/[^"]+)', page) for page in pages]
    assert len(pictures[0]) > 16
    assert pictures[0] == pictures[1]


def shard_suffix(format: str) -> str:
    return {"hdf5": ".h5", "webdataset": ".tar"}[format]


def test_formats_agree_in_shard_order(local: Callable[[str], Path]) -> None:
    assert_same_run(local("webdataset"), local("hdf5"))


@pytest.mark.parametrize("format", FORMATS)
def test_workers_change_nothing(
    caches: dict[str, Path],
    tiny_data: Path,
    local: Callable[[str], Path],
    tmp_path: Path,
    format: str,
) -> None:
    with serve(caches[format]) as (url, _):
        command = student(url, tmp_path / "run", *data_for(format, tiny_data), "--workers", 2)
        assert run_children([(fgkd, *command)]) == [0]
    assert_same_run(tmp_path / "run", local(format))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_continues_without_the_shards_it_is_done_with(
    caches: dict[str, Path], local: Callable[[str], Path], tmp_path: Path, workers: int
) -> None:
    """Killed in the second epoch's last third; the rest needs the last shards and an epoch."""
    run = tmp_path / "run"
    with serve(caches["webdataset"]) as (url, asked):
        command = student(url, run, "--workers", workers)
        kill_at(("fgkd.training.optim.clip_grad", 14), *command)
        assert saved(run)["step"] == 12  # 2 of 7 steps of epoch 1 are left
        asked.clear()
        assert run_children([(fgkd, *command, "--resume")]) == [0]
        again = shards_of(asked)
    assert_same_run(run, local("webdataset"))
    left = set(orders.shard_order(0, 1, orders.blocks(0, 97, BLOCK), BUFFER)[5 * 16 :].tolist())
    needed = [
        i for i, block in enumerate(orders.blocks(0, 97, BLOCK)) if left & set(block.tolist())
    ]
    assert len(needed) < 6
    assert sum(again.values()) <= NUM_SHARDS + len(needed)


def make_loader(reader: RemoteReader, batch_size: int, workers: int) -> TrainLoader:
    identity = reader.identity
    samples = reader.dataset(fetch=False).splits["train"]
    return TrainLoader(
        ViewSet.of(identity.views, samples, identity.shard_size),
        schedule.Schedule(0, len(samples), batch_size, 2, 2),
        workers=workers,
        cache=reader,
        shard_buffer=BUFFER,
    )


@pytest.mark.parametrize(("batch_size", "workers"), [(2, 0), (16, 0), (2, 2)])
def test_few_shards_are_held_at_a_time(
    caches: dict[str, Path], batch_size: int, workers: int
) -> None:
    """Two buffers and what steps on their way need; nothing is left when it is closed."""
    with serve(caches["webdataset"]) as (url, asked):
        reader = open_cache(url)
        assert isinstance(reader, RemoteReader)
        most = 0
        for batch in make_loader(reader, batch_size, workers).batches(0):
            held = list(reader.folder.glob("shards/*.tar"))
            most = max(most, len(held))
            assert np.isfinite(batch.teacher_BK.numpy()).all()
        assert BUFFER <= most <= 2 * BUFFER + 2
        assert shards_of(asked).total() <= 2 * NUM_SHARDS
        assert list(reader.folder.glob("shards/*")) == []
        reader.close()
        assert not reader.folder.exists()


def test_a_killed_process_s_downloads_are_removed_by_the_next(
    caches: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote.tempfile, "tempdir", str(tmp_path))
    dead = max(psutil.pids()) + 1
    while psutil.pid_exists(dead):
        dead += 1
    left, other = tmp_path / f"fgkd-download-{dead}-abc", tmp_path / "fgkd-download-notes"
    mine = tmp_path / f"fgkd-download-{os.getpid()}-abc"
    for folder in (left, mine, other):
        folder.mkdir()
    (left / "shard.tar").write_bytes(b"x")
    remote.remove_orphans()
    assert (left.exists(), mine.exists(), other.exists()) == (False, True, True)


def test_closing_early_leaves_no_downloads(caches: dict[str, Path]) -> None:
    with serve(caches["webdataset"]) as (url, _):
        reader: Any = open_cache(url)
        batches = make_loader(reader, 16, 0).batches(0)
        next(batches)
        reader.close()
    assert not reader.folder.exists()


def test_the_baseline_downloads_images_only(caches: dict[str, Path], tmp_path: Path) -> None:
    """Labels only, from the same URL, at any temperature."""
    with serve(caches["webdataset"]) as (url, _):
        fgkd(*student(url, tmp_path / "url", "--distillation", "none"))
    fgkd(*student(caches["webdataset"], tmp_path / "folder", "--distillation", "none"))
    assert_same_run(tmp_path / "url", tmp_path / "folder")
    assert "distill_loss" not in rows(tmp_path / "url")[0]


@pytest.mark.parametrize("format", FORMATS)
def test_two_processes_split_the_shards(
    caches: dict[str, Path], tiny_data: Path, tmp_path: Path, format: str
) -> None:
    """Each shard goes to one of them, but for those where their parts meet; one student results."""
    with serve(caches[format]) as (url, asked):
        command = student(url, tmp_path / "two", *data_for(format, tiny_data), "--epochs", 1)
        run_ranks(2, *command)
        shards = shards_of(asked)
        run_ranks(2, *student(caches[format], tmp_path / "again", "--epochs", 1))
    assert len(shards) == NUM_SHARDS
    assert shards.total() <= NUM_SHARDS + 2 * BUFFER  # 26 if each took them all
    assert_same(saved(tmp_path / "two"), saved(tmp_path / "again"))
    assert [row["step"] for row in rows(tmp_path / "two")] == [7]


# ---- what must not pass ------------------------------------------------------------------------


def test_a_url_is_read_shard_by_shard_without_being_told(
    caches: dict[str, Path], tmp_path: Path, fails: Fails
) -> None:
    """And not otherwise: that is refused before anything is fetched."""
    short = (*STUDENT, "--epochs", 1, "--workers", 0, "--batch-size", 16)
    with serve(caches["webdataset"]) as (url, asked):
        command = ("train-student", "--cache", url, *short, "--output", tmp_path / "run")
        assert isinstance(fails(*command, "--order", "sample").error, UnusedOption)
        assert not asked
        fgkd(*command)
        fgkd(*command[:-1], tmp_path / "told", "--order", "shard")
    assert_same(saved(tmp_path / "run"), saved(tmp_path / "told"))


def test_hdf5_behind_a_url_needs_the_images(
    caches: dict[str, Path], tmp_path: Path, fails: Fails
) -> None:
    with serve(caches["hdf5"]) as (url, _):
        said = fails(*student(url, tmp_path / "run"))
    assert "data is required" in said
    assert "hold no images" in said


@pytest.mark.parametrize("damage", ["flipped", "short", "gone"])
@pytest.mark.parametrize("format", FORMATS)
def test_a_damaged_or_missing_shard_is_refused(
    caches: dict[str, Path],
    tiny_data: Path,
    tmp_path: Path,
    fails: Fails,
    format: str,
    damage: str,
) -> None:
    """Whichever of an epoch's shards it is; with its URL, and no training from it."""
    copy = tmp_path / "cache"
    shutil.copytree(caches[format], copy)
    victim = sorted(copy.glob("shards/*"))[5]
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data if damage == "flipped" else data[:-512])
    if damage == "gone":
        victim.unlink()
    with serve(copy) as (url, _):
        said = fails(*student(url, tmp_path / "run", *data_for(format, tiny_data)))
    name = f"{url}/shards/{victim.name}"
    why = {
        "flipped": f"shard {name} is damaged: its sha256 is not the manifest's",
        "short": f"shard {name} is damaged: it has {len(data) - 512} bytes, not {len(data)}",
        "gone": f"cannot fetch {name}: it is not there",
    }[damage]
    assert why in said
    assert not (tmp_path / "run/model").exists()


def test_no_cache_behind_the_url(
    tmp_path: Path,
    fails: Fails,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An empty server, and none at all; the remedy is a command that shows the reason."""
    with serve(tmp_path) as (url, _):
        said = fails(*student(url, tmp_path / "run"))
        assert f"cannot fetch {url}/manifest.json: it is not there" in said
        assert f"curl -I {url}/manifest.json" in said
    monkeypatch.setattr(download, "FIRST_PAUSE_S", 0.01)
    assert exit_code(*student(url, tmp_path / "run")) == 1
    warnings, _, said = capsys.readouterr().err.partition("error: ")
    assert f"cannot fetch {url}/manifest.json: " in said
    assert warnings.count("trying again") == download.ATTEMPTS - 1
    said = fails(*student("nosuch://host/cache", tmp_path / "run"))
    assert "cannot fetch nosuch://host/cache/manifest.json: " in said
