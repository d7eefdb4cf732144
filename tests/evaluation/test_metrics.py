"""The metrics against brute force over rows, and against timm where it counts the same."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import entropy as scipy_entropy
from torch import Tensor

from fgkd.evaluation import metrics

torch.set_num_threads(1)
N, K = 200, 9
RNG = np.random.default_rng(0)
LOGITS = torch.from_numpy(2 * RNG.standard_normal((N, K))).float()
TEACHER = LOGITS + torch.from_numpy(RNG.standard_normal((N, K))).float()
LABELS = torch.from_numpy(np.where(RNG.random(N) < 0.5, TEACHER.argmax(1), RNG.integers(0, K, N)))
LABELS[::10] = -1
KNOWN = LABELS >= 0
BOTH: dict[str, Tensor] = {"logits_NK": LOGITS, "labels_N": LABELS}


def ranking(row: np.ndarray) -> list[int]:
    """Classes from best to worst; a stable sort keeps the lowest of equal classes first."""
    return sorted(range(len(row)), key=lambda k: -row[k])


def topk_by_hand(logits: Tensor, labels: Tensor, k: int) -> float:
    pairs = zip(logits.numpy(), labels.tolist(), strict=True)
    hits = [label in ranking(row)[:k] for row, label in pairs if label >= 0]
    return 100 * sum(hits) / len(hits)


def ece_by_hand(probs: np.ndarray, labels: np.ndarray) -> float:
    """Guo et al. 2017, bin by bin."""
    confidence, hit, total = probs.max(1), probs.argmax(1) == labels, 0.0
    for m in range(15):
        inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    return 100 * total


def test_topk_equals_brute_force_and_timm() -> None:
    from timm.utils import accuracy

    timm_top1, timm_top5 = accuracy(LOGITS[KNOWN], LABELS[KNOWN], topk=(1, 5))
    top1, top5 = metrics.top1_pct(**BOTH), metrics.top5_pct(**BOTH)
    assert top1 == pytest.approx(topk_by_hand(LOGITS, LABELS, 1)) == pytest.approx(timm_top1.item())
    assert top5 == pytest.approx(topk_by_hand(LOGITS, LABELS, 5)) == pytest.approx(timm_top5.item())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=4, max_size=4), min_size=1, max_size=8))
def test_ties_go_to_the_lowest_class(rows: list[list[int]]) -> None:
    x = torch.tensor(rows, dtype=torch.float16)  # ties are common in a half-precision cache
    labels = torch.arange(len(rows)) % 4
    for k in (1, 2, 3):
        hits = metrics.topk_correct(logits_NK=x, labels_N=labels, k=k)
        assert 100 * hits.double().mean().item() == pytest.approx(topk_by_hand(x, labels, k))
    assert torch.equal(
        metrics.topk_correct(logits_NK=x, labels_N=labels, k=1), x.argmax(1) == labels
    )


def test_top5_of_fewer_than_five_classes_is_certain() -> None:
    assert metrics.top5_pct(logits_NK=LOGITS[:, :3], labels_N=LABELS.clamp(max=2)) == 100


def test_mean_class_pct_weighs_classes_alike() -> None:
    x, y = LOGITS[KNOWN].numpy(), LABELS[KNOWN].numpy()
    recalls = [(x[y == k].argmax(1) == k).mean() for k in np.unique(y)]
    assert metrics.mean_class_pct(**BOTH) == pytest.approx(100 * np.mean(recalls))
    three_of_class_0 = {
        "logits_NK": torch.eye(3)[[0, 0, 1, 1]],
        "labels_N": torch.tensor([0, 0, 0, 2]),
    }
    assert metrics.mean_class_pct(**three_of_class_0) == pytest.approx((200 / 3 + 0) / 2)


def test_nll_and_ece_equal_brute_force() -> None:
    probs, y = softmax(LOGITS[KNOWN].double().numpy(), axis=1), LABELS[KNOWN].numpy()
    assert metrics.nll(**BOTH) == pytest.approx(-np.log(probs[range(len(y)), y]).mean())
    assert metrics.ece_pct(**BOTH) == pytest.approx(ece_by_hand(probs, y))


def test_ece_by_hand() -> None:
    # A bin with 0.9, 0.9 (one hit), one with 0.95 (hit), one with 0.6 (hit).
    probs = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.95, 0.05], [0.4, 0.6]], dtype=torch.float64)
    ece = metrics.ece_pct(logits_NK=probs.log(), labels_N=torch.tensor([0, 1, 0, 1]))
    assert ece == pytest.approx(100 * (abs(1 - 1.8) + abs(1 - 0.95) + abs(1 - 0.6)) / 4)
    sure = torch.tensor([[100.0, 0.0]]).repeat(4, 1)
    assert metrics.ece_pct(logits_NK=sure, labels_N=torch.zeros(4, dtype=torch.int64)) == 0
    assert metrics.ece_pct(logits_NK=sure, labels_N=torch.ones(4, dtype=torch.int64)) == 100


def test_teacher_metrics_equal_brute_force() -> None:
    p, q = (softmax(x.double().numpy(), axis=1) for x in (TEACHER, LOGITS))
    pair = {"logits_NK": LOGITS, "teacher_NK": TEACHER}
    assert metrics.agreement_pct(**pair) == pytest.approx(100 * (p.argmax(1) == q.argmax(1)).mean())
    assert metrics.kl_to_teacher(**pair) == pytest.approx(scipy_entropy(p, q, axis=1).mean())
    assert metrics.entropy(logits_NK=LOGITS) == pytest.approx(scipy_entropy(q, axis=1).mean())
    assert metrics.kl_to_teacher(logits_NK=LOGITS, teacher_NK=LOGITS + 7) == pytest.approx(
        0, abs=1e-9
    )
    assert metrics.entropy(logits_NK=torch.zeros(2, K)) == pytest.approx(math.log(K))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_wrong_and_crash_nothing(bad: float) -> None:
    x, labels = torch.eye(4), torch.arange(4)
    x[1, 1], x[2, 0] = bad, bad
    row = summary(logits_NK=x, labels_N=labels, domains_N=labels * 0, teacher_NK=x)
    assert row["top1_pct"] == row["top5_pct"] == row["mean_class_pct"] == 50
    assert row["agreement_pct"] == 50


@pytest.mark.parametrize("rows", [0, 3])
def test_no_label_at_all_gives_nan(rows: int) -> None:
    unlabelled = {"logits_NK": LOGITS[:rows], "labels_N": torch.full((rows,), -1)}
    row = summary(**unlabelled, domains_N=torch.zeros(rows))
    assert row.pop("num_images") == rows
    row.pop("domains")
    assert all(math.isnan(value) for value in row.values())


def summary(**changes: Any) -> dict[str, Any]:
    base = {**BOTH, "domains_N": torch.arange(N) % 2, "domain_names": ["cub", "dogs", "cars"]}
    return metrics.summarize(**(base | changes)).to_json()


def test_summary_of_a_domain_is_the_summary_of_its_images() -> None:
    row = summary(teacher_NK=TEACHER)
    assert json.loads(json.dumps(row)) == row  # plain numbers, for metrics.jsonl
    assert list(row["domains"]) == ["cub", "dogs"]  # no image of cars here
    odd = {key: value[1::2] for key, value in (BOTH | {"teacher_NK": TEACHER}).items()}
    alone = summary(**odd, domains_N=torch.zeros(N // 2))
    assert row["domains"]["dogs"] == {k: v for k, v in alone.items() if k != "domains"}
    assert row["num_images"] == N == sum(d["num_images"] for d in row["domains"].values())
    assert "agreement_pct" not in summary()


def test_a_domain_is_judged_on_the_full_label_space() -> None:
    """Birds 0..199, dogs 200..319: the best bird is right, yet a dog beats it."""
    x = torch.zeros(1, 320)
    x[0, 7], x[0, 250] = 1.0, 2.0
    row = summary(logits_NK=x, labels_N=torch.tensor([7]), domains_N=torch.zeros(1))
    assert row["domains"]["cub"]["top1_pct"] == 0
    assert row["domains"]["cub"]["top5_pct"] == 100
