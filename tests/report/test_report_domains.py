"""The page of a run on two datasets of JPEGs of several sizes, some of them without a label."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.datasets import pixels
from helpers.pages import Outline, assert_stands_alone, outline
from helpers.runs import TEACHER, fgkd

from fgkd import models
from fgkd.data import Dataset, open_dataset
from fgkd.evaluation import inference
from fgkd.views.clean import clean_renderer

SIZES = ((100, 75), (120, 88), (90, 80))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of three kinds of birds and two of dogs."""
    root = tmp_path_factory.mktemp("union")
    for domain, labels in (("birds", range(3)), ("dogs", range(3, 5))):
        for split, count in (("train", 6), ("val", 2), ("test", 6)):
            for label in labels:
                folder = root / domain / split / f"{domain[:-1]} & <{label}>"
                folder.mkdir(parents=True)
                for i in range(count):
                    number = 10 * len(split) + i
                    image = pixels(label, number, SIZES[i % 3])
                    image.save(folder / f"{i}.jpg", quality=60 + 5 * i)
    fgkd(
        *(
            "train-teacher",
            "--data",
            f"folder:{root / 'birds'}",
            "--data",
            f"folder:{root / 'dogs'}",
        ),
        *(*TEACHER, "--output", root / "run", "--epochs", 2, "--batch-size", 10, "--workers", 0),
    )
    return root / "run"


def answers(run: Path, dataset: Dataset) -> np.ndarray:
    """The model's answers on the test split."""
    model = models.load(run / "model")
    renderer = clean_renderer(dataset.splits["test"], model.eval_transform, False)
    device = torch.device("cpu")
    _, logits_NK, _ = inference.evaluate(model, renderer, batch_size=64, workers=0, device=device)
    return logits_NK.argmax(1).numpy()


def dataset_of(run: Path) -> Dataset:
    folders = [f"folder:{run.parent / name}" for name in ("birds", "dogs")]
    return open_dataset(folders)


def pct_of(page: Outline) -> dict[str, list[str]]:
    """domain -> the other cells of its row."""
    (rows,) = [rows for head, *rows in page.tables if head[0] == "domain"]
    return {row[0]: row[1:] for row in rows}


def test_domains_and_qualities(run: Path, tmp_path: Path) -> None:
    """Accuracy of each domain; a plot for each property in which the images differ."""
    fgkd("evaluate", run, "--report", tmp_path, "--workers", 0)
    page, dataset = outline(tmp_path / "index.html"), dataset_of(run)
    assert_stands_alone(page)
    samples, found = dataset.splits["test"], answers(run, dataset)
    for i, (name, cells) in enumerate(pct_of(page).items()):
        here = samples.domains == i
        assert (name, cells[0]) == (dataset.domains[i], str(here.sum()))
        pct = 100 * (found == samples.labels)[here].mean()
        assert float(cells[1].split()[0]) == pytest.approx(pct, abs=0.005)
    for title in ("Top-1 by domain", "by short side", "by file size", "by sharpness"):
        assert title in page.text
    assert "bird & <0>" in page.text
    assert any(image["src"].startswith("data:image/jpeg") for image in page.images)


def test_images_without_a_label_have_no_part(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every third label taken away: the page is of the other images alone."""

    def partly(*args: object) -> Dataset:
        dataset = dataset_of(run)
        dataset.splits["test"].labels[::3] = -1
        return dataset

    monkeypatch.setattr(sys.modules["fgkd.commands.evaluate"], "open_dataset", partly)
    fgkd("evaluate", run, "--report", tmp_path, "--workers", 0)
    page, samples = outline(tmp_path / "index.html"), partly().splits["test"]
    assert_stands_alone(page)
    (rows,) = [rows for head, *rows in page.tables if head[:2] == ["class", "images"]]
    known = samples.labels >= 0
    assert sum(int(row[1]) for row in rows) == known.sum() < len(samples)
    found = answers(run, dataset_of(run))
    for k, row in enumerate(rows):
        here = samples.labels == k
        assert float(row[2]) == pytest.approx(100 * (found[here] == k).mean(), abs=0.05)
    hidden = {samples.keys[i] for i in np.flatnonzero(~known)}
    assert not hidden & {image["alt"] for image in page.images}
