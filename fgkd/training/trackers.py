"""Experiment trackers: an epoch's metrics, written by each library's own client."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from fgkd import config, distributed, files
from fgkd.config import RunSpec
from fgkd.errors import FgkdError, TrackerError, UnknownName, near
from fgkd.packages import require

PROJECT = "fgkd"  # of wandb, and experiment of mlflow, unless the environment names another
IDS = "trackers.json"  # in the run's folder: the ids under which servers know the run


class Tracker(Protocol):
    """Where an epoch's row goes."""

    def add(self, row: Mapping[str, float]) -> None:
        """Log every number of an epoch's row at its step."""

    def close(self) -> None:
        """Flush and close the log."""


class TensorBoard:
    """Scalars in RUN/tensorboard; those that were logged after `step` are discarded."""

    def __init__(self, run: Path, options: Mapping[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = run / "tensorboard"
        try:
            self._writer = SummaryWriter(str(folder), purge_step=step + 1)
        except OSError as error:
            raise files.write_error(folder, error) from error

    def add(self, row: Mapping[str, float]) -> None:
        for name, value in _numbers(row).items():
            self._writer.add_scalar(name, value, int(row["step"]))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run of Weights & Biases, whose files are in RUN/wandb.

    Its client reads WANDB_MODE, WANDB_PROJECT and so on. A resumed run continues on the server.
    """

    def __init__(self, run: Path, options: Mapping[str, Any], step: int) -> None:
        import os

        import wandb

        name = _server_id(run, "wandb") or secrets.token_hex(4)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=name,
            resume="allow",
            dir=str(run),
            config=dict(options),
        )
        _keep_id(run, "wandb", name)

    def add(self, row: Mapping[str, float]) -> None:
        self._run.log(_numbers(row), step=int(row["step"]))

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of MLflow, on the server of MLFLOW_TRACKING_URI; a resumed run continues there."""

    def __init__(self, run: Path, options: Mapping[str, Any], step: int) -> None:
        import os

        import mlflow

        known = _server_id(run, "mlflow")
        if known is None and not os.environ.get("MLFLOW_EXPERIMENT_NAME"):
            mlflow.set_experiment(PROJECT)
        self._mlflow = mlflow
        self._run = mlflow.start_run(run_id=known, run_name=None if known else run.name)
        if known is None:
            mlflow.log_params({name: str(value)[:500] for name, value in options.items()})
        _keep_id(run, "mlflow", self._run.info.run_id)

    def add(self, row: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(_numbers(row), step=int(row["step"]))

    def close(self) -> None:
        self._mlflow.end_run()


TRACKERS: dict[str, tuple[type[Any], str]] = {  # and the package that each needs
    "tensorboard": (TensorBoard, "tensorboard"),
    "wandb": (WandB, "wandb"),
    "mlflow": (MLflow, "mlflow"),
}


def names_of(spec: RunSpec) -> list[str]:
    """The trackers of the options. Raises: UnknownName, MissingPackage."""
    names = [name.strip() for name in spec.log_with.split(",") if name.strip()]
    names += ["tensorboard"] if spec.tensorboard else []
    for name in names:
        if name not in TRACKERS:
            known = ", ".join(TRACKERS)
            message = f"no tracker {name!r}{near(name, list(TRACKERS))} (known: {known})"
            raise UnknownName(
                message, option="log_with", value=name, known=list(TRACKERS), suggestion=known
            )
        require(f"logging to {name}", TRACKERS[name][1])
    return list(dict.fromkeys(names))


class Trackers:
    """The trackers of a run, on rank 0. One that fails gets no more metrics; training goes on.

    options: the command's config. step: the step a resumed run continues from. warn: called with a
    message when a tracker fails. Raises: TrackerError for one that cannot be started; WriteError.
    """

    def __init__(
        self, run: Path, spec: RunSpec, options: object, step: int, warn: Callable[[str], None]
    ) -> None:
        self._open: dict[str, Tracker] = {}
        self._warn = warn
        for name in names_of(spec) if distributed.rank() == 0 else ():
            try:
                self._open[name] = TRACKERS[name][0](run, config.to_dict(options), step)
            except Exception as error:  # every client has its own
                self.close()
                if isinstance(error, FgkdError):
                    raise
                reason = _words(error)
                message = f"{name} cannot be started: {reason}"
                raise TrackerError(message, tracker=name, reason=reason) from error

    def add(self, row: Mapping[str, float]) -> None:
        """Log every number of an epoch's row at its step."""
        for name, tracker in list(self._open.items()):
            with self._survived(name):
                tracker.add(row)

    def close(self) -> None:
        """Flush and close the logs."""
        for name, tracker in list(self._open.items()):
            with self._survived(name):
                tracker.close()

    @contextlib.contextmanager
    def _survived(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            del self._open[name]
            what = f"{name} failed and gets no more metrics, which are all in metrics.jsonl"
            self._warn(f"WARNING: {what}: {_words(error)}")


def _words(error: Exception) -> str:
    """The first line of an error's text."""
    return (str(error) or type(error).__name__).splitlines()[0]


def _numbers(row: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "step"}


def _server_id(run: Path, name: str) -> str | None:
    with contextlib.suppress(FgkdError):
        found = files.read_json(run / IDS, "ids of trackers")
        return found.get(name) if isinstance(found, dict) else None
    return None


def _keep_id(run: Path, name: str, value: str) -> None:
    known: dict[str, str] = {}
    with contextlib.suppress(FgkdError):
        known = files.read_json(run / IDS, "ids of trackers")
    files.write_json(run / IDS, known | {name: value})
