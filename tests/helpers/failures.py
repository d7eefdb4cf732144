"""Commands that must fail, and data to fail on."""

from __future__ import annotations

import resource
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest

from fgkd.errors import FgkdError
from helpers.runs import fgkd
from stages import remedies


class Failure(str):
    """What a failed command wrote to stderr, with the error that it explains."""

    error: FgkdError

    @property
    def remedy(self) -> str:
        """The text after `Try: `, on one line."""
        found = self.partition("\nTry: ")[2].removesuffix("\n")
        assert "\n" not in found, self
        return found

    @property
    def remedy_argv(self) -> list[str]:
        """The words of the remedy, without its comment."""
        return shlex.split(self.remedy, comments=True)


Fails = Callable[..., Failure]


def exit_code(*args: object) -> int:
    """The exit code of a command run in this process, as if it were this one's own."""
    argv = ["fgkd", *(str(arg) for arg in args)]
    with mock.patch.object(sys, "argv", argv):
        try:
            fgkd(*args)
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


def make_fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """A function that runs a command which must explain its failure, and returns the message."""

    def fails(*args: object) -> Failure:
        capsys.readouterr()
        with mock.patch.object(remedies, "explain", wraps=remedies.explain) as explain:
            code = exit_code(*args)
        err = Failure(capsys.readouterr().err)
        assert code == 1, err
        assert err.startswith("error: "), err
        assert err.count("\nTry: ") == 1, err
        assert err.partition("\nTry: ")[2].strip(), err
        assert "Traceback" not in err
        (err.error,) = explain.call_args.args
        return err

    return fails


def copy_data(data: Path, to: Path) -> Path:
    """A copy of the data set that a test may damage."""
    shutil.copytree(data, to)
    return to


def first_image(data: Path, split: str = "train") -> Path:
    """The path of one image of a split."""
    return min((data / split).rglob("*.png"))


@contextmanager
def full_disk(num_bytes: int) -> Iterator[None]:
    """Every file stops growing at `num_bytes`: writes fail for real, in C libraries too."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def partials(folder: Path) -> list[Path]:
    """What a failed write should not leave."""
    return list(folder.rglob("*.partial"))


def run_command(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    code = exit_code(*argv)
    out, err = capsys.readouterr()
    return code, out, err
