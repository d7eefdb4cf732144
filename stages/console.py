"""The console: lines, the live line of progress, and checks of what was typed."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable
from typing import Any, TextIO

import click

from fgkd import distributed
from fgkd.errors import MissingOption
from fgkd.progress import Progress

from .signals import StopSignal

REDRAW_S = 0.1  # at most ten times a second


def echo(line: str) -> None:
    """Print a line from rank 0."""
    if distributed.rank() == 0:
        click.echo(line)


def next_step(command: str) -> None:
    """Print the next command, complete, so that it can be pasted."""
    echo(paint("next: ", "bright_blue", sys.stdout) + command)


def width() -> int | None:
    """Columns of the terminal; None where the output is a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def paint(text: str, colour: str, stream: TextIO) -> str:
    """Text in bold colour on a terminal, unless NO_COLOR is set (https://no-color.org)."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return click.style(text, fg=colour, bold=True) if stream.isatty() and not plain else text


def folded(line: str, columns: int | None) -> str:
    """A line broken at spaces, its rest indented as its text is: `  data     text`."""
    if columns is None or len(line) <= columns:
        return line
    _, gap, text = line.strip().partition("  ")
    indent = len(line) - len(line.lstrip())
    if gap and line.startswith("  "):
        indent = len(line) - len(text.lstrip())
    return "\n".join(
        textwrap.wrap(
            line,
            columns,
            subsequent_indent=" " * (indent or 2),
            break_long_words=False,
            break_on_hyphens=False,
            drop_whitespace=True,
        )
    )


class ConsoleProgress(Progress):
    """Shows a command's lines and, on a terminal, one live line; signals ask it to stop.

    resume: whether the command that continues needs --resume.
    """

    def __init__(self, resume: bool = False) -> None:
        self.stop = StopSignal(resume, self.message)
        self._live: Any = None  # of rich; None between one work and the next
        self._shown = False
        self._text: Callable[[], str] = str
        self._drawn = 0.0
        self._has_live = sys.stderr.isatty() and distributed.rank() == 0

    def message(self, line: str) -> None:
        self.close()
        echo("\n".join(folded(part, width()) for part in line.split("\n")))

    def interim(self, line: str) -> None:
        if not (self._has_live and sys.stdout.isatty()):  # else the live line has it
            self.message(line)

    def milestone(self, line: str, best: bool = False) -> None:
        columns = width()
        if columns is None or distributed.rank():
            super().milestone(line, best)
            return
        from rich.console import Console
        from rich.rule import Rule
        from rich.text import Text

        self.close()
        parts = f"{line}  best".split("  ") if best else line.split("  ")
        while len("  ".join(parts)) > columns - 4 and len(parts) > 2:  # the mark stays
            parts.pop(-2 if best else -1)
        title = Text("  ".join(parts), "bold green" if best else "default")
        Console(width=columns, highlight=False).print(Rule(title, align="left", style="dim"))

    def status(self, text: Callable[[], str]) -> None:
        self._text = text

    def advance(self, done: int, total: int) -> None:
        if not self._has_live:
            return
        now = time.monotonic()
        if done >= total:
            self.close()
            self._live = None
        elif now - self._drawn >= REDRAW_S:
            self._drawn = now
            if self._live is None or self._live.tasks[0].total != total:  # another work
                self.close()
                self._live = _live_line(total)
            self._live.update(0, completed=done, description=self._text())
            if not self._shown:
                self._live.start()
                self._shown = True
            self._live.refresh()

    def stoppable(self) -> contextlib.AbstractContextManager[None]:
        return self.stop

    def stop_requested(self) -> bool:
        return self.stop.number > 0

    def close(self) -> None:
        """Remove the live line; it is drawn again as the work goes on."""
        if self._shown:
            self._live.stop()
            self._shown = False


def _live_line(total: int) -> Any:
    """Text, a bar and the time left on one line, drawn when it is told to: it has no thread."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    live = Progress(
        TextColumn("{task.description}", table_column=Column(no_wrap=True), markup=False),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
        transient=True,
        auto_refresh=False,
        redirect_stdout=False,
        expand=True,
    )
    live.add_task("", total=total)
    return live


def require(value: object, option: str, example: str) -> None:
    """Raise MissingOption when a required option or argument was not given."""
    if not value:
        raise MissingOption(f"{option} is required", option=option, suggestion=example)
