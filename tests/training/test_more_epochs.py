"""What a resumed run takes: more epochs, data that moved, another working folder, no folder yet."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers.failures import Fails
from helpers.runs import STUDENT, TEACHER, assert_same_run, fgkd, rows

from fgkd import device
from fgkd.errors import RunMismatch, TooManyRanks, WrongKind

SHORT = ("--batch-size", 32, "--workers", 0)


@pytest.mark.parametrize(
    "schedule", [("constant",), ("step", "--decay-epochs", 1), ("constant", "--warmup-epochs", 1)]
)
def test_more_epochs_are_those_of_a_run_that_was_as_long_at_once(
    schedule: tuple[object, ...], tiny_data: Path, tmp_path: Path
) -> None:
    """Bit for bit, the default warmup (of the first length) too."""
    command = ("train-teacher", "--data", f"folder:{tiny_data}", *TEACHER, *SHORT)
    command = (*command, "--sched", *schedule)
    fgkd(*command, "--epochs", 2, "--output", tmp_path / "a")
    fgkd("train-teacher", "--resume", "--output", tmp_path / "a", "--epochs", 4)
    warmup = () if "--warmup-epochs" in schedule else ("--warmup-epochs", 0.5)
    fgkd(*command, "--epochs", 4, *warmup, "--output", tmp_path / "b")
    assert [row["epoch"] for row in rows(tmp_path / "a")] == [1, 2, 3, 4]
    assert_same_run(tmp_path / "a", tmp_path / "b")
    fgkd("train-teacher", "--resume", "--output", tmp_path / "a")  # it is a run of 4 epochs now
    assert len(rows(tmp_path / "a")) == 4


def test_a_cosine_run_takes_no_more_epochs(fails: Fails, tiny_data: Path, tmp_path: Path) -> None:
    """Its steps would have been others; nothing is touched, and the remedy trains on."""
    command = ("train-teacher", "--data", f"folder:{tiny_data}", *TEACHER, *SHORT)
    fgkd(*command, "--epochs", 1, "--output", tmp_path / "a")
    before = (tmp_path / "a" / "args.yaml").read_bytes()
    for epochs in (1000, 2):
        said = fails("train-teacher", "--resume", "--output", tmp_path / "a", "--epochs", epochs)
        assert isinstance(said.error, RunMismatch)
        assert [one.field for one in said.error.differences] == ["epochs"]
        assert "--initial-checkpoint" in said.remedy
    assert (tmp_path / "a" / "args.yaml").read_bytes() == before
    options = ("--initial-checkpoint", tmp_path / "a", "--epochs", 1)
    fgkd(*command, *options, "--output", tmp_path / "b")


def test_fewer_epochs_are_refused(fails: Fails, tiny_data: Path, tmp_path: Path) -> None:
    command = ("train-teacher", "--data", f"folder:{tiny_data}", *TEACHER, *SHORT)
    fgkd(*command, "--epochs", 2, "--sched", "constant", "--output", tmp_path / "a")
    said = fails("train-teacher", "--resume", "--output", tmp_path / "a", "--epochs", 1)
    assert isinstance(said.error, RunMismatch)


def test_a_run_is_resumed_from_any_folder_and_after_its_data_moved(
    fails: Fails, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_data, tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    command = ("train-teacher", "--data", "folder:data", *TEACHER, *SHORT, "--sched", "constant")
    fgkd(*command, "--epochs", 1, "--output", "run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    fgkd("train-teacher", "--resume", "--output", tmp_path / "run", "--epochs", 2)
    (tmp_path / "data").rename(tmp_path / "moved")
    again = ("train-teacher", "--resume", "--output", tmp_path / "run", "--epochs", 3)
    said = fails(*again)
    assert "--data folder:" in said.remedy
    fgkd(*again, "--data", f"folder:{tmp_path / 'moved'}")
    assert len(rows(tmp_path / "run")) == 3


def test_resume_without_a_run_says_that_it_begins_one(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("train-teacher", "--data", f"folder:{tiny_data}", *TEACHER, *SHORT, "--epochs", 1)
    fgkd(*command, "--resume", "--output", tmp_path / "a")
    assert f"nothing to resume in {tmp_path / 'a'}" in capsys.readouterr().out
    fgkd(*command, "--output", tmp_path / "b")
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_a_run_given_as_a_cache(fails: Fails, tiny_teacher: Path, tmp_path: Path) -> None:
    said = fails("train-student", "--cache", tiny_teacher, *STUDENT, "--output", tmp_path / "x")
    assert isinstance(said.error, WrongKind)
    assert said.remedy_argv == [
        *("fgkd", "cache-logits", "--teacher", str(tiny_teacher), "--output", "CACHE")
    ]


def test_bad_images_that_were_left_out_are_counted_on_the_console(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of train and val, in training and in capture, with the place of the list."""
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    for split in ("train", "val"):
        min((data / split).rglob("*.png")).write_bytes(b"no image")
    given = ("--skip-bad-images", "--workers", 0)
    command = ("train-teacher", "--data", f"folder:{data}", *TEACHER, *given, "--epochs", 1)
    fgkd(*command, "--output", tmp_path / "t")
    path = tmp_path / "t" / "bad_images.jsonl"
    assert f"left out 2 unreadable images: {path}" in capsys.readouterr().out
    assert len(path.read_text().splitlines()) == 2
    cache = ("--teacher", tmp_path / "t", "--views", 1, *given, "--output", tmp_path / "c")
    fgkd("cache-logits", *cache)
    path = tmp_path / "c" / "bad_images.jsonl"
    assert f"left out 2 unreadable images: {path}" in capsys.readouterr().out
    assert len(path.read_text().splitlines()) == 2


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    for name in ("auto", "cuda"):
        with pytest.raises(TooManyRanks) as caught:
            device.pick(name)
        assert caught.value.count == 2


def test_evaluate_names_the_views_of_a_run(
    tiny_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fgkd("evaluate", tiny_teacher, "--workers", 0)
    assert "trained on views: crop 0.5-1 of the area" in capsys.readouterr().out
