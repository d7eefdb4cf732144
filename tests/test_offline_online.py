"""Promise 1: a student trained from the cache takes the steps of one with a live teacher.

A teacher's outputs move with the batch it runs in, at the end of their precision. It runs in
float64 here, so that rounding to float32 hides this and the two must be equal in every bit.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.runs import STUDENT, assert_same, fgkd, model_files, rows, saved

LOSSES = {
    "kl": ("--temperature", 2),
    "hard": (),
    "dkd": ("--temperature", 2, "--grad-accum-steps", 2),
    "dist": ("--logit-standardization", "--model-ema", "--clip-grad", 1),
}


def train(output: Path, kd_loss: str, *source: object) -> Path:
    """A student's run of 3 epochs x 7 steps, whose last batch of an epoch is one image."""
    fgkd(
        *("train-student", *source, *STUDENT, "--output", output, "--workers", 0),
        *("--epochs", 3, "--batch-size", 16, "--drop", 0.1, "--drop-path", 0.2),
        *("--smoothing", 0.1, "--kd-loss", kd_loss, *LOSSES[kd_loss]),
    )
    assert saved(output)["step"] == 21
    return output


def live(teacher: Path, *more: object) -> tuple[object, ...]:
    """The options of the live twin of a cache with two views."""
    return ("--teacher", teacher, "--views", 2, "--dtype", "float64", *more)


@pytest.mark.parametrize("kd_loss", LOSSES)
def test_a_student_of_the_cache_is_bit_equal_to_one_of_the_live_teacher(
    tiny_teacher: Path, tiny_cache: Path, tmp_path: Path, kd_loss: str
) -> None:
    """Weights, optimizer state, exported model and metrics; the views wrap around in epoch 2."""
    offline = train(tmp_path / "offline", kd_loss, "--cache", tiny_cache)
    online = train(tmp_path / "online", kd_loss, *live(tiny_teacher))
    assert_same(saved(offline), saved(online))
    assert_same(saved(offline, "best"), saved(online, "best"))
    assert model_files(offline) == model_files(online)
    assert (offline / "metrics.jsonl").read_bytes() == (online / "metrics.jsonl").read_bytes()
    assert all(row["distill_loss"] > 1e-2 for row in rows(offline))  # the teacher has a say


@pytest.mark.parametrize(
    ("kd_loss", "mixing"), [("dkd", ()), ("kl", ("--mixup", 1, "--cutmix", 1))]
)
def test_a_live_teacher_sees_the_views_at_its_own_size(
    tiny_teacher: Path, tmp_path: Path, kd_loss: str, mixing: tuple[object, ...]
) -> None:
    """Bit for bit what its cache holds for a student of 24 px, while it takes 32 px itself."""
    cache, smaller = tmp_path / "cache", ("--img-size", 24, *mixing)
    fgkd(
        *("cache-logits", "--teacher", tiny_teacher, "--output", cache, "--views", 2, *smaller),
        *("--encoding", "dense32", "--dtype", "float64", "--shard-size", 20, "--workers", 0),
    )
    offline = train(tmp_path / "offline", kd_loss, "--cache", cache)
    online = train(tmp_path / "online", kd_loss, *live(tiny_teacher, *smaller, "--shard-size", 20))
    assert_same(saved(offline), saved(online))
    assert model_files(offline) == model_files(online)
    assert (offline / "metrics.jsonl").read_bytes() == (online / "metrics.jsonl").read_bytes()


def test_other_views_give_another_student(
    tiny_teacher: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    """So the equality above is of the views, and not of students that ignore them."""
    offline = train(tmp_path / "offline", "kl", "--cache", tiny_cache)
    other = train(tmp_path / "other", "kl", *live(tiny_teacher, "--view-seed", 1))
    assert (offline / "metrics.jsonl").read_bytes() != (other / "metrics.jsonl").read_bytes()
    assert model_files(offline) != model_files(other)


@pytest.mark.parametrize("kd_loss", ["kl", "dkd"])
def test_the_losses_of_a_float16_cache_agree_to_a_thousandth(
    tiny_teacher: Path, tmp_path: Path, kd_loss: str
) -> None:
    """The default encoding, with a float32 teacher in batches of another size."""
    cache = tmp_path / "cache"
    fgkd("cache-logits", "--teacher", tiny_teacher, "--output", cache, "--views", 2)
    offline = rows(train(tmp_path / "offline", kd_loss, "--cache", cache))
    online = rows(train(tmp_path / "online", kd_loss, *live(tiny_teacher)))
    assert len(offline) == len(online) == 3
    for got, want in zip(offline, online, strict=True):
        for name in ("loss", "task_loss", "distill_loss"):
            assert got[name] == pytest.approx(want[name], rel=1e-3)
    assert offline != online  # a float16 logit is not a float32 one
