"""Score trained runs on a split: every image once, float32, timm's own evaluation transform."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fgkd import comparison, distributed, files, models
from fgkd.cache.reader import Reader
from fgkd.config import EvaluateConfig
from fgkd.data import Dataset, open_dataset
from fgkd.errors import FgkdError
from fgkd.evaluation import inference, intervals, metrics
from fgkd.models import weights
from fgkd.report import page, tables
from fgkd.training import run_folder
from fgkd.views.rendering import TTA, clean_renderer

from . import export, predict, session


def evaluate(options: EvaluateConfig, runs: list[str]) -> None:
    """Print one table of all runs; write it as JSON where asked."""
    session.require(runs, "RUN", "fgkd evaluate runs/student --split test")
    if options.export and options.predict:
        raise FgkdError("--export and --predict exclude each other", f"--export {options.export}")
    check_options(options)
    check_runs(runs, described=not (options.export or options.predict))
    if options.export:
        export.export(options, runs)
        return
    device, device_line = session.start_device(options.device)
    if options.predict:
        predict.predict(options, runs, device)
        return
    session.echo(f"evaluating {len(runs)} run(s) on the {options.split} split; {device_line}")
    if options.report:
        page.claim(Path(options.report), "--report")
    scored = [score(Path(path), options, device) for path in runs]
    teacher = next((s for s in scored if s["stage"] == "train-teacher"), None)
    results = [summarize(s, teacher, options.split) for s in scored]
    for number, against in compared(scored):
        results[number]["mcnemar"].append(mcnemar(scored[number], scored[against]))
    session.echo("\n" + tables.results_table(results))
    for line in tables.mcnemar_lines(results):
        session.echo(line)
    if options.tta != "none":
        session.echo(f"--tta {options.tta}: logits are means over views, not timm's centre crop")
    notes = footnotes(scored, results, teacher)
    for line in notes:
        session.echo(line)
    if options.json and distributed.rank() == 0:
        files.write_json(Path(options.json), results)
        session.echo(f"written to {options.json}")
    if options.report and distributed.rank() == 0:
        from . import report_page

        known = [teacher_logits(s, teacher, options.split) for s in scored]
        path = report_page.write(Path(options.report), scored, results, known, notes)
        session.echo(f"report: {path}")


def check_options(options: EvaluateConfig) -> None:
    """Refuse options that what is asked for would ignore, and a --json that cannot be written."""
    if options.export:
        unused, where = ["json", "report", "tta", "split", "data", "top"], "with --export"
    elif options.predict:
        unused, where = ["report", "split", "data", "export_dir", "overwrite"], "with --predict"
    else:
        unused, where = ["top", "export_dir", "overwrite"], "without --predict or --export"
    session.refuse_unused(options, unused, where, "run evaluate once for each")
    files.claim_option(options.json, "json")


def check_runs(runs: list[str], described: bool) -> None:
    """Refuse a run or model that is not there, before hours go into those named before it.

    described: each must be a run's folder with its run.json, and not a model's alone.
    """
    for run in runs:
        if described:
            run_folder.read(Path(run))
        weights.require_model(Path(run) / "model" if described else session.model_folder(run))


def score(path: Path, options: EvaluateConfig, device: torch.device) -> dict[str, Any]:
    """A run's logits on the split, with the samples they are of."""
    run = run_folder.read(path)
    model = models.load(path / "model").to(device)
    dataset = open_dataset(options.data or run.data, run.val_fraction)
    comparison.refuse(
        f"the data's classes are not those of {path}",
        comparison.differences(
            list(model.config.get("label_names") or []), dataset.classes, "classes"
        ),
        "classes",
    )
    samples = dataset.splits.get(options.split)
    if samples is None:
        raise FgkdError(
            f"{dataset.name} has no {options.split} split; it has {', '.join(dataset.splits)}",
            f"--split {list(dataset.splits)[-1]}",
        )
    if dataset.chiral and TTA[options.tta][1]:
        raise FgkdError(
            f"--tta {options.tta} mirrors images, and left and right are classes of {dataset.name}",
            "--tta five-crop",
        )
    renderer = clean_renderer(samples, model.config, options.skip_bad_images, options.tta)
    rows, logits_NK, bad = inference.evaluate(
        model,
        renderer,
        batch_size=options.batch_size,
        workers=options.workers,
        device=device,
    )
    architecture = model.config["architecture"]
    session.echo(f"  {path}: {architecture}, {len(rows):,} images of {dataset.name}")
    for key, reason in bad:
        session.echo(f"    left out {key}: {reason}")
    return {
        "path": path,
        "stage": run.stage,
        "specs": (*(options.data or run.data), run.val_fraction),
        "parents": run.parents.to_json(),
        "model": architecture,
        "tta": options.tta,
        "dataset": dataset,
        "keys": [samples.keys[row] for row in rows],
        "labels": samples.labels[rows],
        "domains": samples.domains[rows],
        "rows": rows,
        "logits": logits_NK,
    }


