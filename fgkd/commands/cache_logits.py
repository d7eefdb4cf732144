"""Writing a cache: the teacher's logits for every augmented view of every training image."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fgkd import compilation, config, device, distributed, files
from fgkd.cache import encodings, lock, manifest, samples_file
from fgkd.cache.identity import DatasetIdentity, Identity, TeacherIdentity
from fgkd.cache.samples import SampleTables, describe_splits
from fgkd.cache.shards import ShardJob, ShardRow
from fgkd.cache.writer import Writer
from fgkd.commands import banner, dry_run, image_stores, sources
from fgkd.commands.extension import find as find_extension
from fgkd.commands.teacher_accuracy import TeacherAccuracy, teacher_accuracy
from fgkd.config import CacheLogitsConfig, args_file
from fgkd.data import (
    DEFAULT_VAL_FRACTION,
    Dataset,
    absolute_specs,
    duplicates,
    moved,
    open_chosen,
    specs_of,
    with_boxes,
)
from fgkd.data.image_store import ImageStore
from fgkd.distillation.capture import Capture, image_reader
from fgkd.distillation.teachers import Teachers
from fgkd.errors import CompileError, MissingOption, OptionError, UnusedOption
from fgkd.estimate.capture import CaptureEstimate, estimate_capture, estimate_without_teacher
from fgkd.estimate.image_store import estimate_store
from fgkd.evaluation.cost import fitting_batch
from fgkd.models import Classifier
from fgkd.models.loading import absolute, is_here
from fgkd.progress import SILENT, Progress
from fgkd.views import recipes
from fgkd.views.view_set import ViewSet

BAD_IMAGES = "bad_images.jsonl"  # in a cache's folder: keys of images that were left out


@dataclass(frozen=True)
class CapturedCache:
    """What a capture did.

    complete: the manifest is written. finished: False if it was asked to stop. num_shards: that are
    there. left: shards still to be written, by this or other processes. targets_kept: of a shard
    that is not full. num_unreadable: images that were left out. shards_written: by this process.
    accuracy: of the teacher, of a complete cache with labels.
    """

    path: Path
    complete: bool
    finished: bool
    views: int
    num_shards: int = 0
    num_bytes: int = 0
    left: int = 0
    targets_kept: int = 0
    num_unreadable: int = 0
    shards_written: int = 0
    seconds: float = 0.0
    accuracy: TeacherAccuracy | None = None

    def __fspath__(self) -> str:
        return str(self.path)


@device.settings_kept()
def cache_logits(*, progress: Progress = SILENT, **options: Any) -> CapturedCache | CaptureEstimate:
    """Create, continue or grow a cache, with the options of `fgkd cache-logits` by name.

    `cache_logits(teacher="runs/teacher", views=30, output="runs/cache")`. With `dry_run=True`
    nothing is written, and the cost is estimated. Raises: FgkdError of many types.
    """
    return run(config.of_call(CacheLogitsConfig, options, "cache_logits()"), progress)


def run(options: CacheLogitsConfig, progress: Progress = SILENT) -> CapturedCache | CaptureEstimate:
    """`cache_logits` with its config."""
    started = time.monotonic()
    spec, data = options.capture, options.data
    paths = list(options.teacher.teacher)
    dry_run.check_json(spec)
    if spec.dry_run and data.data and not any(map(is_here, paths)):
        return dry_run.written(_estimate_without_teacher(options, progress), spec)
    if not paths:
        raise MissingOption("teacher is required", option="teacher", suggestion="runs/teacher")
    if not spec.output:
        raise MissingOption("output is required", option="output", suggestion="runs/cache")
    own = sources.describe_run(paths[0])
    sources.check(paths, options.source)
    hardware, device_line = device.set_up(spec.device)
    known = [sources.load(path, options.source) for path in paths]
    recorded = own.val_fraction if own else DEFAULT_VAL_FRACTION
    specs = absolute_specs(moved(specs_of(data), own.data if own else ()))
    inputs = CaptureInputs(
        teachers=known,
        names=[str(path) for path in paths],
        dataset=open_chosen(data, specs, recorded),
        specs=specs,
        recipe=own.views.recipe if own else None,
    )
    return write_cache(inputs, options, hardware, device_line, started, progress)


@dataclass(frozen=True)
class CaptureInputs:
    """What a cache is made of. recipe: of the views that the teacher was trained on, if known.

    names: where each teacher is from. specs: of the dataset, with absolute paths.
    """

    teachers: Sequence[Classifier]
    names: Sequence[str]
    dataset: Dataset
    specs: list[str]
    recipe: recipes.ViewRecipe | None = None


def write_cache(
    inputs: CaptureInputs,
    options: CacheLogitsConfig,
    hardware: torch.device,
    device_line: str,
    started: float,
    progress: Progress,
) -> CapturedCache | CaptureEstimate:
    """Create, continue or grow the cache of these teachers and images.

    started: `time.monotonic()` when the command began.
    """
    teacher_spec, spec, cache, data = options.teacher, options.capture, options.cache, options.data
    dataset, fraction = inputs.dataset, inputs.dataset.val_fraction
    known, fits = sources.fit(inputs.teachers, inputs.names, dataset.classes, options.source)
    recipe = recipes.resolve(options.view, inputs.recipe, dataset.chiral)
    if spec.extend and (spec.dry_run or spec.overwrite):
        message = f"extend has no effect with {'dry_run' if spec.dry_run else 'overwrite'}"
        raise UnusedOption(message, option="extend", value=True)
    folder, specs = Path(spec.output), inputs.specs
    extension = None
    if not spec.dry_run:
        claim(folder, options, inputs)
        extension = find_extension(folder, dataset, specs, fraction, spec.extend)
    if extension:
        dataset, specs = extension.dataset, extension.specs
        if extension.count:
            progress.message(f"adding {extension.count:,} images to {folder}")
    if recipe.bbox_crop:
        dataset = with_boxes(dataset)
    samples, side = dataset.train, data.image_store_side
    size = cache.img_size or known[0].input_size[-1]
    added = extension.added if extension else ()
    views = ViewSet(samples, recipe, cache.seed, size, cache.shard_size, side, added=added)
    progress.message(f"hashing the images of {banner.describe_data(dataset)}")
    tables = describe_splits(dataset, lambda num: image_stores.Counter(num, progress))
    identity = describe_identity(options, known, dataset, views, fraction, tables)
    if extension:
        extension.check(tables)
        identity = extension.identity(identity)
    read = image_reader(dataset)
    writer = Writer(folder, identity, tables, cache.views, read, journal_name(spec))
    # Of the first rank: on a file system over a network another may not see all shards yet.
    jobs, is_complete = distributed.gather(
        (own_jobs(writer, spec.shard_range), writer.is_complete())
    )[0]
    store = image_stores.open_store(data, samples, side, tables["train"].hashes)
    if is_complete and not spec.dry_run:
        return already_complete(folder, progress)
    teachers = Teachers(
        *(known, inputs.names, teacher_spec.ensemble, size, hardware),
        *(teacher_spec.dtype, 1),
    )
    teachers.to_device()  # not before the identity: it has the hash of the weights as they were
    amp = teachers.amp_dtype is not None
    max_batch = fitting_batch(teacher_spec.batch_size, known, hardware, amp)
    teachers = compiled(replace(teachers, max_batch=max_batch), options, jobs, views, progress)
    compile = "on" if teachers.runs else "off"
    options = config.replaced(options, compile=compile, batch_size=max_batch)
    for line in banner.banner(
        "fgkd cache-logits",
        {
            "data": banner.describe_data(duplicates.with_warnings(dataset)),
            "teacher": "; ".join([describe_teachers(identity, teachers), *fits]),
            "views": f"{cache.views} of each image at {size} px: "
            + banner.describe_recipe(recipe)
            + banner.describe_images(store, side),
            "plan": describe_plan(writer, jobs),
            "device": f"{device_line}{'; compiled' if teachers.runs else ''}; "
            f"{max_batch} views per batch; {spec.workers} workers",
            "output": str(folder),
        },
    ):
        progress.message(line)
    capture = Capture(
        *(writer, teachers, dataset, views),
        workers=spec.workers,
        skip_unreadable=data.skip_bad_images,
        images=store,
    )
    if spec.dry_run:
        store_estimate = estimate_store(store, samples, side)
        setup_s = time.monotonic() - started
        return dry_run.written(
            estimate_capture(capture, jobs, cache, store_estimate, setup_s), spec
        )
    if distributed.rank() == 0:
        writer.begin()
        args_file.save_args(folder / "args.yaml", resolved(options, specs))
    distributed.barrier()
    first, last = block_range(spec.shard_range)
    blocks = range(first, len(writer.block_rows) if last is None else last)
    name = journal_name(spec).removesuffix(".jsonl")
    with lock.held(folder, name, blocks) if distributed.rank() == 0 else nullcontext():
        return _write(capture, jobs, options, store, started, progress)


def claim(folder: Path, options: CacheLogitsConfig, inputs: CaptureInputs) -> None:
    """Make sure that a cache can be written into the folder, or continued there."""
    spec, store = options.capture, options.data.image_store
    if distributed.rank() == 0:
        if spec.overwrite:
            lock.refuse_in_use(folder)
        files.claim_folder(
            folder,
            overwrite=spec.overwrite,
            may_continue=(folder / "identity.json").exists() and not spec.overwrite,
            resume=False,
            inputs=[*inputs.specs, *map(str, inputs.names), *filter(None, [store])],
        )
    distributed.barrier()


def already_complete(folder: Path, progress: Progress) -> CapturedCache:
    """Say that there is nothing to do."""
    held = manifest.load(folder)
    progress.message(f"cache {folder} is complete with {held.views} views; nothing to do")
    return CapturedCache(
        path=folder,
        complete=True,
        finished=True,
        views=held.views,
        num_shards=len(held.shards),
        num_bytes=sum(row.num_bytes for row in held.shards),
        accuracy=teacher_accuracy(folder) if distributed.rank() == 0 else None,
    )


def compiled(
    teachers: Teachers,
    options: CacheLogitsConfig,
    jobs: Sequence[ShardJob],
    views: ViewSet,
    progress: Progress,
) -> Teachers:
    """The teachers, compiled if that is asked for or pays; see `compilation`."""
    spec, hardware = options.capture, teachers.device
    num_views = sum(len(views.blocks[job.block]) * (job.stop - job.start) for job in jobs)

    def saved_s() -> float:
        blank = teachers.blank_views()
        each = compilation.seconds(lambda: teachers.forward_async(blank), hardware)
        num_batches = num_views / teachers.max_batch / distributed.world()
        return compilation.INFERENCE_SAVES * each * num_batches

    if not compilation.chosen(spec.compile, Path(spec.output), hardware, saved_s):
        return teachers
    progress.message("compiling the teacher")
    try:
        return teachers.compiled()
    except CompileError as error:
        if spec.compile == "on":
            raise
        progress.message(f"{error}; it runs without")
        return teachers


def _write(
    capture: Capture,
    jobs: list[ShardJob],
    options: CacheLogitsConfig,
    store: ImageStore | None,
    started: float,
    progress: Progress,
) -> CapturedCache:
    """Write the missing shards, this rank's part of them."""
    writer, spec, data = capture.writer, options.capture, options.data
    image_stores.fill_store(
        store, workers=spec.workers, skip_unreadable=data.skip_bad_images, progress=progress
    )
    mine = jobs[distributed.rank() :: distributed.world()]
    with progress.stoppable():
        finished = capture.write_train(mine, progress)
        if not finished:
            left = len(writer.jobs())
            kept = len([row for row in writer.published() if row.block >= 0])
            return CapturedCache(
                *(writer.folder, False, False, writer.views),
                num_shards=kept,
                left=left,
                targets_kept=capture.targets_kept,
            )
        needs_val = distributed.gather(writer.needs_val())[0]
        if needs_val and block_range(spec.shard_range)[0] == 0:
            capture.write_val()
    everyone = distributed.gather(writer.written)
    if distributed.rank() == 0:
        writer.wait_for([row for rows in everyone[1:] for row in rows])
    return close(writer, time.monotonic() - started, len(mine))


