"""Stage one, second half: write the teacher's logits for every view of every training image."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fgkd import distributed, engine, fsio, models, rundir, views
from fgkd.cache import manifest, store
from fgkd.cache.manifest import ShardJob
from fgkd.config import CacheLogitsConfig
from fgkd.data import Dataset, open_dataset
from fgkd.loader import CleanFetcher, Fetcher, KeyedView, Request, fetch

from . import session


def cache_logits(options: CacheLogitsConfig) -> None:
    """Create, continue or grow the cache in --output; says so when it is complete already."""
    session.require(options.teacher, "--teacher", "runs/teacher")
    run_dir = Path(options.teacher[0])
    run = rundir.read(run_dir)
    device, device_line = session.start_device(options.device)
    model = models.load(run_dir / "model")
    given = options.val_fraction
    val_fraction = run["val_fraction"] if given is None else given
    specs = session.absolute_specs(options.data or run["data"])
    dataset = open_dataset(specs, val_fraction)
    check_classes(model, dataset, run_dir)
    recipe = session.resolve_recipe(options, run["views"]["recipe"], dataset.chiral)
    size = options.img_size or model.config["input_size"][-1]

    folder = Path(options.output)
    rundir.claim(folder, overwrite=options.overwrite, may_continue=is_cache(folder))
    session.echo(f"hashing the images of {session.describe_data(dataset)}")
    identity: dict[str, Any] = {
        "format_version": manifest.FORMAT_VERSION,
        "format": options.format,
        "encoding": {"name": options.encoding},
        "shard_size": options.shard_size,
        "dtype": options.dtype,
        "teachers": [describe_teacher(model, run_dir)],
        "views": {"recipe": recipe.to_dict(), "seed": options.seed, "img_size": size},
        "dataset": manifest.describe_dataset(dataset, val_fraction),
        "train": manifest.describe_samples(dataset.splits["train"]),
        "val": manifest.describe_samples(dataset.splits["val"])
        if "val" in dataset.splits
        else {"keys": [], "labels": [], "sizes": [], "hashes": []},
    }
    writer = store.Writer(folder, identity, options.views)
    if is_complete(writer):
        session.echo(f"cache {folder} is complete with {options.views} views; nothing to do")
        return
    rundir.save_args(folder / "args.yaml", dataclasses.replace(options, data=tuple(specs)))
    for line in session.banner(
        "fgkd cache-logits",
        {
            "data": session.describe_data(dataset),
            "teacher": f"{identity['teachers'][0]['architecture']} of {run_dir}, {options.dtype}",
            "views": f"{options.views} of each image at {size} px: "
            + session.describe_recipe(recipe),
            "plan": describe_plan(writer, dataset),
            "device": f"{device_line}; {options.workers} workers",
            "output": str(folder),
        },
    ):
        session.echo(line)
    model.to(device, torch.float64 if options.dtype == "float64" else torch.float32)
    model.to(memory_format=torch.channels_last)
    started = time.monotonic()
    capture = Capture(writer, model, dataset, recipe, options, device)
    with session.StopSignal() as stop:
        capture.write_train(size, stop)
        stop.check(resume=False)
        capture.write_val()
    done = writer.finish()
    seconds = time.monotonic() - started
    num_bytes = sum(row["bytes"] for row in done["shards"])
    fsio.append_line(folder / "timings.jsonl", {"stage": "cache-logits", "train_s": seconds})
    session.echo(
        f"done: {len(done['shards'])} shards, {fsio.human_bytes(num_bytes)}, "
        f"{fsio.human_time(seconds)}; the manifest is written, the cache is complete"
    )
    session.echo(f"next: fgkd train-student --cache {folder} --model NAME --output RUN")


def is_cache(folder: Path) -> bool:
    """Whether a folder was begun by cache-logits."""
    return (folder / "identity.json").exists()


def is_complete(writer: store.Writer) -> bool:
    """Whether every shard is there and the manifest says so for at least these views."""
    has_manifest = (writer.folder / "manifest.json").exists()
    return has_manifest and not writer.jobs() and not writer.needs_val()


def check_classes(model: models.Classifier, dataset: Dataset, run_dir: Path) -> None:
    """Refuse data whose classes are not, in order, those the teacher learned."""
    known = list(model.config.get("label_names") or [])
    manifest.refuse(
        f"the data's classes are not those of {run_dir}",
        manifest.explain_mismatch(known, dataset.classes, "classes"),
        "give --data as the teacher was trained on it, in the same order",
    )


def describe_teacher(model: models.Classifier, run_dir: Path) -> dict[str, Any]:
    """The teacher's part of the identity."""
    config = model.config
    return {
        "architecture": config["architecture"],
        "weights_sha256": fsio.sha256(run_dir / "model" / "model.safetensors"),
        "img_size": config["input_size"][-1],
        "mean": list(config["mean"]),
        "std": list(config["std"]),
    }