def summarize(scored: dict[str, Any], teacher: dict[str, Any] | None, split: str) -> dict[str, Any]:
    """A run's metrics and intervals; agreement where the teacher's logits are known."""
    dataset: Dataset = scored["dataset"]
    logits_NK, labels_N = scored["logits"], torch.from_numpy(scored["labels"])
    found = metrics.summarize(
        logits_NK=logits_NK,
        labels_N=labels_N,
        domains_N=torch.from_numpy(scored["domains"]),
        domain_names=dataset.domains,
        teacher_NK=teacher_logits(scored, teacher, split),
    )
    found["ci95"] = intervals.accuracy_ci95(logits_NK=logits_NK, labels_N=labels_N)
    for name, part in found["domains"].items():
        here_N = torch.from_numpy(scored["domains"] == dataset.domains.index(name))
        part["ci95"] = intervals.accuracy_ci95(
            logits_NK=logits_NK[here_N], labels_N=labels_N[here_N]
        )
    head = {"run": str(scored["path"]), "split": split}
    head |= {name: scored[name] for name in ("model", "tta")}
    return head | {"minutes": tables.minutes(scored["path"])} | found | {"mcnemar": []}


def compared(scored: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """Pairs of runs on the same images: all of up to three runs, else each with the first student.

    (later, earlier), so that a student is held against the baseline or teacher named before it.
    """
    first = next((i for i, s in enumerate(scored) if s["stage"] == "train-student"), 0)
    pairs = itertools.combinations(range(len(scored)), 2)
    return [
        (later, earlier)
        for earlier, later in pairs
        if (len(scored) <= 3 or first in (earlier, later))
        and scored[earlier]["keys"] == scored[later]["keys"]
    ]


def mcnemar(this: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """McNemar's test of top-1 of two runs on the same images."""
    hits = []
    for scored in (this, other):
        labels_N = torch.from_numpy(scored["labels"])
        hit_N = metrics.topk_correct(logits_NK=scored["logits"], labels_N=labels_N, k=1)
        hits.append(hit_N.numpy())
    against = {"against": str(other["path"])}
    return against | intervals.mcnemar(hit_N=hits[0], other_hit_N=hits[1])


def teacher_logits(
    scored: dict[str, Any], teacher: dict[str, Any] | None, split: str
) -> torch.Tensor | None:
    """What the teacher says of a student's images, where that is known."""
    if scored["stage"] == "train-teacher":
        return None
    if teacher is not None:
        return teacher["logits"] if teacher["keys"] == scored["keys"] else None
    return stored_targets(scored) if split == "val" else None


def stored_targets(scored: dict[str, Any]) -> torch.Tensor | None:
    """The teacher's validation logits in the cache that a student learned from, if it is there."""
    cache = scored["parents"].get("cache")
    if not cache or not (Path(cache) / "manifest.json").exists():
        return None
    reader = Reader(Path(cache))
    if reader.manifest.identity_sha256 != scored["parents"]["identity_sha256"]:
        return None
    stored = reader.val_logits()
    known = {key: i for i, key in enumerate(reader.samples["val"].keys)}
    if stored is None or any(key not in known for key in scored["keys"]):
        return None
    return torch.from_numpy(stored[np.array([known[key] for key in scored["keys"]])])


def footnotes(
    scored: list[dict[str, Any]], results: list[dict[str, Any]], teacher: dict[str, Any] | None
) -> list[str]:
    """What the table leaves unsaid: whom agreement is with, cache sizes, notes of the data."""
    lines = ["±: half the width of the 95 % interval (percentile bootstrap over images)"]
    if any("agreement_pct" in r for r in results):
        whom = "the teacher's stored logits" if teacher is None else teacher["path"]
        lines.append(f"agree %: same top-1 as {whom}; KL to it in nats at T = 1")
    for cache in dict.fromkeys(s["parents"].get("cache") for s in scored):
        if cache and (Path(cache) / "manifest.json").exists():
            reader = Reader(Path(cache))
            took = tables.minutes(Path(cache))
            num = len(reader.samples["train"])
            lines.append(
                f"cache {_shown(Path(cache))}: {reader.views} views x {num:,} images, "
                f"{files.human_bytes(reader.num_bytes)}"
                + ("" if took is None else f", {took:.1f} minutes")
            )
    distinct = {s["specs"]: s["dataset"] for s in scored}.values()
    notes = [note for dataset in distinct for note in session.with_leaks(dataset).notes]
    lines += map(session.note_line, dict.fromkeys(notes))
    return lines


def _shown(path: Path) -> Path:
    """The path as one would type it here: relative where it lies below the current folder."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
