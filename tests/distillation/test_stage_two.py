"""Stage two needs no teacher, neither on disk nor in memory, and few targets at a time."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import timm
from helpers.runs import STUDENT, TEACHER, fgkd, rows, run_children, tree
from PIL import Image

from fgkd.cache.reader import Reader

NUM_CLASSES, VIEWS = 2000, 4  # one image per class
MIB = 1 << 20
VIEW = NUM_CLASSES * NUM_CLASSES * 4 / MIB  # MiB of one view's targets, float32
SLACK = 16  # MiB: the targets of a few batches, the loss, the manifest


def test_the_teacher_is_neither_read_nor_built(
    tiny_teacher: Path, tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its folder gone and only one model allowed, the same student comes out."""
    command = ("train-student", "--cache", tiny_cache, *STUDENT, "--epochs", 2, "--workers", 0)
    fgkd(*command, "--output", tmp_path / "before")
    built: list[str] = []
    real = timm.create_model

    def create_once(name: str, *args: Any, **kwargs: Any) -> Any:
        built.append(name)
        assert len(built) == 1, f"a second model was built: {name}"
        return real(name, *args, **kwargs)

    away = tmp_path / "away"
    shutil.move(tiny_teacher, away)
    try:
        monkeypatch.setattr(timm, "create_model", create_once)
        fgkd(*command, "--output", tmp_path / "after")
    finally:
        shutil.move(away, tiny_teacher)
    assert built == [STUDENT[1]]
    assert tree(tmp_path / "after/model") == tree(tmp_path / "before/model")
    assert "val_agreement_pct" in rows(tmp_path / "after")[0]  # from the cache, too


def peak(output: Path, *command: object) -> None:
    """Run a command and write this process's peak memory to a file, in MiB, files aside.

    The HDF5 library itself, 7 MiB at its first use, is loaded in any case.
    """
    with h5py.File(next(Path(str(command[2])).glob("shards/*.h5"))) as shard:
        assert shard.keys()
    seen, over = [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            status = Path("/proc/self/status").read_text()
            seen.append(int(status.partition("RssAnon:")[2].split()[0]) / 1024)

    watching = threading.Thread(target=watch)
    watching.start()
    fgkd(*command)
    over.set()
    watching.join()
    output.write_text(str(max(seen)))


def peak_hoarding(output: Path, *command: object) -> None:
    """The same with a reader that keeps all that it has read: what must not happen."""
    real, kept = Reader.stored, []

    def hoarding(self: Reader, *args: Any) -> dict[str, np.ndarray]:
        kept.append(real(self, *args))
        return dict(kept[-1])

    Reader.stored = hoarding  # type: ignore[method-assign]
    peak(output, *command)


@pytest.fixture(scope="module")
def wide_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache whose targets are large beside its images: many classes, small everything else."""
    root = tmp_path_factory.mktemp("wide")
    noise = np.random.default_rng(0).integers(0, 256, (NUM_CLASSES, 8, 8), np.uint8)
    for label, image in enumerate(noise):
        folder = root / f"data/train/{label:04d}"
        folder.mkdir(parents=True)
        Image.fromarray(image).save(folder / "0.png")
    small = ("--epochs", 1, "--workers", 0, "--output", root / "teacher")
    fgkd("train-teacher", "--data", f"folder:{root / 'data'}", *TEACHER, *small)
    fgkd(
        *("cache-logits", "--teacher", root / "teacher", "--output", root / "cache"),
        *("--views", VIEWS, "--encoding", "dense32", "--shard-size", 400, "--workers", 0),
    )
    return root / "cache"


def test_stage_two_holds_little_more_than_the_loop_on_labels(
    wide_cache: Path, tmp_path: Path
) -> None:
    """Far less than a view's targets of a large cache; and a reader that hoards is caught."""

    def command(name: str, *more: object) -> tuple[object, ...]:
        return (
            *(tmp_path / f"{name}.txt", "train-student", "--cache", wide_cache, *STUDENT, *more),
            *("--batch-size", 50, "--workers", 0, "--output", tmp_path / name),
        )

    calls = [
        (peak, *command("labels", "--distillation", "none", "--epochs", 1)),
        (peak, *command("cache", "--epochs", VIEWS)),
        (peak_hoarding, *command("hoard", "--epochs", VIEWS)),
    ]
    assert run_children(calls) == [0, 0, 0]
    used = {n: float((tmp_path / f"{n}.txt").read_text()) for n in ("labels", "cache", "hoard")}
    assert used["cache"] - used["labels"] <= SLACK, used
    assert used["hoard"] - used["labels"] > 3 * VIEW, used
