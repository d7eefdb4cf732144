"""A run's folder: begun, continued or refused; its journals and what is derived from them."""

from __future__ import annotations

import csv
import datetime
import errno
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.errors import expected

from fgkd import config, files
from fgkd.config import TrainTeacherConfig, args_file
from fgkd.errors import (
    MissingFile,
    MissingOption,
    OptionError,
    OutputExists,
    RunInUse,
    RunMismatch,
    UnreadableFile,
)
from fgkd.progress import Progress
from fgkd.training import run_folder, run_lock
from fgkd.training.run_folder import Parents, RunFacts, RunFolder
from fgkd.views.recipes import ViewIdentity, ViewRecipe
from stages.remedies import remedy

RECIPE = ViewRecipe(hflip=0.5)
FACTS = RunFacts(
    stage="train-teacher", data=("icons",), val_fraction=0.1, views=ViewIdentity(RECIPE, 1, 32)
)


def begin(path: Path, facts: RunFacts = FACTS, **options: Any) -> bool:
    """Begin the run of a teacher."""
    given = config.build(TrainTeacherConfig, {"output": str(path), **options}, "test")
    return RunFolder(path).begin(given, given.run, facts)


class Lines(Progress):
    """Collects what is reported."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, line: str) -> None:
        self.lines.append(line)


def test_a_new_run_has_its_options_and_facts(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "a"
    assert begin(path, epochs=3) is False
    assert args_file.load_yaml(path / "args.yaml")["epochs"] == 3
    found = run_folder.read(path)
    assert (found.stage, found.data, found.val_fraction) == ("train-teacher", ("icons",), 0.1)
    assert (found.views, found.parents) == (FACTS.views, Parents())
    assert found.versions["torch"] == torch.__version__.partition("+")[0]


def test_what_is_there_is_refused_with_both_remedies(tmp_path: Path) -> None:
    """Of another run; a folder that fgkd did not write is to be neither resumed nor renamed."""
    for name, renamed in (("precious", None), ("args.yaml", f"{tmp_path.name}.old1")):
        (tmp_path / name).write_text("x")
        with pytest.raises(OutputExists) as caught:
            begin(tmp_path)
        assert caught.value.path == tmp_path
        assert caught.value.renamed == (renamed and tmp_path.with_name(renamed))
        assert ("--overwrite" in remedy(caught.value)) == bool(renamed)
        assert ("--resume" in remedy(caught.value)) == bool(renamed)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["args.yaml", "precious"]


def test_resume_does_not_write_into_a_folder_that_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(OutputExists):
        begin(tmp_path, resume=True)


@pytest.mark.parametrize("left", [None, "run.json", "run.json.partial"])
def test_resume_of_nothing_begins(tmp_path: Path, left: str | None) -> None:
    """Also where a crash left less than a run."""
    path = tmp_path / "a"
    if left:
        begin(path)
        (path / "args.yaml").unlink()
        (path / "run.json").rename(path / left)
    assert begin(path, resume=True) is False
    assert (path / "args.yaml").exists()
    assert run_folder.read(path).stage == "train-teacher"


def test_overwrite_moves_aside_and_counts(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for number in range(3):
        begin(path, overwrite=True, seed=number)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["a", "a.old1", "a.old2"]
    seeds = [args_file.load_yaml(tmp_path / name / "args.yaml")["seed"] for name in names]
    assert seeds == [2, 0, 1]


def test_overwrite_with_resume_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError) as caught:
        begin(tmp_path / "a", overwrite=True, resume=True)
    assert caught.value.option == "overwrite"


@pytest.mark.parametrize("output", ["", "."])
def test_no_output(output: str) -> None:
    with expected(MissingOption, option="output"):
        files.claim_folder(Path(output), overwrite=True, may_continue=False)


def test_output_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    with expected(OptionError, option="output", value=tmp_path / "f"):
        begin(tmp_path / "f", overwrite=True)


def test_resume_refuses_changed_options_old_to_new(tmp_path: Path) -> None:
    begin(tmp_path, lr=0.1, epochs=3)
    assert begin(tmp_path, lr=0.1, epochs=3, workers=7, log_interval=1.0, resume=True) is False
    with pytest.raises(RunMismatch) as caught:
        begin(tmp_path, lr=0.2, epochs=4, resume=True)
    found = {(one.field, one.old, one.new) for one in caught.value.differences}
    assert found == {("epochs", 3, 4), ("lr", 0.1, 0.2)}
    assert f"--resume --output {tmp_path}" in remedy(caught.value)


CHANGES: list[tuple[dict[str, Any], tuple[str, object, object]]] = [
    ({"parents": Parents(identity_sha256="b", cache="/x")}, ("identity_sha256", "a", "b")),
    ({"val_fraction": 0.2}, ("val_fraction", 0.1, 0.2)),
    (
        {"views": ViewIdentity(ViewRecipe(hflip=0.0), 1, 32)},
        ("views.recipe.hflip", 0.5, 0.0),
    ),
]


@pytest.mark.parametrize(("changes", "difference"), CHANGES)
def test_resume_refuses_another_parents_content(
    tmp_path: Path, changes: dict[str, Any], difference: tuple[str, object, object]
) -> None:
    """A cache may move, but not become another one."""
    begun = replace(FACTS, parents=Parents(identity_sha256="a", cache="/old"))
    begin(tmp_path, begun)
    moved = replace(FACTS, parents=Parents(identity_sha256="a", cache="/new"))
    assert begin(tmp_path, moved, resume=True) is False
    with pytest.raises(RunMismatch) as caught:
        begin(tmp_path, replace(begun, **changes), resume=True)
    assert (caught.value.field, caught.value.old, caught.value.new) == difference


def test_resume_refuses_a_run_of_another_stage(tmp_path: Path) -> None:
    begin(tmp_path)
    with pytest.raises(RunMismatch) as caught:
        begin(tmp_path, replace(FACTS, stage="train-student"), resume=True)
    assert caught.value.field == "stage"
    assert caught.value.stage == "train-teacher"


def test_resume_is_true_once_there_is_a_checkpoint(tmp_path: Path) -> None:
    begin(tmp_path)
    run = RunFolder(tmp_path)
    run.save(run.last, {"step": 3})
    assert begin(tmp_path, resume=True) is True


def test_metrics_are_cut_back_and_the_summary_is_derived(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for epoch in (1, 2, 3):
        extra = {"ema_val_nll": 0.5} if epoch > 1 else {}
        row = {"epoch": epoch, "step": 10 * epoch, "lr": 0.1, "task_loss": 1.0, **extra}
        run.add_row(row, {"epoch": epoch, "step": row["step"], "train_s": 1.5})
    whole = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert sorted(whole) == ["metrics.jsonl", "summary.csv", "timings.jsonl"]
    with open(tmp_path / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[: len(run_folder.METRIC_COLUMNS)] == list(run_folder.METRIC_COLUMNS)
    assert [row["ema_val_nll"] for row in rows] == ["", "0.5", "0.5"]
    assert [row["step"] for row in rows] == ["10", "20", "30"]

    run.cut_back(20)  # the checkpoint is of step 20: the third epoch is run again
    assert [row["step"] for row in files.read_lines(tmp_path / "metrics.jsonl")] == [10, 20]
    run.add_row(json.loads(whole["metrics.jsonl"].splitlines()[2]), {"epoch": 3, "step": 30})
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole["metrics.jsonl"]
    assert (tmp_path / "summary.csv").read_bytes() == whole["summary.csv"]


def test_rows_of_a_run_that_counted_epochs_from_0_are_read_and_continued_from_1(
    tmp_path: Path,
) -> None:
    """As earlier versions did."""
    for epoch in range(3):
        files.append_line(tmp_path / "metrics.jsonl", {"epoch": epoch, "step": 10 * (epoch + 1)})
        files.append_line(tmp_path / "timings.jsonl", {"epoch": epoch, "step": 10 * (epoch + 1)})
    assert [row["epoch"] for row in run_folder.metrics(tmp_path)] == [1, 2, 3]
    run = RunFolder(tmp_path)
    run.cut_back(20)
    run.add_row({"epoch": 3, "step": 30}, {"epoch": 3, "step": 30})
    for name in ("metrics.jsonl", "timings.jsonl"):
        assert [row["epoch"] for row in files.read_lines(tmp_path / name)] == [1, 2, 3]
    assert [row["epoch"] for row in run_folder.metrics(tmp_path)] == [1, 2, 3]


def test_bad_images_are_listed_once(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.add_unreadable([])
    assert not (tmp_path / "bad_images.jsonl").exists()
    run.add_unreadable([("a", "x"), ("b", "y"), ("a", "x")])
    run.add_unreadable([("b", "y"), ("c", "z")])
    found = files.read_lines(tmp_path / "bad_images.jsonl")
    assert [(row["key"], row["reason"]) for row in found] == [("a", "x"), ("b", "y"), ("c", "z")]


def test_only_rank_0_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    shown = Lines()
    run = RunFolder(tmp_path, shown)
    run.log("x")
    run.add_row({"epoch": 0, "step": 1}, {"step": 1})
    run.add_unreadable([("a", "x")])
    run.save(run.last, {"step": 1})
    run.cut_back(0)
    assert list(tmp_path.iterdir()) == []
    assert shown.lines == []


def test_the_log_is_what_was_shown_with_the_time_of_day(tmp_path: Path) -> None:
    shown = Lines()
    run = RunFolder(tmp_path, shown)
    before = datetime.datetime.now().replace(microsecond=0)
    run.log("one\n  more")
    run.log("zwö")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line[21:] for line in lines] == ["one", "  more", "zwö"]
    for line in lines:
        at = datetime.datetime.fromisoformat(line[:19])
        assert before <= at <= datetime.datetime.now()
    assert shown.lines == ["one\n  more", "zwö"]


def test_reading_what_is_not_a_run(tmp_path: Path) -> None:
    with expected(MissingFile, path=tmp_path / "no"):
        run_folder.read(tmp_path / "no")
    with expected(MissingFile, path=tmp_path / "run.json"):
        run_folder.read(tmp_path)


def test_free_options_are_those_that_change_no_number() -> None:
    free = {
        name
        for name, leaf in config.leaves(TrainTeacherConfig).items()
        if leaf.field.metadata["free"]
    }
    assert free == {
        *("output", "resume", "overwrite", "device", "workers", "data", "skip_bad_images"),
        "deterministic",
        *("initial_checkpoint", "channels_last", "compile", "eval_batch_size"),
        *("log_interval", "checkpoint_steps", "dry_run", "json", "tensorboard"),
        *("log_with", "license"),
        *(
            "grad_checkpointing",
            "image_store",
            "image_root",
        ),  # computed twice; kept, and the same without
    }


@pytest.mark.parametrize("found", [3, [1], {}, {"architecture": "convnext_atto"}])
def test_a_run_description_of_another_kind(tmp_path: Path, found: object) -> None:
    files.write_json(tmp_path / "run.json", found)
    with expected(UnreadableFile, path=tmp_path / "run.json"):
        run_folder.read(tmp_path)


def test_rows_of_another_kind_are_forgotten_on_resume(tmp_path: Path) -> None:
    begin(tmp_path)
    rows = [{"a": 1}, {"step": "x"}, {"step": 2}, {"step": 9}]
    for row in rows:
        files.append_line(tmp_path / "metrics.jsonl", row)
    RunFolder(tmp_path).cut_back(5)
    assert files.read_lines(tmp_path / "metrics.jsonl") == [{"step": 2}]


# ---- two processes -------------------------------------------------------------------------

HOLD = """
import os, sys, time
from pathlib import Path
from fgkd.training import run_lock
with run_lock.held(Path(sys.argv[1])):
    if os.fork() == 0:  # a worker, which outlives its parent by a while
        time.sleep(3)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def trained_in(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A run's folder, and a process that trains in it."""
    begin(tmp_path / "run")
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield tmp_path / "run", holder
        holder.kill()


def test_a_second_process_is_refused(
    trained_in: tuple[Path, subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It changes nothing, and goes on once the first was killed, though a worker lives on."""
    path, holder = trained_in
    monkeypatch.setattr(run_lock, "PATIENCE_S", 0.2)
    there = {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}
    for options in ({"resume": True}, {"overwrite": True}):
        given = config.build(TrainTeacherConfig, {"output": str(path), **options}, "test")
        with (
            expected(RunInUse, path=path, pid=holder.pid),
            RunFolder(path).opened(given, given.run, FACTS),
        ):
            raise AssertionError
    assert {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()} == there
    holder.kill()
    holder.wait()
    given = config.build(TrainTeacherConfig, {"output": str(path), "resume": True}, "test")
    with RunFolder(path).opened(given, given.run, FACTS) as resume:
        assert not resume  # it made no checkpoint
        assert (path / run_lock.NAME).exists()
    assert not (path / run_lock.NAME).exists()


def test_a_process_that_ends_soon_is_waited_for(
    trained_in: tuple[Path, subprocess.Popen[str]],
) -> None:
    """As two that find that a run is finished."""
    path, holder = trained_in
    given = config.build(TrainTeacherConfig, {"output": str(path), "resume": True}, "test")
    began = time.monotonic()
    threading.Timer(0.5, holder.kill).start()
    with RunFolder(path).opened(given, given.run, FACTS):
        assert time.monotonic() - began > 0.4


def test_a_run_that_was_killed_can_be_overwritten(
    trained_in: tuple[Path, subprocess.Popen[str]],
) -> None:
    path, holder = trained_in
    holder.kill()
    holder.wait()
    given = config.build(TrainTeacherConfig, {"output": str(path), "overwrite": True}, "test")
    with RunFolder(path).opened(given, given.run, FACTS):
        assert [file.name for file in path.parent.iterdir() if file != path] == ["run.old1"]


def test_a_folder_that_cannot_be_locked_is_used_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    with run_lock.held(tmp_path):
        pass
    with run_lock.held(tmp_path / "missing"):
        pass
    assert not (tmp_path / run_lock.NAME).exists()
