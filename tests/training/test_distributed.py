"""Two processes do the work of one: the same student, the same evaluation, files written once."""

from __future__ import annotations

import functools
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from helpers.runs import STUDENT, TEACHER, fgkd, rows, run_ranks, saved, start_ranks, tree

# Plain SGD moves in proportion to the gradient. Adam's step is the gradient over its own size, so
# that of an attention's key bias, whose gradient is rounding alone, is arbitrary.
RUN = (
    *("--epochs", 3, "--batch-size", 16, "--workers", 0, "--drop-path", 0.2),
    *("--opt", "sgd", "--lr", 0.05, "--model-ema", "--model-ema-samples", 100),
)


def assert_close(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    """Equal but for the order of a sum's terms."""
    assert list(got) == list(want)
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-4, atol=1e-5, msg=name)


def assert_same_training(got: Path, want: Path) -> None:
    """Weights and metrics agree; every epoch has one row, and every line of the log is there once.

    The last batch of an epoch is one image here, which is no image for one of the two ranks.
    """
    for part in ("model", "ema"):
        assert_close(saved(got)[part], saved(want)[part])
    assert [row["step"] for row in rows(got)] == [7, 14, 21]
    for row, expected in zip(rows(got), rows(want), strict=True):
        assert row == pytest.approx(expected, rel=1e-3)
    assert list(tree(got)) == list(tree(want))
    log = (got / "log.txt").read_text()
    assert (log.count("fgkd train-"), len(re.findall("  epoch ./3  val top-1", log))) == (1, 3)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_student_trained_by_two_processes_is_that_of_one(
    tiny_cache: Path, tmp_path: Path, accumulate: int
) -> None:
    """From a cache, with drop path keyed by sample; with and without micro-batches."""
    command = ("train-student", "--cache", tiny_cache, *STUDENT, *RUN)
    fgkd(*command, "--output", tmp_path / "one")
    run_ranks(2, *command, "--output", tmp_path / "two", "--grad-accum-steps", accumulate)
    assert_same_training(tmp_path / "two", tmp_path / "one")


def test_a_teacher_trained_by_two_processes_is_that_of_one(tiny_data: Path, tmp_path: Path) -> None:
    """The same for train-teacher."""
    command = ("train-teacher", "--data", f"folder:{tiny_data}", *TEACHER, *RUN)
    fgkd(*command, "--output", tmp_path / "one")
    run_ranks(2, *command, "--output", tmp_path / "two")
    assert_same_training(tmp_path / "two", tmp_path / "one")


def test_two_processes_evaluate_every_image_once(
    tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    """An odd number of images: a padded sampler would count one twice."""
    shutil.copytree(tiny_data / "test", tmp_path / "odd" / "test")
    next((tmp_path / "odd").rglob("*.png")).unlink()
    options = ("--data", f"folder:{tmp_path / 'odd'}", "--workers", 0, "--batch-size", 5)
    fgkd("evaluate", tiny_teacher, *options, "--json", tmp_path / "one.json")
    run_ranks(2, "evaluate", tiny_teacher, *options, "--json", tmp_path / "two.json")
    one, two = (json.loads((tmp_path / f"{n}.json").read_text())[0] for n in ("one", "two"))
    assert two["num_images"] == one["num_images"] == 31
    for name in ("top1_pct", "top5_pct", "mean_class_pct", "nll", "ece_pct"):
        assert two[name] == pytest.approx(one[name], rel=1e-5)


def _spared(tiny_data: Path, root: Path, *compilation: object) -> None:
    """Three runs, in this process or in each of several: a frozen backbone, compiled, BatchNorm."""
    command = ("train-teacher", "--data", f"folder:{tiny_data}", *RUN, "--epochs", 1)
    small = ("--model", "resnet10t", "--model-kwargs", "stem_width=4,channels=[4,4,4,4]")
    fgkd(*command, *TEACHER, "--freeze", "--output", root / "frozen")
    small += ("--img-size", 64, "--drop-path", 0, "--batch-size", 17)  # 12 are left in the end
    fgkd(*command, *small, "--output", root / "norms")
    if compilation:
        torch.compile = functools.partial(torch.compile, backend="aot_eager")
    fgkd(*command, *TEACHER, *compilation, "--output", root / "compiled")


def test_freezing_compilation_and_norm_statistics_on_two_processes(
    tiny_data: Path, tmp_path: Path
) -> None:
    """The weights of one process; and what rank 0 saves is what all of them evaluated."""
    _spared(tiny_data, tmp_path / "one")
    ranks = start_ranks(2, _spared, tiny_data, tmp_path / "two", "--compile")
    for child in ranks:
        child.join(120)
    assert [child.exitcode for child in ranks] == [0, 0]
    for name in ("frozen", "compiled"):
        got, want = (saved(tmp_path / root / name)["model"] for root in ("two", "one"))
        assert_close(got, want)
    run = tmp_path / "two/norms"
    fgkd("evaluate", run, "--split", "val", "--workers", 0, "--json", tmp_path / "found.json")
    (found,) = json.loads((tmp_path / "found.json").read_text())
    score = "ema_val_nll" if saved(run, "best")["is_ema"] else "val_nll"
    assert rows(run)[0][score] == pytest.approx(found["nll"], rel=1e-5)
