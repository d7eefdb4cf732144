"""Run folders: creating and resuming them, and their logs, metrics and checkpoints.

    args.yaml  run.json  log.txt  metrics.jsonl  timings.jsonl  summary.csv  bad_images.jsonl
    checkpoints/{last,best}.pt  model/{config.json,model.safetensors}

Only timings.jsonl and log.txt depend on time or load, so that an interrupted and resumed run ends
with the same files as an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import platform
import subprocess
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fgkd import comparison, config, distributed, files
from fgkd.config import OptimSpec, RunSpec, TrainStudentConfig, TrainTeacherConfig, args_file
from fgkd.errors import (
    Difference,
    FgkdError,
    MissingFile,
    OptionError,
    RunMismatch,
    UnreadableFile,
    WrongKind,
)
from fgkd.models import loading
from fgkd.progress import SILENT, Progress
from fgkd.training import checkpoint, run_lock
from fgkd.training.schedules import warmup_epochs
from fgkd.views.recipes import ViewIdentity, ViewRecipe

Config = TrainTeacherConfig | TrainStudentConfig
METRIC_COLUMNS = ("epoch", "step", "loss", "lr", "val_top1_pct")  # first in summary.csv
PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "h5py")
# What every run.json holds, as a template of `files.matches`.
TEMPLATE = {
    **{"stage": str, "data": [str], "val_fraction": float},
    **{"parents": {}, "views": {"recipe": {}, "seed": int, "img_size": int}},
}


@dataclass(frozen=True)
class Parents:
    """What a student learned from; all fields are None for a teacher or a baseline.

    cache: folder or URL; identity_sha256, teachers: of the cache and of its teachers' weights.
    teacher: run folder of a live teacher; args_sha256: of its options.
    """

    cache: str | None = None
    identity_sha256: str | None = None
    teachers: tuple[str, ...] | None = None
    teacher: str | None = None
    args_sha256: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields that are set."""
        values = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if v}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Parents:
        """The inverse of `to_json`; unknown fields are ignored."""
        known = {f.name for f in dataclasses.fields(cls)} & set(values)
        teachers = values.get("teachers")
        found = {name: values[name] for name in known}
        return cls(**found | {"teachers": tuple(teachers) if teachers else None})


@dataclass(frozen=True)
class RunFacts:
    """run.json: what made a run.

    stage: the command, as "train-student". data: dataset specs with absolute paths. images: the
    SHA-256 of each split's keys and labels; {} in runs of earlier versions.
    """

    stage: str
    data: tuple[str, ...]
    val_fraction: float
    views: ViewIdentity
    parents: Parents = Parents()
    command: tuple[str, ...] = ()
    device: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    git: str | None = None
    images: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """run.json's content."""
        return {
            "stage": self.stage,
            "command": list(self.command),
            "versions": self.versions,
            "git": self.git,
            "device": self.device,
            "data": list(self.data),
            "val_fraction": self.val_fraction,
            "images": self.images,
            "views": _views_json(self.views),
            "parents": self.parents.to_json(),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RunFacts:
        """The inverse of `to_json`, of a value that matches `TEMPLATE`."""
        return cls(
            stage=values["stage"],
            data=tuple(values["data"]),
            val_fraction=values["val_fraction"],
            views=_views(values["views"]),
            parents=Parents.from_json(values["parents"]),
            command=tuple(values.get("command", ())),
            device=values.get("device", ""),
            versions=values.get("versions", {}),
            git=values.get("git"),
            images=values.get("images", {}),
        )

    def inputs(self) -> dict[str, Any]:
        """What must not change on resume: views and the content, not the place, of the parents."""
        moved = ("cache", "teacher")
        parents = {k: v for k, v in self.parents.to_json().items() if k not in moved}
        return {**parents, "val_fraction": self.val_fraction, "views": _views_json(self.views)}

    def images_differ(self, images: Mapping[str, str], *splits: str) -> list[Difference]:
        """Which of these splits have other images or labels than the run's; not of unknown ones."""
        known = [split for split in splits if split in self.images and split in images]
        return [
            Difference(f"images of {split}", self.images[split], images[split])
            for split in known
            if self.images[split] != images[split]
        ]


def _views_json(views: ViewIdentity) -> dict[str, Any]:
    """As in run.json, where the shorter side is that of an image store, if there is one."""
    found = views.to_json()
    side = found.pop("short_side")
    return found | ({"image_store": {"short_side": side}} if side else {})


def _views(value: dict[str, Any]) -> ViewIdentity:
    side = value.get("image_store", {}).get("short_side")
    recipe = ViewRecipe.from_dict(value["recipe"])
    return ViewIdentity(recipe, value["seed"], value["img_size"], side)


def library_versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    import importlib.metadata

    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **versions}


