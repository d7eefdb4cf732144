"""The faults of the project that this one follows, each by its name: none may come back."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.failures import Fails
from helpers.models import build, images
from helpers.runs import STUDENT, TEACHER, fgkd, rows, saved

from fgkd.data import samples
from fgkd.loading.schedule import Schedule
from fgkd.losses import distill_loss
from fgkd.views import orders


def test_a_learning_rate_under_its_minimum_is_refused(
    tiny_data: Path, tmp_path: Path, fails: Fails
) -> None:
    """There, a rate scaled down with the batch rose to min_lr during training."""
    command = ("train-teacher", "--data", f"folder:{tiny_data}", *TEACHER, "--output", tmp_path)
    said = fails(*command, "--lr", 1e-7, "--min-lr", 1e-6)
    assert "the learning rate would rise during training" in said
    assert not list(tmp_path.iterdir())


def test_an_untrained_distillation_head_has_no_part_in_the_answer(
    tiny_data: Path, tmp_path: Path
) -> None:
    """There, without distillation, evaluation averaged a head that nothing had trained."""
    command = ("train-student", "--data", f"folder:{tiny_data}", *STUDENT, "--img-size", 32)
    fgkd(
        *(*command, "--distillation", "none", "--epochs", 1, "--workers", 0),
        *("--output", tmp_path / "run"),
    )
    assert not saved(tmp_path / "run")["model"]["net.head_dist.weight"].isnan().any()
    model = build(uses_dist=False).eval()
    before = model(images()).answer_BK
    torch.nn.init.constant_(model.net.head_dist.weight, 1e6)
    assert torch.equal(model(images()).answer_BK, before)
    assert not model.net.head_dist.weight.requires_grad


def test_the_best_epoch_is_chosen_on_val_and_the_test_split_is_not_read(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There, it was the best on the test set."""
    real, read = samples.Samples.read, set()

    def spy(self: samples.Samples, i: int) -> bytes:
        read.add(Path(self.keys[i]).parts[0])
        return real(self, i)

    monkeypatch.setattr(samples.Samples, "read", spy)
    run = tmp_path / "run"
    command = ("train-teacher", "--data", f"folder:{tiny_data}", *TEACHER, "--lr", 1e-2)
    fgkd(*command, "--epochs", 4, "--workers", 0, "--batch-size", 16, "--output", run)
    assert read == {"train", "val"}
    scores = [row["val_top1_pct"] for row in rows(run)]
    best = saved(run, "best")
    assert (best["epoch"], best["val_top1_pct"]) == (int(np.argmax(scores)), max(scores))


def test_averaged_weights_are_evaluated_and_chosen_when_better(
    tiny_data: Path, tmp_path: Path
) -> None:
    """There, they were kept and never looked at."""
    command = ("train-teacher", "--data", f"folder:{tiny_data}", *TEACHER, "--workers", 0)
    command += ("--batch-size", 8, "--lr", 3e-2, "--epochs", 4, "--warmup-epochs", 0)
    chosen = set()
    for horizon in (40, 1e9):
        run = tmp_path / str(horizon)
        fgkd(*command, "--output", run, "--model-ema", "--model-ema-samples", horizon)
        own, averaged = (
            [row[name] for row in rows(run)] for name in ("val_top1_pct", "ema_val_top1_pct")
        )
        epoch, best = saved(run, "best")["epoch"], saved(run, "best")
        assert best["val_top1_pct"] == max(own + averaged)
        assert best["is_ema"] == (averaged[epoch] > own[epoch])
        kept = saved(run, "best")["model"]
        if epoch == 3:
            last = saved(run)["ema" if best["is_ema"] else "model"]
            assert all(torch.equal(kept[name], last[name]) for name in kept)
        chosen.add(best["is_ema"])
    assert True in chosen


@pytest.mark.parametrize("num_classes", [10, 1000])
def test_soft_kl_is_not_divided_by_the_number_of_classes(num_classes: int) -> None:
    """There, it was: the distillation term was next to nothing beside the task loss."""
    # A teacher sure of class 0 to 90 %, a student that knows nothing.
    p = torch.full((4, num_classes), 0.1 / (num_classes - 1))
    p[:, 0] = 0.9
    batch: dict[str, Any] = {"teacher_logits": p.log()}
    found = distill_loss(
        name="kl", student_logits=torch.zeros(4, num_classes), temperature=1.0, **batch
    ).item()
    entropy = -(0.9 * np.log(0.9) + 0.1 * np.log(0.1 / (num_classes - 1)))
    assert found == pytest.approx(np.log(num_classes) - entropy, rel=1e-4)


@pytest.mark.parametrize("mixes", [False, True])
def test_every_image_is_seen_once_an_epoch(mixes: bool) -> None:
    """There, repeated augmentation showed a third of them, three times."""
    schedule = Schedule(seed=0, num_samples=97, batch_size=16, epochs=3, views=2)
    partner = orders.partners(0, 0, orders.blocks(0, 97, 40)) if mixes else None
    seen = []
    for epoch in range(3):
        order = orders.epoch_order(0, epoch, 97, partner)
        seen = [spec.rows.tolist() for spec in schedule.epoch_specs(epoch, 0, order)]
        seen.append(list(itertools.chain(*seen)))
        assert sorted(seen[-1]) == list(range(97))
    assert seen[0] != seen[1]
