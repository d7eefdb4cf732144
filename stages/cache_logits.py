"""Stage one, second half: write the teacher's logits for every view of every training image."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

from fgkd import comparison, config, distributed, files, models
from fgkd.cache import encodings, manifest, samples_file
from fgkd.cache.identity import DatasetIdentity, Identity, TeacherIdentity, ViewIdentity
from fgkd.cache.samples import SampleTable, SampleTables, describe
from fgkd.cache.shards import ShardJob
from fgkd.cache.writer import Writer
from fgkd.config import CacheLogitsConfig, args_file
from fgkd.data import Dataset, open_dataset, with_boxes
from fgkd.errors import FgkdError, quoted
from fgkd.training import run_folder
from fgkd.views.rendering import KeyedView

from . import assembly, planner, session
from .capture import Capture, Teachers, read_image


def cache_logits(options: CacheLogitsConfig) -> None:
    """Create, continue or grow the cache in --output; says so when it is complete already."""
    started = session.started()
    session.check_json(options)
    if (
        options.dry_run
        and options.data.data
        and not any(Path(t).exists() for t in options.teacher.teacher)
    ):
        planner.without_teacher(options)
        return
    session.require(options.teacher.teacher, "--teacher", "runs/teacher")
    session.require(options.output, "--output", "runs/cache")
    paths = [Path(spec) for spec in options.teacher.teacher]
    runs = [describe_run(path) for path in paths]
    device, device_line = session.start_device(options.device)
    known = [models.load(session.model_folder(path)) for path in paths]
    own = runs[0]
    val_fraction = options.val_fraction
    if val_fraction is None:
        val_fraction = own.get("val_fraction", 0.1)
    specs = session.absolute_specs(options.data.data or own.get("data", ()))
    dataset = open_dataset(specs, val_fraction)
    for path, model in zip(paths, known, strict=True):
        check_classes(model, dataset, path)
    own_recipe = own["views"]["recipe"] if own else None
    recipe = session.resolve_recipe(options, own_recipe, dataset.chiral)
    if recipe.bbox_crop:
        dataset = with_boxes(dataset)
    view = KeyedView(dataset.splits["train"], recipe, options.seed, options.image_store_side)
    size = options.img_size or known[0].config["input_size"][-1]
    teachers = Teachers(
        known, paths, options.ensemble, size, device, options.dtype, options.batch_size
    )
    folder = Path(options.output)
    if not options.dry_run and distributed.rank() == 0:
        may_continue = (folder / "identity.json").exists() and not options.overwrite
        files.claim_folder(
            folder, overwrite=options.overwrite, may_continue=may_continue, resume=False
        )
    distributed.barrier()
    session.echo(f"hashing the images of {session.describe_data(dataset)}")
    tables = describe_samples(dataset)
    identity = describe_identity(options, teachers, dataset, view, val_fraction, tables)
    name = journal_name(options)
    writer = Writer(folder, identity, tables, options.views, read_image(dataset), name)
    jobs = own_jobs(writer, options)
    images = assembly.open_images(options, view.samples, view.short_side, tables["train"].hashes)
    if writer.is_complete() and not options.dry_run:
        views = manifest.load(folder).views
        session.echo(f"cache {folder} is complete with {views} views; nothing to do")
        return
    for line in session.banner(
        "fgkd cache-logits",
        {
            "data": session.describe_data(session.with_leaks(dataset)),
            "teacher": describe_teachers(identity, teachers),
            "views": f"{options.views} of each image at {size} px: "
            + session.describe_recipe(recipe)
            + assembly.describe_images(images, view.short_side),
            "plan": describe_plan(writer, jobs),
            "device": f"{device_line}; {options.workers} workers",
            "output": str(folder),
        },
    ):
        session.echo(line)
    teachers.ready()
    capture = Capture(writer, teachers, dataset, view, options, images)
    if options.dry_run:
        planner.dry_run(capture, jobs, started)
        return
    if distributed.rank() == 0:
        writer.begin()
        args_file.save_args(folder / "args.yaml", resolved(options, specs))
    distributed.barrier()
    assembly.fill_images(images, options)
    with session.StopSignal(resume=False) as stop:
        capture.write_train(jobs[distributed.rank() :: distributed.world()], stop)
        stop.check()
        if writer.needs_val() and shard_range(options)[0] == 0:
            capture.write_val()
    distributed.barrier()
    if distributed.rank() == 0:
        close(writer, time.monotonic() - started)


def resolved(options: CacheLogitsConfig, specs: list[str]) -> CacheLogitsConfig:
    """The options with absolute paths, so that `-c CACHE/args.yaml` works from any folder."""
    teacher = tuple(str(Path(spec).resolve()) for spec in options.teacher.teacher)
    return config.replaced(
        options, data=specs, teacher=list(teacher), dry_run=False, shard_range=None
    )


def close(writer: Writer, seconds: float) -> None:
    """Write the manifest if every writer is done, and say what stands."""
    folder = writer.folder
    files.append_line(folder / "timings.jsonl", {"stage": "cache-logits", "train_s": seconds})
    done = writer.finish()
    if done is None:
        left = len(writer.jobs())
        session.echo(f"this part is done; {left} shards of other ranges are still to come")
        return
    num_bytes = sum(row.num_bytes for row in done.shards)
    session.echo(
        f"done: {len(done.shards)} shards, {files.human_bytes(num_bytes)}, "
        f"{files.human_time(seconds)}; the manifest is written, the cache is complete"
    )
    session.echo(f"next: fgkd train-student --cache {quoted(folder)} --model NAME --output RUN")


def describe_run(path: Path) -> dict[str, Any]:
    """run.json of a run folder; {} for a bare timm local-dir folder, which needs --data."""
    if (path / "config.json").exists() and not (path / "run.json").exists():
        return {}
    return run_folder.read(path)


def describe_samples(dataset: Dataset) -> SampleTables:
    """The tables of the train and val split; reads every image."""
    tables = dict.fromkeys(("train", "val"), SampleTable.empty())
    for split in {"train", "val"} & set(dataset.splits):
        with session.counting(len(dataset.splits[split])) as progress:
            tables[split] = describe(dataset.splits[split], progress)
    return tables


def describe_identity(
    options: CacheLogitsConfig,
    teachers: Teachers,
    dataset: Dataset,
    view: KeyedView,
    val_fraction: float,
    tables: SampleTables,
) -> Identity:
    """All that decides a cache's content but the number of views."""
    num_classes = len(dataset.classes)
    pairs = zip(teachers.models, teachers.paths, strict=True)
    return Identity(
        format=options.format,
        encoding=encodings.describe(
            options.encoding, options.top_k, options.temperatures, num_classes
        ),
        shard_size=options.shard_size,
        dtype=options.dtype,
        teachers=tuple(describe_teacher(model, path) for model, path in pairs),
        ensemble=options.ensemble if len(teachers.models) > 1 else None,
        views=ViewIdentity(view.recipe, view.seed, teachers.img_size, view.short_side),
        dataset=DatasetIdentity.of(dataset, val_fraction),
        samples_sha256=samples_file.fingerprint(tables),
    )


