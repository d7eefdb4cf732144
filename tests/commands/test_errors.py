"""Wrong inputs: exit code 1, what happened, a remedy, and nothing written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.failures import Fails, copy_data, exit_code, first_image
from helpers.runs import STUDENT, TEACHER, fgkd, rows

from fgkd import files
from fgkd.errors import (
    CheckpointError,
    DatasetError,
    FileError,
    MissingFile,
    MissingOption,
    OptionError,
    UnreadableFile,
    near,
)
from fgkd.loading.batch import Batch
from fgkd.loading.train_loader import TrainLoader
from fgkd.rng import hash64

ROOT = Path(__file__).parents[2]
RESNET = (
    "--model",
    "resnet10t",
    "--model-kwargs",
    "stem_width=4,channels=[4,4,4,4]",
    "--img-size",
    64,
)
FAST = ("--epochs", 1, "--batch-size", 32, "--workers", 0)


def teacher(data: object, output: Path, *more: object) -> tuple[object, ...]:
    """A train-teacher command that takes a second."""
    return ("train-teacher", "--data", data, *TEACHER, "--output", output, *FAST, *more)


def test_near_names() -> None:
    assert near("foldr", ["folder", "cub"]) == "; did you mean folder?"
    assert near("zzzz", ["folder", "cub"]) == ""


M = ("--model", "m")
ICONS = ("train-teacher", "--data", "icons", *M)
OUT = ("--output", "o")


@pytest.mark.parametrize(
    ("args", "option", "remedy"),
    [
        (("train-teacher", *M, "--output", "o"), "data", "--data icons"),
        (("train-teacher", "--data", "icons", "--output", "o"), "model", "--model "),
        (("cache-logits", "--output", "o"), "teacher", "--teacher runs/teacher"),
        (("cache-logits", "--teacher", "t"), "output", "--output runs/cache"),
        (("train-student", "--output", "o"), "model", "--model "),
        (("train-student", *M, "--output", "o"), "cache", "--cache DIR, or --distillation none "),
        (("train-student", *M, "--distillation", "none"), "data", "--data icons"),
        (("evaluate",), "RUN", "fgkd evaluate runs/student --split test"),
        (("inspect",), "CACHE", "fgkd inspect runs/cache"),
    ],
)
def test_an_option_that_is_missing_is_named_with_an_example(
    args: tuple[str, ...],
    option: str,
    remedy: str,
    fails: Fails,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    failure = fails(*args)
    assert isinstance(failure.error, MissingOption)
    assert failure.error.option == option
    assert failure.remedy.startswith(remedy)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "facts", "remedy"),
    [
        (("train-student", *M, "--cache", "a", "--teacher", "b"), {"option": "teacher"}, "leave"),
        (("train-student", *M, "--cache", "no"), {}, "ls "),
        (("train-student", *M, "--teacher", "no"), {"path": Path("no")}, "ls "),
        (("cache-logits", "--teacher", "no", "--output", "o"), {"path": Path("no")}, "ls "),
        (("evaluate", "no"), {"path": Path("no")}, "ls "),
        (("train-student", *M, "--teacher", "s3://b/t"), {"path": "s3://b/t"}, "download it"),
        (("cache-logits", "--teacher", "s3://b/t", *OUT), {"path": "s3://b/t"}, "download it"),
        (("evaluate", "s3://b/t"), {"path": "s3://b/t"}, "download it"),
        (("predict", "s3://b/t", "a.jpg"), {"path": "s3://b/t"}, "download it"),
        (("export", "s3://b/t.pth", "--format", "pt2"), {"path": "s3://b/t.pth"}, "download it"),
        (("train-teacher", "--data", "csv:s3://b/a.csv", *M), {"option": "data"}, "--data csv:P"),
        ((*ICONS, "--device", "gpu"), {"device": "gpu"}, "--device auto"),
        ((*ICONS, "--device", "cuda:99"), {"device": "cuda:99"}, "--device auto"),
    ],
)
def test_what_does_not_exist_is_named(
    args: tuple[str, ...],
    facts: dict[str, object],
    remedy: str,
    fails: Fails,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    failure = fails(*args)
    assert {name: getattr(failure.error, name) for name in facts} == facts
    assert failure.remedy.startswith(remedy)
    named = str(next(iter(facts.values()), "no"))
    assert named in failure
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_no_file_system_takes(fails: Fails, tiny_data: Path, tmp_path: Path) -> None:
    """What the system says of a file is no traceback, wherever it comes up."""
    name = "x" * 300
    failure = fails(*teacher(f"folder:{tiny_data}", tmp_path / "o", "--initial-checkpoint", name))
    assert isinstance(failure.error, FileError)
    assert failure.error.path == name


def test_wrong_data(fails: Fails, tiny_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    missing = fails(*teacher(f"folder:{tmp_path}/nowhere", out))
    assert f"no folder {tmp_path}/nowhere" in missing
    unknown = fails(*teacher(f"foldr:{tiny_data}", out))
    assert "unknown dataset 'foldr'" in unknown
    assert "did you mean folder" in unknown
    assert "needs a path" in fails(*teacher("folder", out))
    data = copy_data(tiny_data, tmp_path / "data")
    gone = sorted((data / "train").iterdir())[2]
    gone.rename(tmp_path / "elsewhere")
    said = fails(*teacher(f"folder:{data}", out))
    assert isinstance(said.error, DatasetError)
    assert repr(gone.name) in said
    assert not out.exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image(
    workers: int, fails: Fails, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops the run with its path; if left out, it is listed and no other image replaces it."""
    data, out = copy_data(tiny_data, tmp_path / "data"), tmp_path / "out"
    bad = first_image(data)
    bad.write_bytes(bad.read_bytes()[:100])
    command = teacher(f"folder:{data}", out, "--workers", workers, "--checkpoint-steps", 1)
    failure = fails(*command)
    assert f"cannot decode image {bad}: " in failure
    assert "--skip-bad-images" in failure.remedy
    assert exit_code(*command, "--resume", "--skip-bad-images") == 0
    listed = files.read_lines(out / "bad_images.jsonl")
    assert [row["key"] for row in listed] == [bad.relative_to(data).as_posix()]
    assert str(bad) in listed[0]["reason"]
    seen: list[int] = []
    real = TrainLoader._join

    def watched(*args: Any) -> Batch:
        batch = real(*args)
        seen.extend(batch.row_ids.tolist())
        return batch

    monkeypatch.setattr(TrainLoader, "_join", watched)
    fgkd(*command, "--skip-bad-images", "--output", tmp_path / "whole")
    keys = [path.relative_to(data).as_posix() for path in (data / "train").rglob("*.png")]
    others = [hash64(key) for key in keys if key != listed[0]["key"]]
    assert sorted(seen) == sorted(others)  # each of the others once
    assert rows(tmp_path / "whole") == rows(out)