def describe_plan(writer: store.Writer, dataset: Dataset) -> str:
    """Shards to write and their bytes."""
    jobs = writer.jobs()
    targets_left = sum(len(writer.block_rows[j.block]) * (j.stop - j.start) for j in jobs)
    name = writer.identity["encoding"]["name"]
    from fgkd.targets import bytes_per_view

    size = targets_left * bytes_per_view(name, len(dataset.classes))
    return (
        f"{len(jobs)} shards to write ({targets_left:,} targets, {name}, about "
        f"{fsio.human_bytes(size)})"
    )


class Capture:
    """Runs the teacher over the shards that are left; each image is decoded once for its views."""

    def __init__(
        self,
        writer: store.Writer,
        model: models.Classifier,
        dataset: Dataset,
        recipe: views.ViewRecipe,
        options: CacheLogitsConfig,
        device: torch.device,
    ) -> None:
        self.writer, self.model, self.dataset = writer, model, dataset
        self.recipe, self.options, self.device = recipe, options, device
        self.amp_dtype = torch.bfloat16 if options.dtype == "bfloat16" else None

    def _requests(self, jobs: list[ShardJob]) -> Iterator[Request]:
        """Whole images, in block order, as many as fill a teacher batch with their views."""
        for job in jobs:
            rows = self.writer.block_rows[job.block]
            chunk = max(1, self.options.batch_size // (job.stop - job.start))
            for i in range(0, len(rows), chunk):
                yield Request(rows[i : i + chunk], range(job.start, job.stop), check_content=True)

    def write_train(self, size: int, stop: session.StopSignal) -> None:
        """Publish every shard that is missing; a signal ends it between two batches."""
        jobs = self.writer.jobs()[distributed.rank() :: distributed.world()]
        samples = self.dataset.splits["train"]
        view = KeyedView(samples, self.recipe, self.options.seed, size)
        hashes = self.writer.identity["train"]["hashes"]
        fetcher = Fetcher(samples, view, size, hashes, self.options.skip_bad_images)
        total = sum(len(self.writer.block_rows[j.block]) * (j.stop - j.start) for j in jobs)
        pace = session.Pace(total, 10.0)
        answers = fetch(fetcher, self._requests(jobs), self.options.workers)
        predicted = engine.predict(
            self.model,
            answers,
            device=self.device,
            max_batch=self.options.batch_size,
            amp_dtype=self.amp_dtype,
        )
        done = 0
        for number, job in enumerate(jobs):
            rows = self.writer.block_rows[job.block]
            place = {row: i for i, row in enumerate(rows.tolist())}
            num_views = job.stop - job.start
            logits = np.zeros((num_views, len(rows), len(self.dataset.classes)), np.float32)
            digests = np.zeros((num_views, len(rows)), np.uint64)
            bad: list[str] = []
            left = len(rows)
            clock = time.monotonic()
            while left:
                answer, logits_NK = next(predicted)
                at = [place[row] for row in answer.rows.tolist()]
                by_image = logits_NK.view(len(at), num_views, logits_NK.shape[1]).numpy()
                logits[:, at] = by_image.transpose(1, 0, 2)
                digests[:, at] = answer.digests_BV.T
                bad += [key for key, _ in answer.bad]
                left -= len(at) + len(answer.bad)
                done += len(at) * num_views
                now = time.monotonic()
                line = pace.add(done, len(at) * num_views, 0.0, now - clock)
                clock = now
                if line:
                    session.echo(
                        f"shard {number + 1}/{len(jobs)}  target {done:,}/{total:,}  {line}"
                    )
                if stop.requested():
                    pace.close()
                    return
            self.writer.publish(job, logits, digests, bad)
        pace.close()

    def write_val(self) -> None:
        """Publish the clean logits of the validation images."""
        if not self.writer.needs_val():
            return
        samples = self.dataset.splits["val"]
        fetcher = CleanFetcher(samples, self.model.config, self.options.skip_bad_images)
        rows, logits_NK, bad = engine.evaluate(
            self.model,
            fetcher,
            batch_size=self.options.batch_size,
            workers=self.options.workers,
            device=self.device,
        )
        full_NK = np.zeros((len(samples), len(self.dataset.classes)), np.float32)
        full_NK[rows] = logits_NK.numpy()
        self.writer.publish_val(full_NK, [key for key, _ in bad])
