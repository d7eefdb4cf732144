"""A run's folder: create, resume or refuse it; its logs, metrics and checkpoints.

    args.yaml  run.json  log.txt  metrics.jsonl  timings.jsonl  summary.csv  bad_images.jsonl
    checkpoints/{last,best}.pt  model/{config.json,model.safetensors}

No file but timings.jsonl and log.txt depends on time or host load, so that an interrupted run
leaves the files of an unbroken one.
"""

from __future__ import annotations

import csv
import io
import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from . import checkpoint, config, distributed, fsio
from .cache.manifest import explain_mismatch, has
from .errors import FgkdError, quoted

T = TypeVar("T")
# What every run.json holds, as a template of `has`.
FACTS = {"stage": str, "data": [str], "val_fraction": float, "parents": {}, "views": {"recipe": {}}}
METRIC_COLUMNS = ("epoch", "step", "loss", "lr", "val_top1_pct")  # first in summary.csv


def claim(path: Path, *, overwrite: bool, may_continue: bool, resume: bool = True) -> None:
    """Make sure that an output folder may be written: absent, empty, ours to continue, or moved.

    resume: whether the command has --resume. Raises: FgkdError naming the remedies when the
    folder exists and none was asked for.
    """
    if not str(path) or str(path) == ".":
        raise FgkdError("no output folder given", "--output runs/NAME")
    if path.exists() and not path.is_dir():
        raise FgkdError(f"--output {path} is a file", "--output runs/NAME")
    try:
        is_empty = not path.is_dir() or all(p.name.endswith(fsio.PARTIAL) for p in path.iterdir())
        if not (is_empty or may_continue or overwrite):
            raise FgkdError(
                f"--output {path} exists and is not empty",
                "--resume to continue it, " * resume
                + f"--overwrite to move it to {aside(path)}, or another --output",
            )
        if overwrite and not is_empty:
            os.replace(path, aside(path))
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(13, "permission denied")
    except OSError as error:
        raise fsio.write_error(path, error) from error


def aside(path: Path) -> Path:
    """The first free `NAME.oldN` beside a path, for what --overwrite moves away."""
    number = 1
    while (free := path.with_name(f"{path.name}.old{number}")).exists():
        number += 1
    return free


def load_yaml(path: Path) -> dict[str, Any]:
    """A mapping from a YAML file, safely. Raises: FgkdError naming the file and the line."""
    try:
        value = yaml.safe_load(path.read_text())
    except OSError as error:
        raise FgkdError(f"cannot read {path}: {error.strerror}", f"ls -l {quoted(path)}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FgkdError(f"{path} is not YAML: {error}", f"cat {quoted(path)}") from None
    if not isinstance(value, dict | None):
        raise FgkdError(
            f"{path} holds a {type(value).__name__}, not `option: value` lines",
            f"head {quoted(path)}",
        )
    return {str(key).replace("-", "_"): v for key, v in (value or {}).items()}


def save_args(path: Path, options: Any) -> None:
    """Write every option, resolved, as YAML that `-c` reads back."""
    text = yaml.safe_dump(config.to_dict(options), sort_keys=False, allow_unicode=True)
    fsio.write_text(path, text)


def describe_process(command: list[str], device: str) -> dict[str, Any]:
    """What made a run: command, versions, git commit, device."""
    import importlib.metadata

    packages = ("torch", "torchvision", "timm", "numpy", "pillow", "h5py")
    versions = {name: importlib.metadata.version(name) for name in packages}
    git = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "--verify", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "command": command,
        "versions": {"python": platform.python_version(), **versions},
        "git": git.stdout.strip() or None,
        "device": device,
    }


