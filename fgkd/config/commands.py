"""The config of each command: composed of specs, or, where it has few options, one itself."""

from __future__ import annotations

from dataclasses import dataclass

from fgkd.config.schema import option
from fgkd.config.specs import (
    BATCH_HELP,
    DATA_HELP,
    DEVICE_HELP,
    EXPORT_NAMES,
    TEACHER_HELP,
    TTA_NAMES,
    WORKERS_HELP,
    ArchitectureSpec,
    CacheSpec,
    CaptureSpec,
    DataSpec,
    LossSpec,
    ModelSpec,
    OptimSpec,
    RunSpec,
    SourceSpec,
    TargetSpec,
    TaskLossSpec,
    TeacherSpec,
    ViewSpec,
)


@dataclass(frozen=True, kw_only=True)
class TrainTeacherConfig:
    """Options of `train-teacher`."""

    data: DataSpec = DataSpec()
    model: ModelSpec = ModelSpec()
    run: RunSpec = RunSpec()
    optim: OptimSpec = OptimSpec()
    loss: TaskLossSpec = TaskLossSpec()
    view: ViewSpec = ViewSpec()


@dataclass(frozen=True, kw_only=True)
class TrainStudentConfig:
    """Options of `train-student`."""

    targets: TargetSpec = TargetSpec()
    source: SourceSpec = SourceSpec()
    model: ModelSpec = ModelSpec()
    run: RunSpec = RunSpec()
    loss: LossSpec = LossSpec()
    optim: OptimSpec = OptimSpec()
    data: DataSpec = DataSpec()
    view: ViewSpec = ViewSpec()


@dataclass(frozen=True, kw_only=True)
class CacheLogitsConfig:
    """Options of `cache-logits`."""

    teacher: TeacherSpec = TeacherSpec()
    source: SourceSpec = SourceSpec()
    capture: CaptureSpec = CaptureSpec()
    cache: CacheSpec = CacheSpec()
    data: DataSpec = DataSpec()
    view: ViewSpec = ViewSpec()


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Options of `evaluate`."""

    split: str = option("test", "Split to evaluate.", choices=("train", "val", "test"))
    data: tuple[str, ...] = option((), DATA_HELP)
    source: SourceSpec = SourceSpec()
    tta: str = option(
        "none", "Test-time augmentation: views whose logits are averaged.", choices=TTA_NAMES
    )
    json: str | None = option(None, "File to write the results to.", place="path")
    report: str | None = option(
        None, "Folder to write an HTML report of plots and examples to.", place="path"
    )
    skip_bad_images: bool = option(False, "Leave out unreadable images, and say so.")
    batch_size: int | str = option(256, BATCH_HELP, low=1, words=("auto",))
    device: str = option("auto", DEVICE_HELP)
    workers: int = option(2, WORKERS_HELP, low=0)


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Options of `predict`."""

    top_k: int = option(5, "Classes given for each image.", low=1)
    output: str | None = option(
        None,
        "File to write: a table (.csv), or a line of JSON per image (.jsonl).",
        place="path",
    )
    tta: str = option(
        "none", "Test-time augmentation: views whose logits are averaged.", choices=TTA_NAMES
    )
    architecture: ArchitectureSpec = ArchitectureSpec()
    batch_size: int | str = option(256, BATCH_HELP, low=1, words=("auto",))
    device: str = option("auto", DEVICE_HELP)
    workers: int = option(2, WORKERS_HELP, low=0)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Options of `export`."""

    format: str | None = option(None, "Format of the file.", choices=EXPORT_NAMES)
    output: str | None = option(None, "Folder of the file. Default: RUN/export.", place="path")
    overwrite: bool = option(False, "Rename a file that exists.", free=True)
    architecture: ArchitectureSpec = ArchitectureSpec()


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Options of `inspect`."""

    verify: bool = option(
        False, "Check shards, rendered pixels and, given the teacher, its targets.", free=True
    )
    samples: int = option(64, "Images whose views are rendered again, 4 views each.", low=1)
    seed: int = option(0, "Seed of that choice.", low=0)
    data: tuple[str, ...] = option((), DATA_HELP)
    teacher: tuple[str, ...] = option(
        (), "The cache's teacher, run again. " + TEACHER_HELP, place="source"
    )
    source: SourceSpec = SourceSpec()
    json: str | None = option(None, "File to write the report to.", place="path")
    gallery: str | None = option(
        None, "Folder to write an HTML page of views and targets to.", place="path"
    )
    device: str = option("auto", DEVICE_HELP)
