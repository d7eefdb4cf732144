"""The topk8 encoding: which classes it keeps, and how near they and the tail are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.runs import STUDENT, fgkd, rows
from helpers.truncated import GRID, shapes, stored
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp, softmax

from fgkd.cache import encodings
from fgkd.cache.encodings import Codec


@settings(max_examples=80, deadline=None)
@given(shape=shapes(300), seed=st.integers(0, 99), coarse=st.booleans(), scale=st.floats(0.01, 60))
def test_kept_classes_and_bounds(
    shape: tuple[int, int, int, int], seed: int, coarse: bool, scale: float
) -> None:
    """The top K and the labels; each logit, and the mean one of the rest, within the bound."""
    codec, logits, labels, arrays = stored("topk8", shape, seed, coarse, scale)
    num_rows, num_classes, top_k, num_labels = shape
    for at in np.ndindex(2, num_rows):
        row, kept = logits[at].astype(np.float64), arrays["indices"][at].astype(int)
        best = sorted(range(num_classes), key=lambda c: (-row[c], c))
        wanted = set(best[:top_k]) | {int(y) for y in labels[at] if y >= 0}
        assert len(set(kept.tolist())) == top_k + num_labels
        assert wanted <= set(kept.tolist())
        assert kept.tolist() == sorted(kept, key=lambda c: (-row[c], c))
        rest = np.setdiff1d(np.arange(num_classes), kept)
        for t in GRID:
            decoded = codec.decode(arrays, t)[at].astype(np.float64)
            assert decoded.argmax() == row.argmax()
            mean_rest = t * (logsumexp(row[rest] / t) - np.log(len(rest)))
            true = row.max() - np.append(row[kept], mean_rest)
            near = -np.append(decoded[kept], decoded[rest[0]])
            assert np.ptp(decoded[rest]) == 0
            within = true < 590  # beyond, there is no larger code
            assert (np.abs(near - true) <= (1 + true) / 79)[within].all()
            assert (near[~within] > 580).all()


def test_codes_are_cells_of_a_factor() -> None:
    """Every code is that of its own gap; codes rise with gaps."""
    codes = np.arange(256).astype(np.uint8)
    assert np.array_equal(encodings.gap_codes(encodings.gaps_of(codes)), codes)
    gaps = np.linspace(0, 700, 100_001)
    assert (np.diff(encodings.gap_codes(gaps).astype(int)) >= 0).all()


@pytest.mark.parametrize("t", GRID)
def test_the_target_s_divergence_is_small(t: float) -> None:
    """KL(topk || topk8), in nats, of targets with a winner, rivals and a noisy rest."""
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 1.2, (200, 85)).astype(np.float32)
    logits[:, :5] += generator.uniform(0, 9, (200, 5)).astype(np.float32)
    labels = generator.integers(85, size=(200, 1))
    p, q = (
        softmax(codec.decode(codec.encode(logits, labels), t).astype(np.float64) / t, axis=1)
        for codec in (Codec("topk", 85, 4, GRID), Codec("topk8", 85, 4, GRID))
    )
    assert (p * np.log(p / q)).sum(1).max() < 6e-4


def test_bytes_of_a_view() -> None:
    """Without the digest's 8: 12 for 85 classes, 23 for 1,000, at three temperatures."""
    assert Codec("topk8", 85, 4, GRID).bytes_per_view() - 8 == 12
    assert Codec("topk8", 1000, 6, GRID).bytes_per_view() - 8 == 23
    for num_classes, dtype in ((256, "uint8"), (257, "uint16"), (70_000, "uint32")):
        assert Codec("topk8", num_classes, 4, GRID).arrays()["indices"][0] == dtype


def test_a_student_from_it(tiny_teacher: Path, tmp_path: Path) -> None:
    """An epoch's loss is near that of a student from the topk cache of the same classes."""
    losses = []
    for name in ("topk", "topk8"):
        cache = tmp_path / f"cache-{name}"
        make = ("cache-logits", "--teacher", tiny_teacher, "--views", 2, "--workers", 0)
        fgkd(*make, "--output", cache, "--encoding", name, "--top-k", 2, "--temperatures", "1,2")
        fgkd(
            *("train-student", "--cache", cache, *STUDENT, "--output", tmp_path / name),
            *("--workers", 0, "--epochs", 1, "--temperature", 2),
        )
        losses.append(rows(tmp_path / name)[0]["distill_loss"])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