def git_commit() -> str | None:
    """The commit of the checkout that fgkd runs from; None outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--verify", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


class RunFolder:
    """The folder of one training run. Only rank 0 writes."""

    def __init__(self, path: Path, progress: Progress = SILENT) -> None:
        self.path = path
        self.progress = progress
        self.is_writer = distributed.rank() == 0
        self.last, self.best = path / "checkpoints" / "last.pt", path / "checkpoints" / "best.pt"
        self.model_dir = path / "model"

    @contextlib.contextmanager
    def opened(self, options: Config, spec: RunSpec, facts: RunFacts) -> Iterator[bool]:
        """`begin`, and hold the folder's lock while entered. Raises: as `begin`; RunInUse."""
        if self.is_writer and (self.path / "args.yaml").exists():
            with run_lock.held(self.path):  # before it is renamed, or anything is cut back
                pass
        resume = self.begin(options, spec, facts)
        with run_lock.held(self.path) if self.is_writer else contextlib.nullcontext():
            yield resume

    def begin(self, options: Config, spec: RunSpec, facts: RunFacts) -> bool:
        """Create the run, or check that `options` may continue it; True if a checkpoint is there.

        options: the command's config, written to args.yaml. Raises: OutputExists; RunMismatch when
        an option that changes results differs from the run's.
        """
        args = self.path / "args.yaml"
        if spec.resume and spec.overwrite:
            message = "resume and overwrite exclude each other"
            raise OptionError(message, option="overwrite", value=True)
        if self.is_writer:
            begun = args.exists() or (self.path / "run.json").exists()
            may_continue = spec.resume and begun
            given = (facts.parents.cache, facts.parents.teacher, options.model.initial_checkpoint)
            inputs = [*facts.data, *filter(None, [*given, options.data.image_store])]
            files.claim_folder(
                self.path, overwrite=spec.overwrite, may_continue=may_continue, inputs=inputs
            )
        distributed.barrier()
        if spec.resume and args.exists():
            begun_with = self._check_same(options, facts)
            new = {name: getattr(options.optim, name) for name in ("epochs", "warmup_epochs")}
            if self.is_writer and new["epochs"] != begun_with.optim.epochs:
                args_file.save_args(args, config.replaced(begun_with, **new))
        elif self.is_writer:
            if spec.resume:
                self.progress.message(f"nothing to resume in {self.path}: a new run begins")
            described = dataclasses.replace(facts, versions=library_versions(), git=git_commit())
            files.write_json(self.path / "run.json", described.to_json())
            # Last: its presence means that the run has begun.
            args_file.save_args(args, _portable(options, facts))
        if spec.resume and not self.last.exists():
            self.cut_back(0)  # stopped after the first epoch's row, before its checkpoint
        distributed.barrier()
        return spec.resume and self.last.exists()

    def _check_same(self, options: Config, facts: RunFacts) -> Config:
        """The options that this run was begun with.

        Raises: RunMismatch unless they are the same, free ones and paths apart.
        """
        begun, args = read(self.path), self.path / "args.yaml"
        if begun.stage != facts.stage:
            message = f"{self.path} is a run of {begun.stage}, not of {facts.stage}"
            different = [Difference("stage", begun.stage, facts.stage)]
            raise RunMismatch(message, differences=different, path=self.path, stage=begun.stage)
        held = args_file.load_yaml(args)
        if lacking := [name for name in config.to_dict(options) if name not in held]:
            reason = f"it lacks {', '.join(lacking[:3])}"
            message = f"{args} was cut short, or is of another version: {reason}"
            raise UnreadableFile(message, path=args, reason=reason)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the run may use old names
            begun_with = config.build(type(options), held, args)
        changed = config.diff(begun_with, options)
        if _is_extended(begun_with.optim, options.optim):
            changed = [one for one in changed if one.field not in ("epochs", "warmup_epochs")]
        changed += comparison.differences(begun.inputs(), facts.inputs())
        changed += begun.images_differ(facts.images, "train", "val")
        if changed:
            lines = "\n  ".join(map(str, changed))
            message = f"run {self.path} was begun with other options:\n  {lines}"
            raise RunMismatch(message, differences=changed, path=self.path, stage=begun.stage)
        return begun_with

    def log(self, line: str, show: Callable[[str], None] | None = None) -> None:
        """Report a line, by `show` or as a message, and append it to log.txt with the time."""
        if self.is_writer:
            (show or self.progress.message)(line)
            path, now = self.path / "log.txt", time.strftime("%Y-%m-%d %H:%M:%S")
            try:
                with open(path, "a", encoding="utf-8") as file:
                    file.write("".join(f"{now}  {part}\n" for part in line.split("\n")))
            except OSError as error:
                raise files.write_error(path, error) from error

    def add_row(self, row: Mapping[str, float], timing: Mapping[str, float]) -> None:
        """Append an epoch's metrics and timings, and rewrite summary.csv."""
        if self.is_writer:
            files.append_line(self.path / "metrics.jsonl", row)
            files.append_line(self.path / "timings.jsonl", timing)
            rows = files.read_lines(self.path / "metrics.jsonl")
            names = list(dict.fromkeys([*METRIC_COLUMNS, *(name for r in rows for name in r)]))
            out = io.StringIO()
            writer = csv.DictWriter(out, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            files.write_text(self.path / "summary.csv", out.getvalue())

    def add_unreadable(self, images: Iterable[tuple[str, str]]) -> None:
        """List unreadable images (key, reason), once each, in bad_images.jsonl."""
        path, found = self.path / "bad_images.jsonl", dict(images)
        if self.is_writer and found:
            known = {row["key"] for row in files.read_lines(path)}
            for key, reason in found.items():
                if key not in known:
                    files.append_line(path, {"key": key, "reason": reason})

    def num_unreadable(self) -> int:
        """How many images are listed in bad_images.jsonl."""
        return len(files.read_lines(self.path / "bad_images.jsonl"))

    def cut_back(self, step: int) -> None:
        """Drop the rows written after the checkpoint that a resumed run continues from."""
        if self.is_writer:
            for name in ("metrics.jsonl", "timings.jsonl"):
                path = self.path / name
                files.trim_lines(
                    path, lambda row: row.get("step") in range(step + 1), numbered_from_1
                )

    def save(self, path: Path, state: Mapping[str, object]) -> None:
        """Write a checkpoint (rank 0)."""
        if self.is_writer:
            checkpoint.save(path, state)


C = TypeVar("C", TrainTeacherConfig, TrainStudentConfig)


def _portable(options: Config, facts: RunFacts) -> Config:
    """The options with absolute paths, so that args.yaml can be used from any folder."""

    def absolute(value: str) -> str:
        return str(Path(value).absolute()) if Path(value).exists() else value

    paths: dict[str, object] = {"data": list(facts.data)} if options.data.data else {}
    for spec, names in ((options.data, ["image_store"]), (options.model, ["initial_checkpoint"])):
        paths |= {name: absolute(value) for name in names if (value := getattr(spec, name))}
    if isinstance(options, TrainStudentConfig):
        targets = options.targets
        paths |= {"cache": absolute(targets.cache)} if targets.cache else {}
        teachers = [loading.absolute(one) for one in targets.teacher]
        paths |= {"teacher": teachers} if teachers else {}
    return config.replaced(options, **paths)


# Schedules whose learning rate at a step does not depend on the number of steps.
EXTENDABLE = ("constant", "step")


def _is_extended(old: OptimSpec, new: OptimSpec) -> bool:
    """Whether the steps that a run has made are those of the same run with more epochs."""
    longer = new.epochs > old.epochs and new.sched == old.sched and new.sched in EXTENDABLE
    return longer and warmup_epochs(old) == warmup_epochs(new)


def keep_warmup(options: C) -> C:
    """The options of a resumed run with more epochs than it had, whose warmup stays as it was."""
    path = Path(options.run.output) / "args.yaml"
    if not options.run.resume or not path.is_file() or options.optim.warmup_epochs is not None:
        return options
    held = args_file.load_yaml(path)
    known = {name: held[name] for name in ("epochs", "warmup_epochs", "sched") if name in held}
    with contextlib.suppress(FgkdError):  # a damaged file is an error later
        old = config.build(OptimSpec, known, path)
        if old.epochs < options.optim.epochs and old.sched in EXTENDABLE:
            return config.replaced(options, warmup_epochs=warmup_epochs(old))
    return options


def read(path: Path) -> RunFacts:
    """run.json of a run folder. Raises: MissingFile, WrongKind (a cache), UnreadableFile."""
    if not path.is_dir():
        raise MissingFile(f"no run folder {path}", path=path)
    if (path / "identity.json").exists():
        raise WrongKind(f"{path} is a cache, not a run", path=path, found="cache")
    found = files.read_json(path / "run.json", "run description")
    if not files.matches(found, TEMPLATE):
        message = f"run description {path}/run.json is damaged, or another program's"
        raise UnreadableFile(message, path=path / "run.json", reason="not a run description")
    return RunFacts.from_json(found)


def metrics(path: Path) -> files.Rows:
    """The rows of a run's metrics.jsonl, one per epoch."""
    return numbered_from_1(files.read_numbers(path / "metrics.jsonl"))


def numbered_from_1(rows: files.Rows) -> files.Rows:
    """Rows of epochs from 1; runs of earlier versions count them from 0."""
    if not rows or rows[0].get("epoch") != 0:
        return rows
    return [row | {"epoch": row["epoch"] + 1} if "epoch" in row else row for row in rows]


def minutes(folder: Path) -> float | None:
    """Minutes a run or a capture took, evaluation and resumed parts included; None if unknown."""
    rows = files.read_numbers(folder / "timings.jsonl")
    return sum(r.get("train_s", 0.0) + r.get("eval_s", 0.0) for r in rows) / 60 if rows else None
