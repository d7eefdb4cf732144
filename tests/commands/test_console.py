"""What stages share: the pace of a run."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from helpers.failures import Fails
from helpers.runs import STUDENT

from fgkd import device
from fgkd.progress import Pace


@pytest.mark.parametrize("units", [1, 100])
def test_the_time_left_is_in_the_units_of_the_total(units: int) -> None:
    """Of steps in training; of targets, many to a batch, in capture."""
    pace = Pace(total=10 * units, interval_s=0.0)
    line = pace.add(2 * units, images=200, wait_s=0.5, step_s=2.0, units=2 * units)
    assert line == "100 img/s  data 25%  ETA 8s"
    line = pace.add(3 * units, images=100, wait_s=0.0, step_s=2.0, units=units)
    assert line == "50 img/s  data 0%  ETA 14s"  # of the steps since the last line


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")
def test_memory_that_a_step_frees_is_there_for_the_next() -> None:
    """100 MiB again come to cost no page fault; given back each time, one for each 4 KiB."""
    code = (
        "import resource, torch\nfrom fgkd import device\ndevice.set_up('cpu')\n"
        "faults = []\nfor _ in range(30):\n    torch.ones(25 << 20)\n"
        "    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)\n"
        "print(faults[-1] - faults[-2])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nBacktrace"),
            ("the GPU has too little memory: CUDA out of memory", "--grad-accum-steps 2 "),
        ),
        (
            RuntimeError("pool_backward does not have a deterministic implementation, but ..."),
            ("not deterministic on a GPU: pool_backward", "Try: --no-deterministic"),
        ),
    ],
)
def test_what_a_gpu_refuses_is_explained(
    error: Exception,
    said: tuple[str, ...],
    tiny_cache: Path,
    tmp_path: Path,
    fails: Fails,
) -> None:
    with mock.patch("fgkd.training.optim.clip_grad", side_effect=error):
        text = fails(
            *("train-student", "--cache", tiny_cache, *STUDENT, "--workers", 0),
            *("--output", tmp_path / "run"),
        )
    assert all(part in text for part in said)
    assert "Backtrace" not in text


@pytest.mark.parametrize("deterministic", [True, None, False])
def test_kernels_that_repeat_are_asked_for(
    deterministic: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training an operation without one is an error, elsewhere a warning."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that what is set below does not last
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    try:
        device.set_up_gpu(deterministic)
        assert torch.are_deterministic_algorithms_enabled() is (deterministic is not False)
        assert torch.is_deterministic_algorithms_warn_only_enabled() is (deterministic is None)
        assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) is (deterministic is not False)
        assert not torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.use_deterministic_algorithms(False)
