"""Promise 2: a training killed at any point and continued leaves the files of an unbroken one.

Children are killed with SIGKILL, data loading workers included, at a counted call: so that each
test dies where it says, between two steps, between two files or inside the writing of one.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.failures import copy_data, exit_code
from helpers.runs import (
    STUDENT,
    TEACHER,
    Point,
    assert_same_run,
    fgkd,
    kill_at,
    rows,
    run_children,
    saved,
)

# Where one training dies, and dies again after each resume: 3 epochs x 7 steps, saved every 3.
STUDENT_POINTS: list[Point] = [
    ("os.fsync", 1),  # inside the first file of the run
    ("fgkd.config.args_file.save_args", 1),  # run.json is there, args.yaml is not
    ("fgkd.training.optim.clip_grad", 2),  # before the first checkpoint
    ("os.replace", 1),  # the first checkpoint is written but not yet in place
    ("fgkd.training.optim.clip_grad", 5),  # inside epoch 0, two steps after a checkpoint
    ("fgkd.training.checkpoint.to_cpu", 1),  # epoch 0 is evaluated, nothing of it kept
    ("fgkd.models.save", 1),  # best.pt is new, model/ is not there
    ("os.replace", 3),  # model.safetensors is there, its config.json is not
    ("fgkd.files.append_line", 1),  # the best model is kept, the epoch's row is not
    ("fgkd.files.append_line", 2),  # metrics.jsonl has the row, timings.jsonl does not
    ("fgkd.files.write_text", 1),  # the row is there, summary.csv is old
    ("fgkd.training.optim.clip_grad", 6),  # inside epoch 1, the rows of epoch 0 are there
    ("fgkd.training.checkpoint.save", 3),  # all of epoch 1 is written but its checkpoint
    ("os.fsync", 4),  # inside a checkpoint of epoch 2
]
WORKER_POINTS: list[Point] = [
    ("fgkd.training.optim.clip_grad", 5),
    ("fgkd.training.checkpoint.save", 3),
    ("fgkd.training.optim.clip_grad", 4),
]


def student(output: Path, cache: Path, workers: int) -> tuple[object, ...]:
    """A student with every state that a checkpoint must hold: averages and sums of an epoch.

    And with all that is keyed, which it need not hold: order, views, dropout, drop path.
    """
    return (
        *("train-student", "--cache", cache, *STUDENT, "--output", output, "--workers", workers),
        *("--epochs", 3, "--batch-size", 16, "--checkpoint-steps", 3, "--grad-accum-steps", 2),
        *("--drop", 0.1, "--drop-path", 0.2, "--model-ema", "--model-ema-samples", 50),
    )


def continue_through(points: list[Point], command: tuple[object, ...]) -> None:
    """Kill the command at the first point, its resumption at the next, and so on; then finish."""
    kill_at(points[0], *command)
    for point in points[1:]:
        kill_at(point, *command, "--resume")
    assert run_children([(fgkd, *command, "--resume")]) == [0]


@pytest.fixture(scope="module")
def unbroken(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student run that nothing stopped."""
    run = tmp_path_factory.mktemp("unbroken") / "run"
    fgkd(*student(run, tiny_cache, workers=0))
    assert [row["step"] for row in rows(run)] == [7, 14, 21]
    return run


@pytest.mark.parametrize(
    ("workers", "points"), [(0, STUDENT_POINTS), (2, WORKER_POINTS)], ids=["0", "2"]
)
def test_a_student_killed_again_and_again_ends_as_the_unbroken_one(
    tiny_cache: Path, unbroken: Path, tmp_path: Path, workers: int, points: list[Point]
) -> None:
    """Weights, averages, optimizer, best, exported model, metrics and summary, bit for bit."""
    continue_through(points, student(tmp_path / "run", tiny_cache, workers))
    assert_same_run(tmp_path / "run", unbroken)


def test_how_often_a_run_saves_changes_nothing(
    tiny_cache: Path, unbroken: Path, tmp_path: Path
) -> None:
    """Nor does the number of workers."""
    fgkd(*student(tmp_path / "run", tiny_cache, workers=2), "--checkpoint-steps", 0)
    assert_same_run(tmp_path / "run", unbroken)


def test_a_finished_run_is_left_alone_by_resume(
    tiny_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says so and exits 0."""
    command = student(tmp_path / "run", tiny_cache, workers=0)
    fgkd(*command, "--epochs", 1)
    before = saved(tmp_path / "run")
    written = (tmp_path / "run/checkpoints/last.pt").stat().st_mtime_ns
    fgkd("train-student", "--output", tmp_path / "run", "--resume")
    assert "is finished (7 steps); nothing to do" in capsys.readouterr().out
    assert (tmp_path / "run/checkpoints/last.pt").stat().st_mtime_ns == written
    assert before["step"] == 7


def test_a_teacher_killed_and_continued_ends_as_the_unbroken_one(
    tiny_data: Path, tmp_path: Path
) -> None:
    """The same, for train-teacher: killed inside epochs 0 and 1 and between the two."""

    def teacher(output: Path) -> tuple[object, ...]:
        return (
            *("train-teacher", "--data", f"folder:{tiny_data}", *TEACHER, "--output", output),
            *("--epochs", 2, "--batch-size", 16, "--workers", 0, "--checkpoint-steps", 3),
            *("--drop", 0.1, "--drop-path", 0.2, "--aug-recipe", "randaug"),
        )

    fgkd(*teacher(tmp_path / "unbroken"))
    points = [
        ("fgkd.training.optim.clip_grad", 5),
        ("fgkd.files.append_line", 2),
        ("fgkd.training.optim.clip_grad", 6),
    ]
    continue_through(points, teacher(tmp_path / "broken"))
    assert_same_run(tmp_path / "broken", tmp_path / "unbroken")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_that_an_error_of_the_data_ended_is_continued(
    tiny_data: Path, tmp_path: Path, workers: int
) -> None:
    """The steps before it are saved, and once the file is mended the run ends as the unbroken one.

    Without checkpoints in between: at the error one is written.
    """
    data, run = copy_data(tiny_data, tmp_path / "data"), tmp_path / "run"
    command = (
        *("train-teacher", "--data", f"folder:{data}", *TEACHER, "--epochs", 2),
        *("--batch-size", 16, "--workers", workers, "--checkpoint-steps", 0),
    )
    fgkd(*command, "--output", tmp_path / "unbroken")
    image = sorted(data.glob("train/*/*.png"))[5]
    whole = image.read_bytes()
    image.write_bytes(whole[:100])
    assert exit_code(*command, "--output", run) == 1
    assert 0 < saved(run)["step"] < rows(tmp_path / "unbroken")[0]["step"]
    image.write_bytes(whole)
    fgkd(*command, "--output", run, "--resume")
    assert_same_run(run, tmp_path / "unbroken")
