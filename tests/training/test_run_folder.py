"""A run's folder: begun, continued or refused; its journals and what is derived from them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from fgkd import config, files
from fgkd.config import TrainTeacherConfig, args_file
from fgkd.errors import FgkdError
from fgkd.training import run_folder
from fgkd.training.run_folder import RunFolder

FACTS: dict[str, Any] = {
    "data": ["icons"],
    "views": {"seed": 1, "recipe": {"hflip": 0.5}},
    "val_fraction": 0.1,
}


def begin(path: Path, **options: Any) -> bool:
    """Begin a teacher's run."""
    facts = FACTS | {"parents": {}} | options.pop("facts", {})
    stage = options.pop("stage", "train-teacher")
    given = TrainTeacherConfig(output=str(path), **options)
    return RunFolder(path, lambda line: None).begin(stage, given, facts)


def test_a_new_run_has_its_options_and_facts(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "a"
    assert begin(path, epochs=3) is False
    assert args_file.load_yaml(path / "args.yaml")["epochs"] == 3
    assert run_folder.read(path) == {"stage": "train-teacher", **FACTS, "parents": {}}


def test_what_is_there_is_refused_with_both_remedies(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(FgkdError, match="exists and is not empty") as caught:
        begin(tmp_path)
    assert "--resume" in caught.value.hint
    assert "--overwrite" in caught.value.hint
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]


def test_resume_does_not_write_into_a_folder_that_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(FgkdError, match="exists and is not empty"):
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
    assert run_folder.read(path)["stage"] == "train-teacher"


def test_overwrite_moves_aside_and_counts(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for number in range(3):
        begin(path, overwrite=True, seed=number)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["a", "a.old1", "a.old2"]
    seeds = [args_file.load_yaml(tmp_path / name / "args.yaml")["seed"] for name in names]
    assert seeds == [2, 0, 1]


def test_overwrite_with_resume_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FgkdError, match="exclude each other"):
        begin(tmp_path / "a", overwrite=True, resume=True)


@pytest.mark.parametrize("output", ["", "."])
def test_no_output(output: str) -> None:
    with pytest.raises(FgkdError, match="no output folder given"):
        files.claim_folder(Path(output), overwrite=True, may_continue=False)


def test_output_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    with pytest.raises(FgkdError, match="is a file"):
        begin(tmp_path / "f", overwrite=True)


def test_resume_refuses_changed_options_old_to_new(tmp_path: Path) -> None:
    begin(tmp_path, lr=0.1, epochs=3)
    assert begin(tmp_path, lr=0.1, epochs=3, workers=7, log_interval=1.0, resume=True) is False
    with pytest.raises(FgkdError) as caught:
        begin(tmp_path, lr=0.2, epochs=4, resume=True)
    assert "epochs: 3 -> 4" in caught.value.message
    assert "lr: 0.1 -> 0.2" in caught.value.message
    assert f"--resume --output {tmp_path}" in caught.value.hint


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"parents": {"identity_sha256": "b", "cache": "/x"}}, "identity_sha256: a -> b"),
        ({"val_fraction": 0.2}, "val_fraction: 0.1 -> 0.2"),
        ({"views": {"seed": 1, "recipe": {"hflip": 0.0}}}, "views.recipe.hflip: 0.5 -> 0.0"),
    ],
)
def test_resume_refuses_another_parents_content(
    tmp_path: Path, facts: dict[str, Any], said: str
) -> None:
    """A cache may move, but not become another one."""
    parents = {"parents": {"identity_sha256": "a", "cache": "/old"}}
    begin(tmp_path, facts=parents)
    moved = {"parents": {"identity_sha256": "a", "cache": "/new"}}
    assert begin(tmp_path, facts=moved, resume=True) is False
    with pytest.raises(FgkdError, match=said):
        begin(tmp_path, facts=parents | facts, resume=True)


def test_resume_refuses_a_run_of_another_stage(tmp_path: Path) -> None:
    begin(tmp_path)
    with pytest.raises(FgkdError, match="a run of train-teacher, not of train-student"):
        begin(tmp_path, resume=True, stage="train-student")


def test_resume_is_true_once_there_is_a_checkpoint(tmp_path: Path) -> None:
    begin(tmp_path)
    run = RunFolder(tmp_path, lambda line: None)
    run.save(run.last, {"step": 3})
    assert begin(tmp_path, resume=True) is True


def test_metrics_are_cut_back_and_the_summary_is_derived(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, lambda line: None)
    for epoch in range(3):
        extra = {"ema_val_nll": 0.5} if epoch else {}
        row = {"epoch": epoch, "step": 10 * (epoch + 1), "lr": 0.1, "task_loss": 1.0, **extra}
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
    run.add_row(json.loads(whole["metrics.jsonl"].splitlines()[2]), {"epoch": 2, "step": 30})
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole["metrics.jsonl"]
    assert (tmp_path / "summary.csv").read_bytes() == whole["summary.csv"]


def test_bad_images_are_listed_once(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, lambda line: None)
    run.add_bad_images([])
    assert not (tmp_path / "bad_images.jsonl").exists()
    run.add_bad_images([("a", "x"), ("b", "y"), ("a", "x")])
    run.add_bad_images([("b", "y"), ("c", "z")])
    found = files.read_lines(tmp_path / "bad_images.jsonl")
    assert [(row["key"], row["reason"]) for row in found] == [("a", "x"), ("b", "y"), ("c", "z")]


def test_only_rank_0_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    lines: list[str] = []
    run = RunFolder(tmp_path, lines.append)
    run.log("x")
    run.add_row({"epoch": 0, "step": 1}, {"step": 1})
    run.add_bad_images([("a", "x")])
    run.save(run.last, {"step": 1})
    run.cut_back(0)
    assert list(tmp_path.iterdir()) == []
    assert lines == []


def test_the_log_is_what_was_shown(tmp_path: Path) -> None:
    lines: list[str] = []
    run = RunFolder(tmp_path, lines.append)
    run.log("one")
    run.log("zwö")
    assert (tmp_path / "log.txt").read_text() == "one\nzwö\n"
    assert lines == ["one", "zwö"]


def test_reading_what_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(FgkdError, match="no run folder"):
        run_folder.read(tmp_path / "no")
    with pytest.raises(FgkdError, match="no run description at"):
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
        *("grad_checkpointing", "image_store"),  # computed twice; kept, and the same without
    }


@pytest.mark.parametrize("found", [3, [1], {}, {"architecture": "convnext_atto"}])
def test_a_run_description_of_another_kind(tmp_path: Path, found: object) -> None:
    files.write_json(tmp_path / "run.json", found)
    with pytest.raises(FgkdError, match=r"run\.json is damaged, or another program's"):
        run_folder.read(tmp_path)


def test_rows_of_another_kind_are_forgotten_on_resume(tmp_path: Path) -> None:
    begin(tmp_path)
    rows = [{"a": 1}, {"step": "x"}, {"step": 2}, {"step": 9}]
    for row in rows:
        files.append_line(tmp_path / "metrics.jsonl", row)
    RunFolder(tmp_path, lambda line: None).cut_back(5)
    assert files.read_lines(tmp_path / "metrics.jsonl") == [{"step": 2}]
