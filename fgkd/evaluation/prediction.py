"""Predictions: the most probable classes of any image files."""

from __future__ import annotations

import csv
import glob
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fgkd import files
from fgkd.data import Samples
from fgkd.data.decoding import FORMATS
from fgkd.errors import ModelError
from fgkd.evaluation import inference
from fgkd.evaluation.cost import fitting_batch
from fgkd.evaluation.scoring import refuse_mirroring
from fgkd.models import Classifier
from fgkd.progress import SILENT, Progress
from fgkd.views.clean import clean_renderer


@dataclass(frozen=True)
class Prediction:
    """A model's most probable classes of an image, or the reason why it could not be read.

    run: the model, as it was given; "" for a path that is no image. top: (class, probability)
    pairs, the most probable first.
    """

    image: str
    run: str
    top: tuple[tuple[str, float], ...] = ()
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        """As a line of the file of predictions."""
        run = {"run": self.run} if self.run else {}
        if self.error:
            return {"image": self.image, **run, "error": self.error}
        top = [{"class": name, "probability": p} for name, p in self.top]
        return {"image": self.image, **run, "top": top}


def find_images(given: Sequence[str | Path]) -> tuple[list[str], list[Prediction]]:
    """(image files, the paths that give none) of files, folders and patterns such as `d/**/*.jpg`.

    Folders are walked, and patterns expanded, in sorted order. A file is taken whatever its name.
    Raises: NotLocal for a URL.
    """
    from PIL import Image

    kinds = {end for end, kind in Image.registered_extensions().items() if kind in FORMATS}
    paths, missing = [], []
    for path in map(files.local_path, given):
        inside = sorted(path.rglob("*")) if path.is_dir() else []
        found = [
            str(file)
            for file in inside
            if file.suffix.lower() in kinds and not file.name.startswith(".") and file.is_file()
        ]
        if path.is_file():
            found = [str(path)]
        elif not path.exists() and glob.has_magic(str(path)):
            found = sorted(filter(os.path.isfile, glob.glob(str(path), recursive=True)))
        if not found:
            reason = "no image in this folder" if path.is_dir() else "no such file or folder"
            missing.append(Prediction(str(path), "", error=reason))
        paths += found
    return paths, missing


def predict(
    model: Classifier,
    paths: Sequence[str],
    *,
    name: str,
    device: torch.device,
    top_k: int = 5,
    tta: str = "none",
    batch_size: int | str = 256,
    workers: int = 2,
    progress: Progress = SILENT,
) -> list[Prediction]:
    """A model's predictions of image files, in their order. name: of the model, for the results.

    Classes of a model that does not name them are numbers from 0. Raises: ModelError for a model
    with a wrong number of names; OptionError for mirroring test-time augmentation, as it is not
    known whether left and right differ.
    """
    refuse_mirroring(tta, "it is not known whether left and right are different classes")
    num_classes = model.config["num_classes"]
    classes = model.classes or [str(k) for k in range(num_classes)]
    if len(classes) != num_classes:
        message = f"{name} names {len(classes)} classes of {num_classes}"
        raise ModelError(message, model=name)
    if not paths:
        return []
    none = np.full(len(paths), -1)
    samples = Samples(list(paths), none, np.zeros_like(none), list(paths))
    model.to(device)
    rows, logits_NK, unreadable = inference.evaluate(
        model,
        clean_renderer(samples, model.eval_transform, skip_unreadable=True, tta=tta),
        batch_size=fitting_batch(batch_size, [model], device),
        workers=workers,
        device=device,
        progress=progress,
    )
    probs_NK = logits_NK.double().softmax(1)
    best_NK = probs_NK.argsort(dim=1, descending=True, stable=True)[:, :top_k]
    at, reasons = {row: i for i, row in enumerate(rows.tolist())}, dict(unreadable)
    found = []
    for row, path in enumerate(paths):
        if row not in at:
            found.append(Prediction(path, name, error=reasons[path]))
            continue
        i = at[row]
        pairs = tuple((classes[k], probs_NK[i, k].item()) for k in best_NK[i].tolist())
        found.append(Prediction(path, name, pairs))
    return found


def to_csv(found: Sequence[Prediction]) -> str:
    """A table: image, run, error, then class_1, probability_1, class_2, ... of each."""
    number = max((len(one.top) for one in found), default=0)
    pairs = [f"{name}_{k}" for k in range(1, number + 1) for name in ("class", "probability")]
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(["image", "run", "error", *pairs])
    for one in found:
        cells = [value for name, p in one.top for value in (name, f"{p:.6g}")]
        cells += [""] * (len(pairs) - len(cells))
        rows.writerow([one.image, one.run, one.error, *cells])
    return out.getvalue()


def to_jsonl(found: Sequence[Prediction]) -> str:
    """A line of JSON an image."""
    return "".join(json.dumps(one.to_json(), ensure_ascii=False) + "\n" for one in found)


WRITERS: dict[str, Callable[[Sequence[Prediction]], str]] = {".csv": to_csv, ".jsonl": to_jsonl}


def writer(path: str) -> Callable[[Sequence[Prediction]], str] | None:
    """The function that writes predictions as a file's ending says; None for another ending."""
    return WRITERS.get(Path(path).suffix.lower())


def write(found: Sequence[Prediction], path: Path) -> None:
    """Write predictions to a .csv or .jsonl file."""
    make = writer(str(path))
    assert make, path
    files.write_text(path, make(found))
