"""Commands that must fail, and data to fail on."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from run_miniatures import fgkd

from fgkd.errors import FgkdError
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
