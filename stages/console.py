"""The console: lines, the progress bar, and checks of what was typed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from fgkd import config, distributed, files
from fgkd.errors import MissingOption, UnusedOption
from fgkd.progress import Progress

from .signals import StopSignal


def echo(line: str) -> None:
    """Print a line from rank 0, above the progress bar if there is one."""
    if distributed.rank() == 0:
        if sys.stderr.isatty():
            from tqdm import tqdm

            tqdm.write(line, file=sys.stdout)
        else:
            click.echo(line)


class ConsoleProgress(Progress):
    """Shows a command's lines and, on a terminal, a progress bar; signals ask it to stop.

    resume: whether the command that continues needs --resume.
    """

    def __init__(self, resume: bool = False) -> None:
        self.stop = StopSignal(resume, echo)
        self._bar: Any = None

    def message(self, line: str) -> None:
        echo(line)

    def advance(self, done: int, total: int) -> None:
        if not sys.stderr.isatty() or distributed.rank():
            return
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(total=total, file=sys.stderr, leave=False, dynamic_ncols=True)
        self._bar.update(done - self._bar.n)
        if done >= total:
            self.close()

    def stoppable(self) -> contextlib.AbstractContextManager[None]:
        return self.stop

    def stop_requested(self) -> bool:
        return self.stop.number > 0

    def close(self) -> None:
        """Remove the progress bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def require(value: object, option: str, example: str) -> None:
    """Raise MissingOption when a required option or argument was not given."""
    if not value:
        raise MissingOption(f"{option} is required", option=option, suggestion=example)


def refuse_unused(options: object, names: Sequence[str], reason: str, advice: str = "") -> None:
    """Raise UnusedOption for options that were changed and would be ignored.

    advice: a way out besides leaving the option out.
    """
    known = config.leaves(type(options))
    for name in names:
        value = known[name].of(options)
        if value != known[name].field.default:
            raise _unused(name, reason, advice, value)


def refuse_typed(names: Sequence[str], reason: str, advice: str = "") -> None:
    """Raise UnusedOption for options on the command line that would be ignored.

    Those of a -c file are allowed: it may be that of another run, as a student's for its baseline.
    """
    context = click.get_current_context(silent=True)
    for name in names:
        if context and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise _unused(name, reason, advice)


def _unused(name: str, reason: str, advice: str, value: object = None) -> UnusedOption:
    flag = "--" + name.replace("_", "-")
    message = f"{flag} has no effect {reason}"
    return UnusedOption(message, option=name, value=value, reason=reason, advice=advice)


def check_json(run: config.RunSpec | config.CaptureSpec) -> None:
    """Check the --json of a command that has a dry run: only then, and writable."""
    if not run.dry_run:
        refuse_unused(run, ["json"], "without --dry-run", "add --dry-run")
    files.claim_option(run.json, "json")


def write_json(path: str | None, value: object) -> None:
    """Write results to the file of --json, if it was given."""
    if path and distributed.rank() == 0:
        files.write_json(Path(path), value)
