"""The JSON file of a dry run's estimate."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from fgkd import distributed, files
from fgkd.config import CaptureSpec, RunSpec
from fgkd.errors import UnusedOption
from fgkd.estimate.capture import CaptureEstimate
from fgkd.estimate.training import TrainingEstimate

E = TypeVar("E", TrainingEstimate, CaptureEstimate)


def check_json(spec: RunSpec | CaptureSpec) -> None:
    """Refuse `json` without `dry_run`, and a file that cannot be written.

    Raises: UnusedOption, OptionError.
    """
    if spec.json and not spec.dry_run:
        message, needs = "json has no effect without dry_run", ("dry_run", True)
        raise UnusedOption(message, option="json", value=spec.json, needs=needs)
    files.claim_option(spec.json, "json")


def written(found: E, spec: RunSpec | CaptureSpec) -> E:
    """The estimate, after writing it to the file that `json` names, if there is one."""
    if spec.json and distributed.rank() == 0:
        files.write_json(Path(spec.json), found.to_json())
    return found
