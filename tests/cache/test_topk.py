"""The topk encoding: exact tails on its grid, targets that are distributions, refusals off it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.failures import Fails
from helpers.runs import STUDENT, fgkd, rows
from helpers.truncated import GRID, shapes, stored
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp, softmax

from fgkd import losses
from fgkd.cache import encodings
from fgkd.cache.encodings import Codec
from fgkd.cache.identity import EncodingIdentity
from fgkd.cache.reader import Reader
from fgkd.errors import DamagedTargets, UnstoredTemperature
from stages.remedies import remedy

C, K = 320, 50
CODEC = Codec("topk", C, K, GRID)


def fine_grained(num_rows: int, sharpness: float = 1.0) -> np.ndarray:
    """float32 [N, 320]: a winner, a few rivals of the same family, and a long noisy rest."""
    generator = np.random.default_rng(3)
    logits = generator.normal(0, 1.2, (num_rows, C))
    for row in logits:
        rivals = generator.permutation(C)[:8]
        row[rivals] += generator.uniform(1, 5, 8)
        row[rivals[0]] += generator.uniform(2, 5)
    return (sharpness * logits).astype(np.float32)


def labels_for(logits: np.ndarray, num_labels: int = 1) -> np.ndarray:
    """int64 [..., L]: any class at all, likely or not; some rows have none."""
    generator = np.random.default_rng(5)
    return generator.integers(-1, logits.shape[-1], (*logits.shape[:-1], num_labels))


def by_hand(codec: Codec, arrays: encodings.Arrays, t: float) -> np.ndarray:
    """float64 probabilities by FORMAT.md, a row at a time."""
    rows_KK = zip(arrays["values"], arrays["indices"], arrays["log_tail"], strict=True)
    out = []
    for values, indices, log_tail in rows_KK:
        scaled = values.astype(np.float64) / t
        kept = np.exp(scaled - scaled.max())
        tail = np.exp(np.float64(log_tail[codec.temperatures.index(t)]) - scaled.max())
        row = np.full(codec.num_classes, tail / (codec.num_classes - len(values)))
        row[indices.astype(int)] = kept
        out.append(row / (kept.sum() + tail))
    return np.array(out)


@pytest.mark.parametrize("t", GRID)
def test_the_tail_is_that_of_the_full_softmax(t: float) -> None:
    logits = fine_grained(200)
    arrays = CODEC.encode(logits, labels_for(logits))
    true = softmax(logits.astype(np.float64) / t, axis=1)
    got = softmax(CODEC.decode(arrays, t).astype(np.float64) / t, axis=1)
    for i, kept in enumerate(arrays["indices"].astype(int)):
        rest = np.setdiff1d(np.arange(C), kept)
        at = GRID.index(t)
        want = logsumexp(logits[i, rest].astype(np.float64) / t)
        assert arrays["log_tail"][i, at] == pytest.approx(want, abs=1e-6)
        assert got[i, rest].sum() == pytest.approx(true[i, rest].sum(), abs=1e-3)
        assert np.ptp(got[i, rest]) < 1e-7  # spread evenly
        np.testing.assert_allclose(
            got[i, kept], true[i, kept], rtol=1e-2
        )  # float16 of a logit of 12
    if t == 4:  # what renormalising would give away
        tails = [true[i].sum() - true[i, k].sum() for i, k in enumerate(arrays["indices"])]
        assert 0.6 < np.mean(tails) < 0.8


@pytest.mark.parametrize("name", ["dense", "dense32", "int8", "topk"])
@pytest.mark.parametrize("t", GRID)
def test_distilling_from_it_is_dense_distillation_towards_the_decoded_target(
    name: str, t: float
) -> None:
    """Value and gradient of KL in float64, against autograd of the equation and the closed form."""
    codec = CODEC if name == "topk" else Codec(name, C)
    logits = fine_grained(16)
    arrays = codec.encode(logits, labels_for(logits))
    if name == "topk":
        target = torch.from_numpy(by_hand(codec, arrays, t))
    else:
        target = (torch.from_numpy(codec.decode(arrays)).double() / t).softmax(1)
    student = torch.randn(16, C, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours, brute = student.clone().requires_grad_(), student.clone().requires_grad_()
    decoded = torch.from_numpy(codec.decode(arrays, t))
    loss = losses.distill_loss(
        name="kl",
        student_logits=ours,
        teacher_logits=decoded,
        labels=torch.zeros(16, dtype=torch.int64),
        temperature=t,
    )
    want = t * t * (target * (target.log() - (brute / t).log_softmax(1))).sum(1).mean()
    loss.backward()
    want.backward()
    assert loss.item() == pytest.approx(want.item(), rel=1e-6)
    torch.testing.assert_close(ours.grad, brute.grad, rtol=1e-5, atol=1e-9)
    closed = t * ((student / t).softmax(1) - target) / 16
    torch.testing.assert_close(ours.grad, closed, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("odds", [1e4, 1e8])
def test_no_target_of_a_confident_teacher_is_negative(odds: float) -> None:
    """99.99 % on one class, and far more; the tail is small and stays what it is."""
    logits = np.random.default_rng(0).normal(0, 0.3, (8, C)).astype(np.float32)
    logits[:, 7] = np.log(odds * C)
    arrays = CODEC.encode(logits, np.full((8, 1), 7))
    for t in GRID:
        target = by_hand(CODEC, arrays, t)
        decoded = CODEC.decode(arrays, t)
        assert (target > 0).all()
        assert np.isfinite(decoded).all()
        np.testing.assert_allclose(target.sum(1), 1, rtol=1e-12)
        np.testing.assert_allclose(
            log_softmax(decoded.astype(np.float64) / t, axis=1), np.log(target), atol=1e-5
        )
    assert by_hand(CODEC, arrays, 1.0)[:, 7].min() > 1 - 1.2 / odds


@settings(max_examples=80, deadline=None)
@given(shape=shapes(40), seed=st.integers(0, 99), coarse=st.booleans(), scale=st.floats(0.01, 300))
def test_kept_are_the_top_k_and_every_label(
    shape: tuple[int, int, int, int], seed: int, coarse: bool, scale: float
) -> None:
    """Falling, ties by class, also where all logits are equal or float16 makes them so."""
    codec, logits, labels, arrays = stored("topk", shape, seed, coarse, scale)
    num_rows, num_classes, top_k, num_labels = shape
    for at in np.ndindex(2, num_rows):
        kept, values = arrays["indices"][at].astype(int), arrays["values"][at]
        assert len(set(kept.tolist())) == top_k + num_labels
        assert {int(y) for y in labels[at] if y >= 0} <= set(kept.tolist())
        best = sorted(range(num_classes), key=lambda c: (-logits[at][c], c))[:top_k]
        assert set(best) <= set(kept.tolist())
        assert np.array_equal(values, logits[at][kept].astype(np.float16))
        order = sorted(zip(-values.astype(np.float64), kept, strict=True))
        assert [c for _, c in order] == kept.tolist()
        for t in GRID:
            p = softmax(codec.decode(arrays, t)[at].astype(np.float64) / t)
            one = {name: array[at][None] for name, array in arrays.items()}
            np.testing.assert_allclose(p, by_hand(codec, one, t)[0], rtol=2e-4, atol=1e-9)


def test_labels_are_kept_however_unlikely() -> None:
    logits = np.arange(10, 0, -1, dtype=np.float32)[None].repeat(4, 0)
    two = Codec("topk", 10, 2, GRID, num_labels=2)
    labels = np.array([[9, 8], [-1, 9], [0, 0], [-1, -1]])
    kept = two.encode(logits, labels)["indices"]
    assert kept.tolist() == [[0, 1, 8, 9], [0, 1, 2, 9], [0, 1, 2, 3], [0, 1, 2, 3]]
    one = Codec("topk", 10, 2, GRID)
    assert one.encode(logits[:2], np.array([[9], [-1]]))["indices"].tolist() == [
        [0, 1, 9],
        [0, 1, 2],
    ]


def test_equal_logits_are_kept_by_class() -> None:
    codec = Codec("topk", 9, 3, GRID)
    arrays = codec.encode(np.full((1, 9), 2.5, np.float32), np.array([[-1]]))
    assert arrays["indices"].tolist() == [[0, 1, 2, 3]]
    for t in GRID:
        np.testing.assert_allclose(codec.decode(arrays, t), 2.5, rtol=1e-6)


@pytest.mark.parametrize("top_k", [8, 9, 10, 50])
def test_keeping_every_class_is_dense(top_k: int) -> None:
    """Two labels may join the top K; where no tail would be left, dense says the same for less."""
    dense = EncodingIdentity("dense")
    assert encodings.describe("topk", top_k, GRID, 10) == dense
    kept = EncodingIdentity("topk", 7, (1.0, 4.0))
    assert encodings.describe("topk", 7, (4.0, 1.0, 4.0), 10) == kept


def test_bytes_of_a_view() -> None:
    """51 pairs of 2 + 2 bytes, 3 tails of 4, a digest of 8; a third of dense."""
    assert CODEC.bytes_per_view() == 51 * 4 + 3 * 4 + 8
    assert Codec("topk", 70_000, 50, GRID).arrays()["indices"] == ("uint32", (51,))


def test_another_temperature_is_refused_with_both_remedies() -> None:
    arrays = CODEC.encode(fine_grained(2), np.zeros((2, 1), np.int64))
    with pytest.raises(UnstoredTemperature) as caught:
        CODEC.decode(arrays, 3.0)
    error = caught.value
    assert (error.option, error.value, error.suggestion) == ("temperature", 3.0, 4.0)
    assert error.stored == GRID
    assert remedy(error) == "--temperature 4, or write a cache with --temperatures 1,2,4,3"


def test_a_class_out_of_range_is_refused() -> None:
    arrays = CODEC.encode(fine_grained(2), np.zeros((2, 1), np.int64))
    arrays["indices"][1, 3] = C
    with pytest.raises(DamagedTargets, match="class index 320"):
        CODEC.decode(arrays, 1.0)


@pytest.fixture(scope="module")
def topk_cache(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of eight classes and the label, exact at temperatures 1 and 2."""
    cache = tmp_path_factory.mktemp("cache") / "topk"
    fgkd(
        *("cache-logits", "--teacher", tiny_teacher, "--output", cache, "--views", 2),
        *("--encoding", "topk", "--top-k", 2, "--temperatures", "1,2", "--workers", 0),
    )
    return cache


