"""What the tests of the stages share: the icons, a tiny data set of them, a teacher, a cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.failures import Fails, make_fails
from helpers.runs import STUDENT, TEACHER, fgkd
from PIL import Image

from fgkd.data import icons

NUM_CLASSES = 8
PER_CLASS = {"train": 12, "val": 4, "test": 4}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tests share few cores; and a thread count is part of what makes sums equal."""
    torch.set_num_threads(1)


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """Run a command that must fail; what it said."""
    return make_fails(capsys)


@pytest.fixture(scope="session")
def icons_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """FGKD_HOME for the session: `--data icons` is unpacked there, once."""
    home = tmp_path_factory.mktemp("home")
    patch = pytest.MonkeyPatch()
    patch.setenv("FGKD_HOME", str(home))
    yield home
    patch.undo()


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageFolder of 8 classes of icons: 97 train (the first class has one more), 32, 32."""
    root = tmp_path_factory.mktemp("tiny") / "data"
    with np.load(icons.ARCHIVE) as archive:
        images, labels, names = archive["images"], archive["labels"], archive["classes"]
        is_test = archive["split"] == "test"
    for label in range(NUM_CLASSES):
        rest = iter(np.flatnonzero((labels == label) & ~is_test))
        tests = iter(np.flatnonzero((labels == label) & is_test))
        for split, count in PER_CLASS.items():
            folder = root / split / str(names[label])
            folder.mkdir(parents=True)
            for number in range(count + (label == 0 and split == "train")):
                row = next(tests if split == "test" else rest)
                Image.fromarray(images[row]).save(folder / f"{number:02d}.png")
    return root


@pytest.fixture(scope="session")
def tiny_teacher(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished teacher run with logits of some size, whose views are flipped and jittered."""
    run = tmp_path_factory.mktemp("teacher") / "run"
    fgkd(
        *("train-teacher", "--data", f"folder:{tiny_data}", *TEACHER, "--output", run),
        *("--epochs", 4, "--lr", 1e-2, "--batch-size", 16, "--workers", 0, "--color-jitter", 0.3),
    )
    return run


@pytest.fixture(scope="session")
def tiny_cache(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two views by the teacher in float64, stored as float32: its rounding hides batch noise."""
    cache = tmp_path_factory.mktemp("cache") / "dense32"
    fgkd(
        *("cache-logits", "--teacher", tiny_teacher, "--output", cache, "--views", 2),
        *("--encoding", "dense32", "--dtype", "float64", "--shard-size", 20, "--workers", 0),
    )
    return cache


@pytest.fixture
def any_flowers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torchvision take a miniature's lists for Flowers-102, whose MD5 it checks."""
    from torchvision.datasets import Flowers102

    files = {name: (file, None) for name, (file, _) in Flowers102._file_dict.items()}
    monkeypatch.setattr(Flowers102, "_file_dict", files)


@pytest.fixture(scope="session")
def tiny_runs(
    tiny_teacher: Path, tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The teacher, a student of its cache, and the baseline on the same views."""
    root = tmp_path_factory.mktemp("runs")
    for name, how in (("baseline", ("--distillation", "none")), ("student", ())):
        fgkd(
            *("train-student", "--cache", tiny_cache, *STUDENT, *how, "--output", root / name),
            *("--epochs", 8, "--batch-size", 16, "--lr", 5e-3, "--workers", 0),
        )
    return {"teacher": tiny_teacher, "baseline": root / "baseline", "student": root / "student"}


@pytest.fixture(scope="session")
def tiny_report(tiny_runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of `evaluate --report` on the three runs."""
    folder = tmp_path_factory.mktemp("report")
    fgkd("evaluate", *tiny_runs.values(), "--report", folder, "--workers", 0)
    return folder / "index.html"


@pytest.fixture(scope="session")
def tiny_gallery(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of `inspect --gallery` on the tiny cache."""
    folder = tmp_path_factory.mktemp("gallery")
    fgkd("inspect", tiny_cache, "--gallery", folder)
    return folder / "index.html"
