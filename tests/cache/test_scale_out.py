"""Several writers of one cache: ranks, and machines that take ranges of blocks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.failures import Fails
from helpers.runs import fgkd, run_ranks, start_ranks, tree

from fgkd import files
from fgkd.cache import writer
from fgkd.cache.shards import ShardRow
from fgkd.cache.writer import Writer

ROOT = Path(__file__).parents[2]


def capture(cache: Path, output: Path, *more: object) -> tuple[object, ...]:
    """The capture of a cache (dense32, float64, blocks of 20) into another folder."""
    return ("cache-logits", "-c", cache / "args.yaml", "--output", output, *more)


def product(cache: Path) -> dict[str, bytes]:
    """The files that must be equal."""
    found = tree(cache)
    assert not [name for name in found if name.endswith(".partial")]
    return {
        n: b for n, b in found.items() if n.startswith(("shards/", "val/", "manifest", "samples"))
    }


def journal(cache: Path, name: str) -> list[str]:
    """The shards a journal lists."""
    return [json.loads(line)["name"] for line in (cache / name).read_text().splitlines()]


@pytest.mark.parametrize("order", [("0:2", "2:5"), ("3:5", "0:3")])
@pytest.mark.parametrize("name", ["hdf5", "webdataset"])
def test_two_ranges_of_one_plan(
    name: str,
    order: tuple[str, str],
    tiny_cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In any order: each has its journal, and the one that finishes last writes the manifest."""
    fgkd(*capture(tiny_cache, tmp_path / "one", "--format", name))
    cache, format_of = tmp_path / "two", ("--format", name)
    fgkd(*capture(tiny_cache, cache, *format_of, "--shard-range", order[0]))
    assert not (cache / "manifest.json").exists()
    left = 5 - (int(order[0][2]) - int(order[0][0]))
    assert f"{left} shards of other ranges are still to come" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in cache.glob("shards/*")}
    fgkd(*capture(tiny_cache, cache, *format_of, "--shard-range", order[1]))
    assert product(cache) == product(tmp_path / "one")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    names = [f"shards-{part.replace(':', '-')}.jsonl" for part in order]
    assert sorted(path.name for path in cache.glob("shards*.jsonl")) == sorted(names)
    parts = [journal(cache, name) for name in names]
    assert not set(parts[0]) & set(parts[1])
    assert len(parts[0]) + len(parts[1]) == 6  # five blocks, and the validation images once


def test_a_range_that_was_cut_short_continues(tiny_cache: Path, tmp_path: Path) -> None:
    """A shard of the range is gone: it alone is written, into the same journal."""
    cache = tmp_path / "cache"
    fgkd(*capture(tiny_cache, cache, "--shard-range", "0:2"))
    gone = cache / "shards/shard-00001-v000-002.h5"
    gone.unlink()
    fgkd(*capture(tiny_cache, cache, "--shard-range", "0:2"))
    assert gone.exists()
    fgkd(*capture(tiny_cache, cache))  # no range: whatever is left
    assert product(cache) == product(tiny_cache)


def test_only_the_validation_images_are_left(tiny_cache: Path, tmp_path: Path) -> None:
    """They belong to the range that begins at 0; the manifest waits for them."""
    cache = tmp_path / "cache"
    fgkd(*capture(tiny_cache, cache, "--shard-range", "0:5"))
    (cache / "val/clean.h5").unlink()
    (cache / "manifest.json").unlink()
    fgkd(*capture(tiny_cache, cache, "--shard-range", "2:5"))
    assert not (cache / "manifest.json").exists()
    fgkd(*capture(tiny_cache, cache, "--shard-range", "0:2"))
    assert product(cache) == product(tiny_cache)


def test_an_empty_range_of_ranks(tiny_cache: Path, tmp_path: Path) -> None:
    """Two ranks share a range of one shard, and then the rest."""
    cache = tmp_path / "cache"
    run_ranks(2, *capture(tiny_cache, cache, "--device", "cpu", "--shard-range", "4:5"))
    assert len(list(cache.glob("shards/*"))) == 1
    run_ranks(2, *capture(tiny_cache, cache, "--device", "cpu", "--shard-range", "0:4"))
    assert product(cache) == product(tiny_cache)
    journals = {path.name for path in cache.glob("shards*.jsonl")}
    assert journals == {"shards-4-5.jsonl", "shards-0-4.jsonl", "shards-0-4-rank1.jsonl"}