def test_a_bad_validation_image(fails: Fails, tiny_data: Path, tmp_path: Path) -> None:
    data, out = copy_data(tiny_data, tmp_path / "data"), tmp_path / "out"
    first_image(data, "val").write_bytes(b"GIF89a")
    assert str(first_image(data, "val")) in fails(*teacher(f"folder:{data}", out))
    assert exit_code(*teacher(f"folder:{data}", out), "--resume", "--skip-bad-images") == 0


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--model", "convnext_ato"), "no model 'convnext_ato'; did you mean convnext_atto"),
        (("--model-kwargs", "patch_size"), "'patch_size' is not K=V,K=V"),
        (("--model-kwargs", "a=__import__('os')"), "is not K=V,K=V with Python literals"),
        (("--model-kwargs", "no_such=1"), "no_such"),
        (("--initial-checkpoint", "/no/such.pth"), "no checkpoint at /no/such.pth"),
        (("--crop-scale", "0.9", "0.1"), "crop_scale is (0.9, 0.1)"),
    ],
)
def test_wrong_models(
    args: tuple[str, ...], said: str, fails: Fails, tiny_data: Path, tmp_path: Path
) -> None:
    assert said in fails(*teacher(f"folder:{tiny_data}", tmp_path / "out", *args))
    assert not (tmp_path / "out").exists()  # the corrected command needs no --overwrite


@pytest.mark.parametrize(
    ("args", "option"),
    [
        ((*TEACHER, "--opt", "adamv"), "opt"),
        ((*TEACHER, "--lr", 1e-7), "min_lr"),
        ((*TEACHER, "--warmup-epochs", 5), "warmup_epochs"),
        ((*RESNET, "--layer-decay", 0.5, "--layer-decay-style", "convnext12"), "layer_decay_style"),
    ],
)
def test_the_remedy_of_a_wrong_schedule_works(
    args: tuple[object, ...], option: str, fails: Fails, tiny_data: Path, tmp_path: Path
) -> None:
    """The remedy, added to the command, makes it succeed."""
    command = ("train-teacher", "--data", f"folder:{tiny_data}", "--output", tmp_path / "out")
    command = (*command, *FAST, *args)
    failure = fails(*command)
    assert isinstance(failure.error, OptionError)
    assert failure.error.option == option
    assert not (tmp_path / "out").exists()
    assert exit_code(*command, *failure.remedy_argv) == 0