REFUSED = {
    "dkd": ("--kd-loss", "dkd"),
    "dist": ("--kd-loss", "dist"),
    "--logit-standardization": ("--logit-standardization",),
    "temperature 4": ("--temperature", 4),
}


@pytest.mark.parametrize("wanted", REFUSED)
def test_train_student_refuses_what_a_tail_cannot_give(
    topk_cache: Path, tmp_path: Path, fails: Fails, wanted: str
) -> None:
    command: Any = ("train-student", "--cache", topk_cache, *STUDENT, "--output", tmp_path / "run")
    said = fails(*command, *REFUSED[wanted])
    assert wanted in said
    assert "grid" in said if "temperature " in wanted else "keeps the top 2 of 8" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("more", [("--temperature", 2), ("--kd-loss", "hard", "-c", "4.yaml")])
def test_train_student_takes_the_rest(
    topk_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[object, ...]
) -> None:
    """KL on the grid; the argmax at any temperature of a file, since it needs none."""
    monkeypatch.chdir(tmp_path)
    Path("4.yaml").write_text("temperature: 4\n")
    run = tmp_path / "run"
    fgkd(
        *("train-student", "--cache", topk_cache, *STUDENT, "--output", run, "--workers", 0),
        *("--epochs", 1, *more),
    )
    assert rows(run)[0]["distill_loss"] > 1e-2


def test_the_baseline_may_have_any_temperature(topk_cache: Path, tmp_path: Path) -> None:
    """In the file of options that it shares with its student; typed, it is refused."""
    (tmp_path / "student.yaml").write_text("temperature: 7\nkd_loss: dkd\n")
    fgkd(
        *("train-student", "--cache", topk_cache, *STUDENT, "--output", tmp_path / "run"),
        *("--epochs", 1, "--distillation", "none", "-c", tmp_path / "student.yaml"),
        *("--workers", 0),
    )
    assert "distill_loss" not in rows(tmp_path / "run")[0]


def test_the_argmax_of_a_stored_target_is_the_teacher_s(topk_cache: Path, tiny_cache: Path) -> None:
    """The same views of the same teacher, stored in full and truncated."""
    topk, dense = Reader(topk_cache), Reader(tiny_cache)
    short = {name: array for name, array in topk.arrays_of_view(1).items() if name != "digests"}
    full = dense.codec.decode(dense.arrays_of_view(1))
    for t in (1.0, 2.0):
        decoded = topk.codec.decode(short, t)
        assert (decoded.argmax(1) == full.argmax(1)).all()
        assert (decoded == full.astype(np.float16)).sum(1).min() >= 2
    topk.close()
    dense.close()
