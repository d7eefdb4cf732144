"""Example images as cards: the label, and each model's predicted class."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fgkd.data import Samples
from fgkd.report.findings import Answers
from fgkd.report.page import Card, Line
from fgkd.report.thumbnails import Thumbs

PER_CLASS = 2  # images of each class of a pair


class Examples:
    """Cards of rows of labelled samples, with the answers that were added, in that order."""

    def __init__(self, samples: Samples, classes: list[str], labels_N: np.ndarray) -> None:
        self.samples, self.classes, self.labels_N = samples, classes, labels_N
        self.answers: dict[str, Answers] = {}
        self.thumbs = Thumbs()

    def add(self, name: str, answers: Answers) -> None:
        """Show these answers on cards that are made from now on."""
        self.answers[name] = answers

    def cards(self, rows: Iterable[int]) -> list[Card]:
        """One card per row."""
        return [self._card(int(row)) for row in rows]

    def pair(self, answers: Answers, a: int, b: int) -> list[Card]:
        """Images of class a, then of b: first those taken for the other, then those got right."""
        chosen: list[int] = []
        for true, other in ((a, b), (b, a)):
            rank_N = np.where(answers.answers_N == other, 0, np.where(answers.hit_N, 1, 2))
            rows = np.flatnonzero(self.labels_N == true)
            chosen += rows[np.argsort(rank_N[rows], kind="stable")][:PER_CLASS].tolist()
        return self.cards(chosen)

    def _card(self, row: int) -> Card:
        key = self.samples.keys[row]
        lines = [Line("truth", self.classes[self.labels_N[row]])]
        for name, answers in self.answers.items():
            mark = "right" if answers.hit_N[row] else "wrong"
            said = self.classes[answers.answers_N[row]]
            lines.append(Line(name, f"{said} ({100 * answers.confidence_N[row]:.0f}\u00a0%)", mark))
        return Card(key, self.thumbs.of_file(self.samples.read(row), key), lines)
