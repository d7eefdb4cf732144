"""A run's folder: create, resume or refuse it; its logs, metrics and checkpoints.

    args.yaml  run.json  log.txt  metrics.jsonl  timings.jsonl  summary.csv  bad_images.jsonl
    checkpoints/{last,best}.pt  model/{config.json,model.safetensors}

No file but timings.jsonl and log.txt depends on time or host load, so that an interrupted run
leaves the files of an unbroken one.
"""

from __future__ import annotations

import csv
import io
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fgkd import config, distributed, files
from fgkd.comparison import differences, refuse
from fgkd.config import args_file
from fgkd.errors import FgkdError, quoted
from fgkd.training import checkpoint

T = TypeVar("T")
# What every run.json holds, as a template of `has`.
FACTS = {"stage": str, "data": [str], "val_fraction": float, "parents": {}, "views": {"recipe": {}}}
METRIC_COLUMNS = ("epoch", "step", "loss", "lr", "val_top1_pct")  # first in summary.csv


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


class RunFolder:
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
            files.claim_folder(self.path, overwrite=overwrite, may_continue=resume and begun)
        distributed.barrier()
        if resume and args.exists():
            self._check_same(stage, options, facts)
        elif self.is_writer:
            files.write_json(self.path / "run.json", {"stage": stage, **facts})
            args_file.save_args(args, options)  # last: its presence means that the run has begun
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
        held = args_file.load_yaml(args)
        if lost := [name for name in config.to_dict(options) if name not in held]:
            raise FgkdError(
                f"{args} was cut short, or is another version's: it lacks {', '.join(lost[:3])}",
                f"cat {quoted(args)}   # has a line `option: value` for each option of the run",
            )
        changed = config.diff(config.build(type(options), held, str(args)), options)
        changed += differences(_inputs(begun), _inputs(facts))
        refuse(f"run {self.path} was begun with other options", changed, "run", self.path)

    def log(self, line: str) -> None:
        """Show a line and keep it in log.txt."""
        if self.is_writer:
            self._echo(line)
            path = self.path / "log.txt"
            try:
                with open(path, "a", encoding="utf-8") as file:
                    file.write(line + "\n")
            except OSError as error:
                raise files.write_error(path, error) from error

    def add_row(self, row: dict[str, Any], timing: dict[str, Any]) -> None:
        """Append an epoch's metrics and its timings; derive summary.csv anew."""
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

    def add_bad_images(self, bad: list[tuple[str, str]]) -> None:
        """List quarantined images once each."""
        path = self.path / "bad_images.jsonl"
        if self.is_writer and bad:
            known = {row["key"] for row in files.read_lines(path)}
            for key, reason in dict(bad).items():
                if key not in known:
                    files.append_line(path, {"key": key, "reason": reason})

    def cut_back(self, step: int) -> None:
        """Forget rows after the checkpoint that a resume continues from."""
        if self.is_writer:
            for name in ("metrics.jsonl", "timings.jsonl"):
                files.trim_lines(self.path / name, lambda row: row.get("step") in range(step + 1))

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
    found = files.read_json(path / "run.json", "run description")
    if not files.matches(found, FACTS):
        raise FgkdError(
            f"run description {path}/run.json is damaged, or another program's",
            f"head -c 300 {quoted(path / 'run.json')}",
        )
    return dict(found)
