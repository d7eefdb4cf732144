"""Commands that must fail, and data to fail on."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from run_miniatures import fgkd

Fails = Callable[..., str]


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
    """A function that runs a command which must explain its failure, and gives what it said."""

    def fails(*args: object) -> str:
        capsys.readouterr()
        code = exit_code(*args)
        err = capsys.readouterr().err
        assert code == 1, err
        assert err.startswith("error: "), err
        assert err.count("\nTry: ") == 1, err
        assert err.partition("\nTry: ")[2].strip(), err
        assert "Traceback" not in err
        return err

    return fails


def copy_data(data: Path, to: Path) -> Path:
    """A copy of the data set that a test may damage."""
    shutil.copytree(data, to)
    return to


def first_image(data: Path, split: str = "train") -> Path:
    """The path of one image of a split."""
    return min((data / split).rglob("*.png"))