class RunDir:
    """One run's folder. Only rank 0 writes; `echo` shows a console line."""

    def __init__(self, path: Path, echo: Callable[[str], None]) -> None:
        self.path = path
        self._echo = echo
        self.is_writer = distributed.rank() == 0
        self.last, self.best = path / "checkpoints" / "last.pt", path / "checkpoints" / "best.pt"
        self.model_dir = path / "model"

    def begin(self, stage: str, options: T, facts: dict[str, Any]) -> bool:
        """Create, or check that `options` may continue, the run; True when there is work to resume.

        Raises: FgkdError when an option that changes numbers differs from the run's, old -> new.
        """
        resume = bool(getattr(options, "resume", False))
        overwrite = bool(getattr(options, "overwrite", False))
        args = self.path / "args.yaml"
        if resume and overwrite:
            raise FgkdError("--resume and --overwrite exclude each other", "--resume alone")
        if self.is_writer:
            begun = args.exists() or (self.path / "run.json").exists()
            claim(self.path, overwrite=overwrite, may_continue=resume and begun)
        distributed.barrier()
        if resume and args.exists():
            self._check_same(stage, options, facts)
        elif self.is_writer:
            fsio.write_json(self.path / "run.json", {"stage": stage, **facts})
            save_args(args, options)  # last: its presence means that the run has begun
        if resume and not self.last.exists():
            self.cut_back(0)  # stopped after the first epoch's row, before its checkpoint
        distributed.barrier()
        return resume and self.last.exists()

    def _check_same(self, stage: str, options: Any, facts: dict[str, Any]) -> None:
        """Raises: FgkdError unless this is the run that is there, paths and free options apart."""
        begun = read(self.path)
        if begun["stage"] != stage:
            raise FgkdError(
                f"--resume of {self.path}: it is a run of {begun['stage']}, not of {stage}",
                f"fgkd {begun['stage']} --resume --output {quoted(self.path)}",
            )
        args = self.path / "args.yaml"
        held = load_yaml(args)
        if lost := [name for name in config.to_dict(options) if name not in held]:
            raise FgkdError(
                f"{args} was cut short, or is another version's: it lacks {', '.join(lost[:3])}",
                f"cat {quoted(args)}   # has a line `option: value` for each option of the run",
            )
        changed = config.diff(config.build(type(options), held, str(args)), options)
        changed += explain_mismatch(_inputs(begun), _inputs(facts))
        if changed:
            raise FgkdError(
                f"--resume of {self.path} with changed options:\n  " + "\n  ".join(changed),
                f"fgkd {stage} --resume --output {quoted(self.path)}   # takes its own options",
            )

    def log(self, line: str) -> None:
        """Show a line and keep it in log.txt."""
        if self.is_writer:
            self._echo(line)
            path = self.path / "log.txt"
            try:
                with open(path, "a", encoding="utf-8") as file:
                    file.write(line + "\n")
            except OSError as error:
                raise fsio.write_error(path, error) from error

    def add_row(self, row: dict[str, Any], timing: dict[str, Any]) -> None:
        """Append an epoch's metrics and its timings; derive summary.csv anew."""
        if self.is_writer:
            fsio.append_line(self.path / "metrics.jsonl", row)
            fsio.append_line(self.path / "timings.jsonl", timing)
            rows = fsio.read_lines(self.path / "metrics.jsonl")
            names = list(dict.fromkeys([*METRIC_COLUMNS, *(name for r in rows for name in r)]))
            out = io.StringIO()
            writer = csv.DictWriter(out, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            fsio.write_text(self.path / "summary.csv", out.getvalue())

    def add_bad_images(self, bad: list[tuple[str, str]]) -> None:
        """List quarantined images once each."""
        path = self.path / "bad_images.jsonl"
        if self.is_writer and bad:
            known = {row["key"] for row in fsio.read_lines(path)}
            for key, reason in dict(bad).items():
                if key not in known:
                    fsio.append_line(path, {"key": key, "reason": reason})

    def cut_back(self, step: int) -> None:
        """Forget rows after the checkpoint that a resume continues from."""
        if self.is_writer:
            for name in ("metrics.jsonl", "timings.jsonl"):
                fsio.trim_lines(self.path / name, lambda row: row.get("step") in range(step + 1))

    def save(self, path: Path, state: dict[str, Any]) -> None:
        """Write a checkpoint (rank 0)."""
        if self.is_writer:
            checkpoint.save(path, state)


def _inputs(facts: dict[str, Any]) -> dict[str, Any]:
    """What of run.json must not change on resume: views, and the content of the parents."""
    parents = {k: v for k, v in facts.get("parents", {}).items() if k not in ("cache", "teacher")}
    return {**parents, **{k: facts.get(k) for k in ("val_fraction", "views")}}


def read(path: Path) -> dict[str, Any]:
    """run.json of a run. Raises: FgkdError when the folder is not a run's."""
    if not path.is_dir():
        raise FgkdError(f"no run folder {path}", f"ls {quoted(path.parent)}")
    if (path / "identity.json").exists():
        raise FgkdError(f"{path} is a cache, not a run", f"fgkd inspect {quoted(path)}")
    found = fsio.read_json(path / "run.json", "run description")
    if not has(found, FACTS):
        raise FgkdError(
            f"run description {path}/run.json is damaged, or another program's",
            f"head -c 300 {quoted(path / 'run.json')}",
        )
    return dict(found)
