"""What stages share: the pace of a run."""

from __future__ import annotations

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
