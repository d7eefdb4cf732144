"""Outputs that must not be written over, and what a capture says of its teacher."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.failures import Fails, copy_data
from helpers.runs import STUDENT, TEACHER, fgkd, tree

import fgkd as library
from fgkd.commands.teacher_accuracy import TeacherAccuracy
from fgkd.errors import OptionError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("where", [".", "train", ".."])
def test_overwrite_never_moves_an_input(
    where: str, fails: Fails, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    """The data's folder, one inside it that is not fgkd's, and the one around it."""
    data = copy_data(tiny_data, tmp_path / "in" / "data")
    before, output = tree(tmp_path), (data / where).resolve()
    spec = ("--data", f"folder:{data}")
    for command in (
        ("train-teacher", *spec, *TEACHER),
        ("cache-logits", *spec, "--teacher", tiny_teacher),
        ("train-student", "--distillation", "none", *spec, *STUDENT),
    ):
        said = fails(*command, "--output", output, "--overwrite")
        assert isinstance(said.error, OptionError)
        assert said.error.option == "output"
        assert tree(tmp_path) == before


def test_overwrite_never_moves_the_teacher_or_the_cache(
    fails: Fails, tiny_teacher: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(tiny_teacher, tmp_path / "run")
    before = tree(tmp_path)
    said = fails("cache-logits", "--teacher", run, "--output", run, "--overwrite")
    assert isinstance(said.error, OptionError)
    assert tree(tmp_path) == before


def test_overwrite_renames_what_fgkd_wrote_alone(
    fails: Fails, tiny_cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("text")
    command = ("train-student", "--cache", tiny_cache, *STUDENT, "--epochs", 1, "--workers", 0)
    said = fails(*command, "--output", tmp_path / "mine", "--overwrite")
    assert isinstance(said.error, OptionError)
    assert tree(tmp_path) == {"mine/thesis.txt": b"text"}
    fgkd(*command, "--output", tmp_path / "run")
    first = tree(tmp_path / "run")
    fgkd(*command, "--output", tmp_path / "run", "--overwrite")
    assert tree(tmp_path / "run.old1") == first


def test_capture_ends_with_the_teachers_accuracy(
    tiny_teacher: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On val as evaluate finds it, on the views as inspect does; a random teacher is warned of."""
    command = ("cache-logits", "--views", 2, "--encoding", "dense32", "--workers", 0)
    fgkd(*command, "--teacher", tiny_teacher, "--output", tmp_path / "cache")
    out = capsys.readouterr().out
    val = library.evaluate(tiny_teacher, split="val", workers=0).top1[0]
    views = library.open_cache(tmp_path / "cache").teacher_top1
    assert f"{views:.2f} % on train's views, {val:.2f} % on val" in out
    assert "WARNING" not in out
    again = library.cache_logits(
        teacher=str(tiny_teacher), views=2, encoding="dense32", workers=0,
        output=str(tmp_path / "cache"),
    )  # fmt: skip
    assert again.accuracy == TeacherAccuracy(views, val, pytest.approx(100 * 17 / 129))
    random = tmp_path / "random"
    short = ("--epochs", 1, "--lr", 1e-6, "--min-lr", 1e-7, "--workers", 0, "--batch-size", 16)
    fgkd("train-teacher", "--data", f"folder:{tiny_data}", *TEACHER, "--output", random, *short)
    capsys.readouterr()
    fgkd(*command, "--teacher", random, "--output", tmp_path / "bad")
    assert "WARNING: that is near chance" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("views", "val", "chance", "near"),
    [
        (1.0, 0.9, 1.0, True),
        (5.0, 8.0, 1.0, False),
        (52.0, 51.0, 50.0, True),
        (60.0, None, 50.0, False),
        (None, 14.0, 12.5, True),
        (100.0, 100.0, 100.0, False),  # one class
        (None, None, 12.5, False),
    ],
)
def test_near_chance(views: float | None, val: float | None, chance: float, near: bool) -> None:
    assert TeacherAccuracy(views, val, chance).is_near_chance == near


@pytest.mark.parametrize("format", ["hdf5", "webdataset"])
@pytest.mark.parametrize("num_bytes", [3_000, 20_000])
def test_a_full_disk_ends_a_capture_with_an_error(
    format: str, num_bytes: int, tiny_teacher: Path, tmp_path: Path
) -> None:
    """In a process of its own, which exits as after any error; the same command continues."""
    args = ["cache-logits", "--teacher", str(tiny_teacher), "--output", str(tmp_path / "cache")]
    args += ["--views", "4", "--workers", "0", "--encoding", "dense32", "--format", format]
    code = (
        "import resource, sys\nfrom stages.cli import main\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({num_bytes}, resource.RLIM_INFINITY))\n"
        "main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, *args]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 1, found.stderr
    assert "error: cannot write" in found.stderr
    assert "Traceback" not in found.stderr
    fgkd(*args)
    assert library.open_cache(tmp_path / "cache").views == 4
