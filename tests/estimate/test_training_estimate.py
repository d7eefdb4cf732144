"""`--dry-run` of the trainings: figures by hand, measured speed, and nothing written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.failures import exit_code
from helpers.runs import STUDENT, TEACHER, fgkd

from fgkd.estimate import training

SMALL = ("--img-size", 32, "--workers", 0, "--batch-size", 16)


def plan(tmp_path: Path, *command: object) -> dict[str, Any]:
    """The JSON of a dry run, which must leave no output."""
    path, output = tmp_path / "plan.json", tmp_path / "out"
    fgkd(*command, "--dry-run", "--json", path, "--output", output)
    assert not output.exists()
    report: dict[str, Any] = json.loads(path.read_text())
    path.unlink()
    memory = dict(report["memory_bytes"])
    assert memory.pop("total") == sum(memory.values())
    return report


def test_a_teacher(tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """97 images in batches of 16, 3 epochs; AdamW; averaged weights; speed from real steps."""
    command = ("train-teacher", "--data", f"folder:{tiny_data}", *TEACHER, *SMALL, "--epochs", 3)
    report = plan(tmp_path, *command, "--model-ema", "--pretrained", "--lr", 1e-3)
    out = capsys.readouterr().out
    assert (report["images"], report["epochs"], report["steps"]) == (97, 3, 3 * 7)
    model = 4 * report["parameters"]
    held = model + 2 * 3 * 4  # the mean and std of the pixels
    memory = report["memory_bytes"]
    assert (memory["parameters"], memory["gradients"]) == (held, model)
    assert (memory["optimizer"], memory["ema"], memory["teacher"]) == (2 * model, held, 0)
    assert report["images_per_s"] > 0
    assert 0 < report["hours"] < 1
    assert "weights are not loaded" in out
    assert "dry run: nothing was written" in out
    plain = plan(tmp_path, *command, "--opt", "momentum", "--momentum", 0)["memory_bytes"]
    assert (plain["optimizer"], plain["ema"]) == (0, 0)


def test_micro_batches_divide_activations_not_flops(tiny_data: Path, tmp_path: Path) -> None:
    command = ("train-teacher", "--data", f"folder:{tiny_data}", *TEACHER, *SMALL, "--epochs", 1)
    whole, parts = plan(tmp_path, *command), plan(tmp_path, *command, "--grad-accum-steps", 4)
    assert (whole["micro_batch"], parts["micro_batch"]) == (16, 4)
    assert whole["flops_per_step"] == parts["flops_per_step"]
    share = parts["memory_bytes"]["activations"] / whole["memory_bytes"]["activations"]
    assert share == pytest.approx(0.25, rel=0.01)


def test_a_student_before_its_cache_and_after(
    tiny_data: Path, tiny_cache: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    """The same memory and FLOPs; speed once there are targets; a live teacher costs its own."""
    command = ("train-student", *STUDENT, *SMALL, "--epochs", 2, "--lr", 1e-3)
    absent = ("--cache", tmp_path / "absent")
    assert exit_code(*command, *absent, "--dry-run") == 1  # of what images?
    before = plan(tmp_path, *command, *absent, "--data", f"folder:{tiny_data}")
    after = plan(tmp_path, *command, "--cache", tiny_cache)
    live = plan(tmp_path, *command, "--teacher", tiny_teacher)
    smaller = ("--img-size", 24)  # of the student: its teacher's images stay as they are
    own = plan(tmp_path, *command, "--cache", tiny_cache, *smaller)["flops_per_step"]
    both = plan(tmp_path, *command, "--teacher", tiny_teacher, *smaller)
    assert (before["images_per_s"], before["hours"]) == (None, None)
    assert after["images_per_s"] > 0
    for name in ("memory_bytes", "flops_per_step", "steps", "parameters"):
        assert before[name] == after[name], name
    held = sum(
        4 * t.numel() for t in torch.load(tiny_teacher / "checkpoints/best.pt")["model"].values()
    )
    assert live["memory_bytes"]["teacher"] > held
    assert both["memory_bytes"]["teacher"] == live["memory_bytes"]["teacher"]
    assert both["flops_per_step"] - own == live["flops_per_step"] - after["flops_per_step"] > 0
    assert live["memory_bytes"]["activations"] == after["memory_bytes"]["activations"]


def test_what_this_machine_cannot_hold_or_do_is_not_tried(
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """ConvNeXt-B at 384 px: memory and FLOPs at once, from no weights, and no step is taken."""
    big = ("--model", "convnext_base.fb_in1k", "--pretrained", "--img-size", 384, "--amp")
    data = ("--data", f"folder:{tiny_data}", "--epochs", 4)
    monkeypatch.setattr(training, "flops_per_s", lambda device: 5e10)
    report = plan(tmp_path, "train-teacher", *data, *big, "--batch-size", 32)
    assert report["images_per_s"] is None
    # 45.2 G multiply-adds an image in timm's table; forward and twice that backward, no less.
    assert report["flops_per_step"] == pytest.approx(32 * 3 * 2 * 45.2e9, rel=0.01)
    assert 11 * 2**30 < report["memory_bytes"]["activations"] < 13 * 2**30
    assert "a step would take" in capsys.readouterr().out
    plan(tmp_path, "train-teacher", *data, *big, "--batch-size", 3_000)
    assert "free; more micro-batches" in capsys.readouterr().out
