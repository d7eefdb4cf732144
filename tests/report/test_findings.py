"""What answers show, against brute force, scipy and the metrics of the table."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from fgkd.evaluation import metrics
from fgkd.report import findings
from fgkd.report.findings import Answers


@pytest.fixture(scope="module")
def logits() -> torch.Tensor:
    """200 images, 6 classes; of all degrees of confidence."""
    draw = np.random.default_rng(0)
    return torch.from_numpy(draw.normal(0, 1, (200, 6)) * draw.uniform(0, 6, (200, 1)))


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 6, 200)


@pytest.mark.parametrize(("hits", "images"), [(0, 7), (7, 7), (1, 1), (30, 200), (199, 200)])
def test_wilson_is_scipys(hits: int, images: int) -> None:
    expected = binomtest(hits, images).proportion_ci(method="wilson")
    low, high = findings.wilson(hits, images)
    assert low == pytest.approx(100 * expected.low, abs=1e-9)
    assert high == pytest.approx(100 * expected.high, abs=1e-9)


def test_of_no_image_nothing_is_known() -> None:
    assert findings.wilson(0, 0) == (0.0, 100.0)


def test_answers(logits: torch.Tensor, labels: np.ndarray) -> None:
    found = Answers.of(logits, labels)
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    assert np.array_equal(found.answers_N, p.argmax(1))
    np.testing.assert_allclose(found.confidence_N, p.max(1))
    assert np.array_equal(found.hit_N, p.argmax(1) == labels)
    some = found.take(np.array([5, 2]))
    assert some.answers_N.tolist() == [found.answers_N[5], found.answers_N[2]]


def test_a_row_that_is_not_finite_is_wrong_without_confidence() -> None:
    broken = torch.tensor([[np.nan, 1.0], [3.0, 1.0]])
    found = Answers.of(broken, np.array([0, 0]))
    assert found.hit_N.tolist() == [False, True]
    assert found.confidence_N[0] == 0


def test_the_bins_of_reliability_add_up_to_the_ece(
    logits: torch.Tensor, labels: np.ndarray
) -> None:
    found = Answers.of(logits, labels)
    bins = findings.reliability(found.confidence_N, found.hit_N)
    images, confidence, accuracy = bins[bins[:, 0] > 0].T
    assert images.sum() == 200
    ece = 100 * (images * np.abs(confidence - accuracy)).sum() / 200
    expected = metrics.ece_pct(logits_NK=logits, labels_N=torch.from_numpy(labels))
    assert ece == pytest.approx(expected)
    assert np.isnan(bins[bins[:, 0] == 0, 1:]).all()


def test_coverage(logits: torch.Tensor, labels: np.ndarray) -> None:
    found = Answers.of(logits, labels)
    curve = findings.coverage(found.confidence_N, found.hit_N)
    for kept in (1, 17, 200):
        threshold = np.sort(found.confidence_N)[-kept]
        assert curve[kept - 1] == found.hit_N[found.confidence_N >= threshold].mean()


def test_confused_pairs_both_ways(logits: torch.Tensor, labels: np.ndarray) -> None:
    answers = Answers.of(logits, labels).answers_N
    both = {
        (a, b): int(np.isin(labels, (a, b))[np.isin(answers, (a, b)) & (labels != answers)].sum())
        for a in range(6)
        for b in range(a + 1, 6)
    }
    found = findings.confused_pairs(labels, answers, 4)
    assert [both[pair] for pair in found] == sorted(both.values(), reverse=True)[:4]
    assert len(set(found)) == 4
    assert findings.confused_pairs(labels, labels, 4) == []


def test_groups_by_value_hold_every_image_once(labels: np.ndarray) -> None:
    values = np.round(np.random.default_rng(2).normal(0, 1, 200), 1)
    values[:20] = np.nan
    hits = labels == 0
    groups = findings.by_value(values, hits)
    low, middle, high, images, right = groups.T
    assert (low[1:] > high[:-1]).all()  # so that equal values are together
    assert (images.sum(), right.sum()) == (180, hits[20:].sum())
    assert 3 <= len(groups) <= 5
    for a, m, b, n, h in groups:
        inside = (values >= a) & (values <= b)
        assert (inside.sum(), hits[inside].sum(), np.median(values[inside])) == (n, h, m)
    assert (low <= middle).all()


@pytest.mark.parametrize("values", [np.full(9, 3.0), np.full(9, np.nan), np.zeros(0)])
def test_nothing_by_a_value_that_all_share(values: np.ndarray) -> None:
    assert len(findings.by_value(values, np.ones(len(values), bool))) == 0
