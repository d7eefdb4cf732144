"""Scores: a model's logits of a split, and the metrics, intervals and tests made of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fgkd import comparison
from fgkd.data import Dataset, Samples
from fgkd.errors import OptionError
from fgkd.evaluation import inference, intervals, metrics
from fgkd.evaluation.cost import fitting_batch
from fgkd.evaluation.intervals import McNemar
from fgkd.evaluation.metrics import Metrics
from fgkd.models import Classifier
from fgkd.progress import SILENT, Progress
from fgkd.views.clean import TTA, clean_renderer
from fgkd.views.rendering import Unreadable


@dataclass(frozen=True, eq=False)
class Score:
    """A model's logits of a split's images.

    rows_N: the split's rows that could be read, in the order of logits_NK (float32, on the CPU).
    """

    model: str
    dataset: Dataset
    split: str
    tta: str
    rows_N: np.ndarray
    logits_NK: Tensor
    unreadable: list[Unreadable]

    @property
    def samples(self) -> Samples:
        """The split."""
        return self.dataset.splits[self.split]

    @property
    def keys(self) -> list[str]:
        """Of each image, its key."""
        return [self.samples.keys[row] for row in self.rows_N]

    @property
    def labels_N(self) -> np.ndarray:
        """Of each image, its class; -1: unknown."""
        return self.samples.labels[self.rows_N]

    @property
    def domains_N(self) -> np.ndarray:
        """Of each image, the index of its domain."""
        return self.samples.domains[self.rows_N]

    @property
    def hit_N(self) -> np.ndarray:
        """bool: whether the largest logit is the label's."""
        labels_N = torch.from_numpy(self.labels_N)
        return metrics.topk_correct(logits_NK=self.logits_NK, labels_N=labels_N, k=1).numpy()

    def same_images(self, other: Score) -> bool:
        """Whether two scores can be compared image by image."""
        return self.keys == other.keys and self.dataset.classes == other.dataset.classes


@dataclass(frozen=True)
class Result:
    """A scored run as a row of a table. mcnemar: (run, test against it) pairs."""

    run: str
    split: str
    model: str
    tta: str
    minutes: float | None
    metrics: Metrics
    mcnemar: tuple[tuple[str, McNemar], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """One flat object, as `evaluate` writes it."""
        return {
            "run": self.run,
            "split": self.split,
            "model": self.model,
            "tta": self.tta,
            "minutes": self.minutes,
            **self.metrics.to_json(),
            "mcnemar": [
                {"against": other} | dataclasses.asdict(test) for other, test in self.mcnemar
            ],
        }


def score(
    model: Classifier,
    dataset: Dataset,
    split: str,
    *,
    device: torch.device,
    name: str = "",
    tta: str = "none",
    skip_unreadable: bool = False,
    batch_size: int | str = 256,
    workers: int = 2,
    progress: Progress = SILENT,
) -> Score:
    """A model's logits of every image of a split, by timm's evaluation transform, in float32.

    name: of the model, for messages. batch_size: a number or "auto". Raises: DataMismatch for other
    classes than the model's; OptionError for a split that is not there, or for test-time
    augmentation that mirrors data in which left and right differ.
    """
    comparison.refuse(
        f"the data's classes are not those of {name or model.architecture}",
        comparison.differences(model.classes, dataset.classes, "classes"),
        "classes",
    )
    samples = dataset.splits.get(split)
    if samples is None:
        there = ", ".join(dataset.splits)
        message = f"{dataset.name} has no {split} split; it has {there}"
        last = list(dataset.splits)[-1]
        raise OptionError(message, option="split", value=split, suggestion=last)
    if dataset.chiral:
        refuse_mirroring(tta, f"in {dataset.name} left and right are different classes")
    model.to(device)
    found = inference.evaluate(
        model,
        clean_renderer(samples, model.eval_transform, skip_unreadable, tta),
        batch_size=fitting_batch(batch_size, [model], device),
        workers=workers,
        device=device,
        progress=progress,
    )
    return Score(model.architecture, dataset, split, tta, *found)


def refuse_mirroring(tta: str, why: str) -> None:
    """Raise OptionError for test-time augmentation that mirrors the images."""
    if TTA[tta][1]:
        message = f"tta {tta} mirrors images, and {why}"
        raise OptionError(message, option="tta", value=tta, suggestion="five-crop")


def measure(scored: Score, teacher_NK: Tensor | None = None) -> Metrics:
    """A score's metrics and 95 % intervals. teacher_NK: the teacher's logits of the same images."""
    logits_NK, labels_N = scored.logits_NK, torch.from_numpy(scored.labels_N)
    domains_N = torch.from_numpy(scored.domains_N)
    found = metrics.summarize(
        logits_NK=logits_NK,
        labels_N=labels_N,
        domains_N=domains_N,
        domain_names=scored.dataset.domains,
        teacher_NK=teacher_NK,
    )
    parts = {}
    for name, part in (found.domains or {}).items():
        here_N = domains_N == scored.dataset.domains.index(name)
        ci95 = intervals.accuracy_ci95(logits_NK=logits_NK[here_N], labels_N=labels_N[here_N])
        parts[name] = dataclasses.replace(part, ci95=ci95)
    ci95 = intervals.accuracy_ci95(logits_NK=logits_NK, labels_N=labels_N)
    return dataclasses.replace(found, domains=parts, ci95=ci95)


def mcnemar(this: Score, other: Score) -> McNemar:
    """McNemar's test of top-1 of two scores of the same images."""
    return intervals.mcnemar(hit_N=this.hit_N, other_hit_N=other.hit_N)