def close(writer: Writer, seconds: float, shards_written: int) -> CapturedCache:
    """Write the manifest (on rank 0) if every writer is done."""
    folder = writer.folder
    if distributed.rank():
        return CapturedCache(
            folder, True, True, writer.views, shards_written=shards_written, seconds=seconds
        )
    files.append_line(folder / "timings.jsonl", {"stage": "cache-logits", "train_s": seconds})
    done = writer.finish()
    left = len(writer.jobs()) if done is None else 0
    sizes = [row.num_bytes for row in done.shards] if done else []
    unreadable = sorted({key for row in _rows(done) for key in row.unreadable})
    if unreadable:
        lines = [json.dumps({"key": key}, ensure_ascii=False) + "\n" for key in unreadable]
        files.write_text(folder / BAD_IMAGES, "".join(lines))
    return CapturedCache(
        path=folder,
        complete=done is not None,
        finished=True,
        views=writer.views,
        num_shards=len(sizes),
        num_bytes=sum(sizes),
        left=left,
        shards_written=shards_written,
        num_unreadable=len(unreadable),
        seconds=seconds,
        accuracy=teacher_accuracy(folder) if done else None,
    )


def _rows(done: manifest.Manifest | None) -> list[ShardRow]:
    """The shards of a complete cache, that of the validation images too."""
    return [*done.shards, *([done.val] if done.val else [])] if done else []