def describe_teacher(model: models.Classifier, path: Path) -> TeacherIdentity:
    """One teacher's part of the identity."""
    config = model.config
    return TeacherIdentity(
        architecture=config["architecture"],
        weights_sha256=files.sha256(session.model_folder(path) / "model.safetensors"),
        img_size=config["input_size"][-1],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def check_classes(model: models.Classifier, dataset: Dataset, path: Path) -> None:
    """Refuse data whose classes are not, in order, those the teacher learned."""
    known = list(model.config.get("label_names") or [])
    comparison.refuse(
        f"the data's classes are not those of {path}",
        comparison.differences(known, dataset.classes, "classes"),
        "classes",
    )


def shard_range(options: CacheLogitsConfig) -> tuple[int, int | None]:
    """--shard-range A:B as (A, B); all shards by default."""
    if not options.shard_range:
        return 0, None
    found = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", options.shard_range)
    first, last = map(int, found.groups()) if found else (0, 0)
    if first >= last:
        raise FgkdError(
            f"--shard-range {options.shard_range!r} is not A:B with A < B", "--shard-range 0:8"
        )
    return first, last


def own_jobs(writer: Writer, options: CacheLogitsConfig) -> list[ShardJob]:
    """The missing shards of this machine's range."""
    first, last = shard_range(options)
    end = len(writer.block_rows) if last is None else last
    if end > len(writer.block_rows):
        raise FgkdError(
            f"--shard-range {options.shard_range}: the plan has {len(writer.block_rows)} blocks",
            f"--shard-range {min(first, len(writer.block_rows) - 1)}:{len(writer.block_rows)}",
        )
    return [job for job in writer.jobs() if first <= job.block < end]


def journal_name(options: CacheLogitsConfig) -> str:
    """One journal a writer, so that no two processes append to one file."""
    parts = [options.shard_range.replace(":", "-")] if options.shard_range else []
    parts += [f"rank{distributed.rank()}"] if distributed.rank() else []
    return "-".join(["shards", *parts]) + ".jsonl"


def describe_teachers(identity: Identity, teachers: Teachers) -> str:
    """Architectures and folders on one line."""
    pairs = zip(identity.teachers, teachers.paths, strict=True)
    names = [f"{teacher.architecture} of {path}" for teacher, path in pairs]
    how = f", mean of {identity.ensemble}" if identity.ensemble else ""
    return f"{' and '.join(names)}{how}; {identity.dtype}"


def describe_plan(writer: Writer, jobs: list[ShardJob]) -> str:
    """Shards to write and their bytes."""
    left = sum(len(writer.block_rows[j.block]) * (j.stop - j.start) for j in jobs)
    size = files.human_bytes(left * writer.codec.bytes_per_view())
    name = writer.codec.name
    return f"{len(jobs)} shards to write: {left:,} targets, {name}, about {size} and overhead"
