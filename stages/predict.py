"""`evaluate --predict`: the classes that models see in any images."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fgkd import distributed, files, models
from fgkd.config import EvaluateConfig
from fgkd.data import Samples
from fgkd.data.decoding import FORMATS
from fgkd.errors import FgkdError
from fgkd.evaluation import inference
from fgkd.report import tables
from fgkd.views.rendering import TTA, clean_renderer

from . import session


def predict(options: EvaluateConfig, runs: list[str], device: torch.device) -> None:
    """Print each run's classes and probabilities; exit 1, after that, if an image was unreadable.

    One answer a run and image: those of several runs stand below one another.
    """
    if TTA[options.tta][1]:
        raise FgkdError(
            f"--predict with --tta {options.tta}: nobody says whether left and right are classes",
            "--tta five-crop",
        )
    paths, missing = find_images(options.predict)
    answers = [answer for run in runs for answer in _answers(run, paths, options, device)]
    answers += [{"image": path, "error": reason} for path, reason in missing]
    session.echo(_table(answers, many_runs=len(runs) > 1))
    if options.json and distributed.rank() == 0:
        lines = [json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers]
        files.write_text(Path(options.json), "".join(lines))
        session.echo(f"written to {options.json}")
    failed = dict.fromkeys(answer["image"] for answer in answers if "error" in answer)
    if failed:
        raise FgkdError(
            f"{len(failed)} of {len(paths) + len(missing)} images could not be read",
            f"file {shlex.join(list(failed)[:5])}",
        )


def find_images(given: tuple[str, ...]) -> tuple[list[str], list[tuple[str, str]]]:
    """Image files of the paths, folders walked in sorted order; and the paths that give none."""
    from PIL import Image

    kinds = {end for end, kind in Image.registered_extensions().items() if kind in FORMATS}
    paths, missing = [], []
    for path in map(Path, given):
        inside = sorted(path.rglob("*")) if path.is_dir() else []
        found = [
            str(file)
            for file in inside
            if file.suffix.lower() in kinds and not file.name.startswith(".") and file.is_file()
        ]
        if path.is_file():
            found = [str(path)]  # whatever its name: its content decides
        elif not found:
            reason = "no image in this folder" if path.is_dir() else "no such file or folder"
            missing.append((str(path), reason))
        paths += found
    return paths, missing


def _answers(
    run: str, paths: list[str], options: EvaluateConfig, device: torch.device
) -> Iterator[dict[str, Any]]:
    """A run's answer to each image, in order, or why there is none."""
    model = models.load(session.model_folder(run)).to(device)
    names = session.class_names(model.config, session.model_folder(run))
    if not paths:
        return
    none = np.full(len(paths), -1)
    samples = Samples(paths, none, np.zeros_like(none), paths)
    rows, logits_NK, bad = inference.evaluate(
        model,
        clean_renderer(samples, model.config, skip_unreadable=True, tta=options.tta),
        batch_size=options.batch_size,
        workers=options.workers,
        device=device,
    )
    probs_NK = logits_NK.double().softmax(1)
    best_NK = probs_NK.argsort(dim=1, descending=True, stable=True)[:, : options.top]
    at, reasons = {row: i for i, row in enumerate(rows.tolist())}, dict(bad)
    for row, path in enumerate(paths):
        head = {"image": path, "run": run}
        if row in at:
            i = at[row]
            top = [{"class": names[k], "probability": probs_NK[i, k].item()} for k in best_NK[i]]
            yield head | {"top": top}
        else:
            yield head | {"error": reasons[path]}


def _table(answers: list[dict[str, Any]], many_runs: bool) -> str:
    """A line a class, the image at its first; an error in place of the class."""
    rows = []
    for answer in answers:
        image = [answer["image"], *([answer.get("run", "")] if many_runs else [])]
        top = answer.get("top") or [{"class": f"error: {answer['error']}"}]
        for number, guess in enumerate(top):
            percent = f"{100 * guess['probability']:.2f}" if "probability" in guess else ""
            head = image if number == 0 else [""] * len(image)
            rows.append([*head, guess["class"], percent])
    header = ["image", *(["run"] if many_runs else []), "class", "probability %"]
    return "\n" + tables.table(header, rows, left=len(header) - 1)