def resolved(options: CacheLogitsConfig, specs: list[str]) -> CacheLogitsConfig:
    """The options with absolute paths, so that args.yaml can be used from any folder."""
    teacher = [absolute(one) for one in options.teacher.teacher]
    return config.replaced(
        options, data=specs, teacher=teacher, dry_run=False, shard_range=None, extend=False
    )


def describe_identity(
    options: CacheLogitsConfig,
    teachers: Sequence[Classifier],
    dataset: Dataset,
    views: ViewSet,
    val_fraction: float,
    tables: SampleTables,
) -> Identity:
    """Everything that decides a cache's content, but the number of views."""
    spec, num_classes = options.cache, len(dataset.classes)
    return Identity(
        format=spec.format,
        encoding=encodings.describe(spec.encoding, spec.top_k, spec.temperatures, num_classes),
        shard_size=views.block_size,
        dtype=options.teacher.dtype,
        teachers=tuple(map(describe_teacher, teachers)),
        ensemble=options.teacher.ensemble if len(teachers) > 1 else None,
        views=views.identity,
        dataset=DatasetIdentity.of(dataset, val_fraction),
        samples_sha256=samples_file.fingerprint(tables),
    )


def describe_teacher(model: Classifier) -> TeacherIdentity:
    """One teacher's part of the identity."""
    config = model.config
    return TeacherIdentity(
        architecture=config["architecture"],
        weights_sha256=model.weights_sha256,
        img_size=config["input_size"][-1],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def block_range(given: str | None) -> tuple[int, int | None]:
    """`"A:B"` as (A, B); all blocks by default."""
    if not given:
        return 0, None
    found = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", given)
    first, last = map(int, found.groups()) if found else (0, 0)
    if first >= last:
        message = f"shard_range {given!r} is not A:B with A < B"
        raise OptionError(message, option="shard_range", value=given, suggestion="0:8")
    return first, last


def own_jobs(writer: Writer, shard_range: str | None) -> list[ShardJob]:
    """The missing shards of this machine's range of blocks."""
    first, last = block_range(shard_range)
    count = len(writer.block_rows)
    end = count if last is None else last
    if end > count:
        raise OptionError(
            f"shard_range {shard_range}: the plan has {count} blocks",
            option="shard_range",
            value=shard_range,
            suggestion=f"{min(first, count - 1)}:{count}",
        )
    return [job for job in writer.jobs() if first <= job.block < end]


def journal_name(spec: config.CaptureSpec) -> str:
    """One journal per writer, so that no two processes append to one file."""
    parts = [spec.shard_range.replace(":", "-")] if spec.shard_range else []
    parts += [f"rank{distributed.rank()}"] if distributed.rank() else []
    return "-".join(["shards", *parts]) + ".jsonl"


def describe_teachers(identity: Identity, teachers: Teachers) -> str:
    """Architectures and folders on one line."""
    pairs = zip(identity.teachers, teachers.names, strict=True)
    names = [f"{teacher.architecture} of {name}" for teacher, name in pairs]
    how = f", mean of {identity.ensemble}" if identity.ensemble else ""
    return f"{' and '.join(names)}{how}; {identity.dtype}"


def describe_plan(writer: Writer, jobs: list[ShardJob]) -> str:
    """Shards to write and their bytes."""
    left = sum(len(writer.block_rows[j.block]) * (j.stop - j.start) for j in jobs)
    size = files.human_bytes(left * writer.codec.bytes_per_view())
    name = writer.codec.name
    return f"{len(jobs)} shards to write: {left:,} targets, {name}, about {size} and overhead"


def _estimate_without_teacher(options: CacheLogitsConfig, progress: Progress) -> CaptureEstimate:
    """The bytes of the targets, before there is a teacher."""
    data, spec = options.data, options.capture
    dataset = open_chosen(data, absolute_specs(specs_of(data)))
    recipe = recipes.resolve(options.view, None, dataset.chiral)
    samples, side = dataset.train, data.image_store_side
    progress.message(f"fgkd cache-logits\n  data     {banner.describe_data(dataset)}\n")
    return estimate_without_teacher(
        options.cache,
        Path(spec.output),
        num_samples=len(samples),
        num_classes=len(dataset.classes),
        mixes=recipe.mixes,
        store=estimate_store(image_stores.open_store(data, samples, side), samples, side),
    )
