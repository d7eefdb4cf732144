"""Ctrl-C and SIGTERM: finish the current step, save, and print the command that continues."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from fgkd import distributed


class Interrupted(Exception):
    """Work was saved after a signal; `command` continues it. kept: what was saved."""

    def __init__(self, number: int, command: str, kept: str) -> None:
        super().__init__(number, command, kept)
        self.number, self.command, self.kept = number, command, kept


class StoppedAtOnce(KeyboardInterrupt):
    """A second signal came before work was saved; `command` continues from the last checkpoint."""

    def __init__(self, number: int, command: str) -> None:
        super().__init__(number, command)
        self.number, self.command = number, command


class StopSignal:
    """While entered, SIGINT and SIGTERM set a flag; a second one ends the process at once.

    resume: whether the command that continues needs --resume. say: shows a line.
    """

    def __init__(self, resume: bool, say: Callable[[str], None]) -> None:
        self.number, self.resume, self._say = 0, resume, say

    def __enter__(self) -> None:
        self._old = {n: signal.signal(n, self._handle) for n in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            raise StoppedAtOnce(number, own_command(self.resume))
        self.number = number
        self._say("stopping after this step (once more to stop at once)")

    def interrupted(self, kept: str) -> Interrupted:
        """The exception that ends a stopped command; the signal may have been another rank's."""
        return Interrupted(self.number or signal.SIGINT, own_command(self.resume), kept)


def own_command(resume: bool) -> str:
    """This process's command line, ready to paste; with --resume where the command has it."""
    name = Path(sys.argv[0]).name
    program = f"python -m {__package__}" if name == "__main__.py" else name
    if "TORCHELASTIC_RUN_ID" in os.environ:
        program = f"torchrun {_torchrun_options()} {program.removeprefix('python ')}"
    args = [a for a in sys.argv[1:] if a not in ("--resume", "--overwrite")]
    return " ".join([program, *map(shlex.quote, args), *(["--resume"] if resume else [])])


def _torchrun_options() -> str:
    local, world = int(os.environ["LOCAL_WORLD_SIZE"]), distributed.world()
    nodes = f"--nnodes {world // local} --node-rank N --master-addr HOST " if world > local else ""
    return f"{nodes}--nproc-per-node {local}"
