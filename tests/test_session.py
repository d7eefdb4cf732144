"""What stages share: the pace of a run."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from stages import session


@pytest.mark.parametrize("units", [1, 100])
def test_the_time_left_is_in_the_units_of_the_total(units: int) -> None:
    """Of steps in training; of targets, many to a batch, in capture."""
    pace = session.Pace(total=10 * units, interval_s=0.0)
    line = pace.add(2 * units, images=200, wait_s=0.5, step_s=2.0, units=2 * units)
    assert line == "100 img/s  data 25%  ETA 8s"
    line = pace.add(3 * units, images=100, wait_s=0.0, step_s=2.0, units=units)
    assert line == "50 img/s  data 0%  ETA 14s"  # of the steps since the last line


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")
def test_memory_that_a_step_frees_is_there_for_the_next() -> None:
    """100 MiB again come to cost no page fault; given back each time, one for each 4 KiB."""
    code = (
        "import resource, torch\nfrom stages import session\nsession.start_device('cpu')\n"
        "faults = []\nfor _ in range(10):\n    torch.ones(25 << 20)\n"
        "    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)\n"
        "print(faults[-1] - faults[-2])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100