def slow_disk(late_s: float, *argv: object) -> None:
    """A command on a file system that shows the first rank nothing of the second's for a while."""
    if os.environ["RANK"] == "0":
        read_lines, on_disk, seen = files.read_lines, Writer._on_disk, Writer.wait_for
        waited: list[float] = []

        def stale(path: Path) -> files.Rows:
            return [] if path.name == "shards-rank1.jsonl" else read_lines(path)

        def late(self: Writer, row: ShardRow) -> bool:
            mine = row.name in {one.name for one in self.written}
            return on_disk(self, row) and (mine or time.monotonic() > min(waited, default=1e9))

        def wait_for(self: Writer, rows: list[ShardRow]) -> None:
            waited.append(time.monotonic() + late_s)
            seen(self, rows)

        files.read_lines, Writer._on_disk, Writer.wait_for = stale, late, wait_for
    writer.SEEN_WITHIN_S = 3.0
    fgkd(*argv)


def test_a_shard_that_the_first_rank_sees_late(tiny_cache: Path, tmp_path: Path) -> None:
    """Its row comes from the rank itself, and the manifest waits for the file."""
    command = capture(tiny_cache, tmp_path / "cache", "--device", "cpu")
    ranks = start_ranks(2, slow_disk, 1.0, *command)
    for rank in ranks:
        rank.join(120)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    assert product(tmp_path / "cache") == product(tiny_cache)


def test_a_shard_that_is_never_seen_is_not_vouched_for(tiny_cache: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    ranks = start_ranks(2, slow_disk, 1e6, *capture(tiny_cache, cache, "--device", "cpu"))
    for rank in ranks:
        rank.join(120)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    assert not (cache / "manifest.json").exists()
    fgkd(*capture(tiny_cache, cache))
    assert product(cache) == product(tiny_cache)


def forgetful(*argv: object) -> None:
    """A command whose second rank sees nothing of what was there before it began."""
    if os.environ["RANK"] == "1":
        Writer.published = lambda self: []
    fgkd(*argv)


def test_ranks_that_see_different_shards_share_what_the_first_finds_missing(
    tiny_cache: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    fgkd(*capture(tiny_cache, cache, "--shard-range", "1:3"))
    before = {path: path.stat().st_mtime_ns for path in cache.glob("shards/*")}
    for _ in range(2):  # the rest, and then nothing
        ranks = start_ranks(2, forgetful, *capture(tiny_cache, cache, "--device", "cpu"))
        for rank in ranks:
            rank.join(120)
        assert [rank.exitcode for rank in ranks] == [0, 0]
        assert product(cache) == product(tiny_cache)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_torchrun(tiny_cache: Path, tmp_path: Path) -> None:
    """As a user starts it."""
    argv = [*map(str, capture(tiny_cache, tmp_path / "cache", "--device", "cpu"))]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, "-m", "stages", *argv],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the cache is complete") == 1
    assert product(tmp_path / "cache") == product(tiny_cache)


@pytest.mark.parametrize(
    ("given", "said", "try_"),
    [
        ("5", "'5' is not A:B with A < B", "0:8"),
        ("2:2", "'2:2' is not A:B with A < B", "0:8"),
        ("3:1", "'3:1' is not A:B with A < B", "0:8"),
        ("-1:2", "'-1:2' is not A:B with A < B", "0:8"),
        (":", "':' is not A:B with A < B", "0:8"),
        ("0:2:4", "'0:2:4' is not A:B with A < B", "0:8"),
        ("²:4", "'²:4' is not A:B with A < B", "0:8"),
        ("0:6", "0:6: the plan has 5 blocks", "0:5"),
        ("7:9", "7:9: the plan has 5 blocks", "4:5"),
    ],
)
def test_ranges_that_make_no_sense(
    given: str, said: str, try_: str, fails: Fails, tiny_cache: Path, tmp_path: Path
) -> None:
    """Refused before anything is written."""
    cache = tmp_path / "cache"
    error = fails(*capture(tiny_cache, cache, f"--shard-range={given}"))
    assert f"shard_range {said}" in error
    assert f"Try: --shard-range {try_}\n" in error
    assert not cache.exists() or not list(cache.iterdir())