class Attack:
    """Unpickled, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_wrong_weights(fails: Fails, tiny_data: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    """Of another model, truncated, or containing code, which must not run."""
    student = ("train-student", "--distillation", "none", "--data", f"folder:{tiny_data}")
    student = (*student, *STUDENT, "--img-size", 32, "--output", tmp_path / "out", *FAST)
    other = fails(*student, "--initial-checkpoint", tiny_teacher)
    assert "is not for deit_tiny_distilled_patch16_224" in other
    cut, evil = tmp_path / "cut.safetensors", tmp_path / "evil.pth"
    cut.write_bytes((tiny_teacher / "model" / "model.safetensors").read_bytes()[:-100])
    assert f"checkpoint {cut} does not load" in fails(*student, "--initial-checkpoint", cut)
    torch.save({"head.weight": Attack(tmp_path / "pwned")}, evil)
    assert f"checkpoint {evil} does not load" in fails(*student, "--initial-checkpoint", evil)
    assert not (tmp_path / "pwned").exists()


def test_a_damaged_run(fails: Fails, tiny_teacher: Path, tmp_path: Path) -> None:
    """A checkpoint that is truncated or contains code; a model without its weights."""
    run = copy_data(tiny_teacher, tmp_path / "run")
    resume = ("train-teacher", "--resume", "--output", run)
    whole = (run / "checkpoints" / "last.pt").read_bytes()
    (run / "checkpoints" / "last.pt").write_bytes(whole[: len(whole) // 2])
    damaged = [fails(*resume)]
    torch.save({"step": Attack(tmp_path / "pwned")}, run / "checkpoints" / "last.pt")
    damaged.append(fails(*resume))
    torch.save([1], run / "checkpoints" / "last.pt")
    damaged.append(fails(*resume))
    for failure in damaged:
        assert isinstance(failure.error, CheckpointError)
        assert failure.error.path == run / "checkpoints" / "last.pt"
        assert failure.error.reason
        assert failure.remedy_argv == ["ls", "-l", str(run / "checkpoints" / "last.pt")]
    assert not (tmp_path / "pwned").exists()
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()
    assert f"cannot read {run}/metrics.jsonl: Is a directory" in fails(
        "evaluate", run, "--report", tmp_path / "page"
    )
    lines = (run / "args.yaml").read_text().splitlines(keepends=True)
    (run / "args.yaml").write_text("".join(lines[:-1]))
    truncated = fails(*resume).error
    assert isinstance(truncated, UnreadableFile)
    assert truncated.path == run / "args.yaml"
    (run / "model" / "model.safetensors").unlink()
    assert f"model {run}/model does not load" in fails("evaluate", run)
    (run / "model" / "config.json").unlink()
    assert "no trained model at" in fails("evaluate", run)


def test_all_runs_are_looked_for_before_one_is_evaluated(
    fails: Fails,
    tiny_teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run that is not there, one without a model, one without weights, each named last."""
    monkeypatch.setattr("fgkd.models.load", None)
    monkeypatch.setattr("fgkd.evaluation.inference.evaluate", None)
    bare, weightless = tmp_path / "bare", tmp_path / "weightless"
    (weightless / "model").mkdir(parents=True)
    (weightless / "model" / "config.json").touch()
    for run in (bare, weightless):
        run.mkdir(exist_ok=True)
        shutil.copy(tiny_teacher / "run.json", run)
    absent = fails("evaluate", tiny_teacher, tmp_path / "no")
    assert "no run folder" in absent
    assert f"no trained model at {bare}/model" in fails("evaluate", tiny_teacher, bare)
    said = fails("evaluate", tiny_teacher, weightless)
    assert f"model {weightless}/model does not load: no weights" in said


def test_evaluate_names_the_splits_there_are(
    fails: Fails, tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    data = copy_data(tiny_data, tmp_path / "data")
    (data / "test").rename(tmp_path / "gone")
    said = fails("evaluate", tiny_teacher, "--data", f"folder:{data}", "--workers", 0)
    assert "folder has no test split; it has train, val" in said
    assert "--split val" in said


def test_pretrained_weights_without_a_network(
    fails: Fails, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Says how to bring them: with HF_HUB_OFFLINE=1 and an empty hub cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    command = ("train-teacher", "--data", f"folder:{tiny_data}", "--output", tmp_path / "out")
    said = fails(*command, "--model", "convnext_atto.d2_in1k", "--pretrained", *FAST)
    assert "cannot get pretrained weights of convnext_atto.d2_in1k" in said
    assert "--initial-checkpoint FILE" in said


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGKD_DEBUG", "1")
    with pytest.raises(MissingFile):
        fgkd("evaluate", "no/such/run")
