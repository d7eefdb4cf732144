"""Targets gathered batch by batch: those of the whole view, whatever is asked for and when."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from helpers.caches import NUM_TRAIN, encoding_of, write_cache

from fgkd.cache.reader import Reader
from fgkd.errors import DamagedShard
from fgkd.loading import epoch_targets
from fgkd.loading.epoch_targets import EpochTargets, Need

VIEWS, BATCH = 4, 5


def needs(epochs: int) -> list[Need]:
    """Batches of every row in another order in each epoch."""
    draw, found = np.random.default_rng(0), list[Need]()
    for epoch in range(epochs):
        order = draw.permutation(NUM_TRAIN)
        for start in range(0, NUM_TRAIN, BATCH):
            found.append(Need(len(found), epoch % VIEWS, order[start : start + BATCH]))
    return found


@pytest.mark.parametrize("format", ["hdf5", "webdataset"])
@pytest.mark.parametrize("encoding", ["dense", "topk8"])
@pytest.mark.parametrize("chunk", [1, 300, 1 << 20])
def test_they_are_those_of_the_view(
    chunk: int, encoding: str, format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all the rows planned and of some, from one row at a time to all at once."""
    monkeypatch.setattr(epoch_targets, "CHUNK", chunk)
    write_cache(tmp_path, views=VIEWS, encoding=encoding_of(encoding), format=format)
    reader = Reader(tmp_path)
    whole = [reader.arrays_of_view(view) for view in range(VIEWS)]
    planned, draw = needs(6), np.random.default_rng(1)
    with contextlib.closing(EpochTargets(reader)) as targets:
        targets.plan(planned[:7], following=1)
        targets.plan(planned[7:])
        for need in planned:
            rows = need.rows[draw.random(len(need.rows)) < draw.choice([1.0, 0.7])]
            found = targets.of(need.step, rows)
            assert found.keys() == whole[need.view].keys()
            for name, array in found.items():
                assert np.array_equal(array, whole[need.view][name][rows])
    reader.close()


def test_the_first_step_opens_no_more_than_its_shards(tmp_path: Path) -> None:
    """Damage elsewhere is found when it is reached, not before."""
    write_cache(tmp_path, views=VIEWS)
    reader = Reader(tmp_path)
    rows = reader._blocks[0]
    other = next(row for row in reader.manifest.shards if row.block == 1 and row.start == 0)
    path = tmp_path / other.name
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    targets = EpochTargets(reader)
    targets.plan([Need(0, 0, rows[:3]), Need(1, 0, reader._blocks[1][:3])])
    assert len(targets.of(0, rows[:3])["digests"]) == 3
    with pytest.raises(DamagedShard) as caught:
        targets.of(1, reader._blocks[1][:3])
    assert caught.value.path == path
    targets.close()
