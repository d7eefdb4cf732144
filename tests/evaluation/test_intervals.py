"""Intervals and McNemar's test against brute force, scipy and their own promise (coverage)."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from fgkd import rng
from fgkd.evaluation import intervals, metrics

K = 6
RNG = np.random.default_rng(1)
LABELS = torch.from_numpy(RNG.integers(-1, K, 150))
LOGITS = torch.from_numpy(RNG.standard_normal((150, K)))
LOGITS[range(150), LABELS.clamp(min=0)] += 1.0


def test_intervals_equal_a_loop_over_the_metrics() -> None:
    """Resample rows, call the metrics on each resample: no cell, no shortcut."""
    found = intervals.accuracy_ci95(logits_NK=LOGITS, labels_N=LABELS, resamples=200)
    x, y = LOGITS[LABELS >= 0], LABELS[LABELS >= 0]
    words = rng.stream("bootstrap", len(y)).raw(200 * len(y)).tolist()
    rows = [((word >> 32) * len(y)) >> 32 for word in words]
    assert set(rows) == set(range(len(y)))
    for name, (low, high) in found.items():
        metric = getattr(metrics, name)
        values = [
            metric(logits_NK=x[part], labels_N=y[part]) for part in torch.tensor(rows).view(200, -1)
        ]
        assert (low, high) == pytest.approx(np.percentile(values, (2.5, 97.5))), name
        assert low < metric(logits_NK=x, labels_N=y) < high
    assert json.loads(json.dumps(found)) == found


def test_intervals_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = intervals.accuracy_ci95(logits_NK=LOGITS, labels_N=LABELS)
    assert whole == intervals.accuracy_ci95(logits_NK=LOGITS, labels_N=LABELS)
    monkeypatch.setattr(intervals, "CHUNK_DRAWS", 1000)
    assert whole == intervals.accuracy_ci95(logits_NK=LOGITS, labels_N=LABELS)


def test_a_proportions_interval_is_the_binomials() -> None:
    """Resampling hits is drawing from Binomial(N, share): its quantiles, up to 2,000 draws."""
    labels, x = torch.zeros(1000, dtype=torch.int64), torch.eye(2)[torch.arange(1000) % 10 // 7]
    low, high = intervals.accuracy_ci95(logits_NK=x, labels_N=labels)["top1_pct"]
    assert (low, high) == pytest.approx(stats.binom(1000, 0.7).ppf((0.025, 0.975)) / 10, abs=0.3)


def test_the_interval_covers_the_truth_95_times_in_100() -> None:
    """400 samples of 120 images of a model that is right with probability 0.7."""
    generator, covered = np.random.default_rng(0), 0
    labels = torch.zeros(120, dtype=torch.int64)
    for _ in range(400):
        x = torch.eye(2)[torch.from_numpy((generator.random(120) >= 0.7).astype(int))]
        low, high = intervals.accuracy_ci95(logits_NK=x, labels_N=labels, resamples=400)["top1_pct"]
        covered += low <= 70 <= high
    assert 0.91 < covered / 400 < 0.98


def test_no_label_gives_nan() -> None:
    found = intervals.accuracy_ci95(logits_NK=LOGITS[:2], labels_N=torch.tensor([-1, -1]))
    assert all(math.isnan(end) for ends in found.values() for end in ends)


def pair(both: int, only_this: int, only_other: int, neither: int) -> dict[str, np.ndarray]:
    counts = (both, only_this, only_other, neither)
    return {
        "hit_N": np.repeat([True, True, False, False], counts),
        "other_hit_N": np.repeat([True, False, True, False], counts),
    }


@pytest.mark.parametrize(("this", "other"), [(0, 0), (1, 0), (3, 9), (9, 3), (12, 12), (0, 24)])
def test_mcnemar_is_the_binomial_test_where_few_differ(this: int, other: int) -> None:
    found = intervals.mcnemar(**pair(50, this, other, 7))
    assert (found.only_this, found.only_other, found.test) == (this, other, "exact")
    n = this + other
    assert found.p_value == pytest.approx(stats.binomtest(this, n).pvalue if n else 1.0)


@pytest.mark.parametrize(("this", "other"), [(13, 12), (30, 60), (400, 300), (13, 13)])
def test_mcnemar_is_the_corrected_chi_square_where_many_differ(this: int, other: int) -> None:
    found = intervals.mcnemar(**pair(5, this, other, 7))
    statistic = max(abs(this - other) - 1, 0) ** 2 / (this + other)
    assert found.test == "chi-square"
    assert found.p_value == pytest.approx(stats.chi2(1).sf(statistic))
    assert found.p_value == pytest.approx(stats.binomtest(this, this + other).pvalue, abs=0.01)
