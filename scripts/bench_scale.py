"""A cache of ImageNet-21k's size: opening it, an epoch's order, the first batch, memory."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from bench_common import LIGHT, Plan, Row, anonymous_mib

from fgkd import files
from fgkd.cache import encodings, hdf5, samples_file
from fgkd.cache.identity import DatasetIdentity, Identity, TeacherIdentity, ViewIdentity
from fgkd.cache.manifest import Manifest
from fgkd.cache.reader import Reader
from fgkd.cache.samples import HASH_TYPE, SampleTable
from fgkd.cache.shards import ShardHeader, ShardJob, ShardRow
from fgkd.cache.writer import stored_arrays
from fgkd.data.keys import Keys
from fgkd.loading.epoch_targets import EpochTargets, Need
from fgkd.loading.schedule import Schedule
from fgkd.views import orders

NUM, CLASSES, VIEWS, SHARD, BATCH = 14_197_122, 21_841, 30, 1024, 256
BYTES = 8 << 20  # of a shard that is only listed


def rows(plan: Plan) -> Iterator[Row]:
    """The lines of the table on a large cache."""
    num = plan.pick(NUM, 3000)
    folder, first = make_cache(plan, num)
    found = plan.child(measure, folder, first)
    parts = ", ".join(f"{name} {value:.2f}" for name, value in found["seconds"].items())
    yield Row(
        *("open and first batch, s", f"{num:,} images x {CLASSES:,} classes, topk"),
        *(sum(found["seconds"].values()), 10.0, True),
        note=parts,
    )
    yield Row(
        *("memory of that process, MiB", "its files aside", found["mib"], 3072, True),
        note=f"{found['before']:.0f} before it is opened",
    )


def make_cache(plan: Plan, num: int) -> tuple[Path, Path]:
    """The cache, of whose shards those of the first batch are there; and the batch's rows."""
    folder = plan.folder / "scale"
    (folder / "shards").mkdir(parents=True)
    table = SampleTable(
        _keys(num),
        np.arange(num) % CLASSES,
        np.zeros(num, np.int64),
        np.full(num, 100_000),
        np.full(num, b"0" * HASH_TYPE.itemsize, HASH_TYPE),
    )
    tables = {"train": table, "val": SampleTable.empty()}
    identity = Identity(
        format="hdf5",
        encoding=encodings.describe("topk", 50, (1.0, 2.0, 4.0), CLASSES),
        shard_size=SHARD,
        dtype="bfloat16",
        teachers=(TeacherIdentity("made up", "", 224),),
        ensemble=None,
        views=ViewIdentity(LIGHT, 0, 224, None),
        dataset=DatasetIdentity("made up", tuple(map(str, range(CLASSES))), ("in",), False, 0.0),
        samples_sha256=samples_file.fingerprint(tables),
    )
    sha256 = files.fingerprint(identity.to_json())
    samples_file.write(folder / samples_file.NAME, tables)
    blocks = orders.blocks(0, num, SHARD)
    block_of = np.empty(num, np.int64)
    for block, members in enumerate(blocks):
        block_of[members] = block
    first = orders.epoch_order(0, 0, num)[:BATCH]
    there = set(block_of[first].tolist())
    codec = encodings.Codec.of(identity.encoding, CLASSES, False)
    listed = []
    for block, members in enumerate(blocks):
        job = ShardJob(block, 0, VIEWS, hdf5.SUFFIX)
        path, size, digest = folder / "shards" / job.name, BYTES, "0" * 64
        if block in there:
            keys = [table.keys[i] for i in members.tolist()]
            _sparse(path, ShardHeader(sha256, block, 0, VIEWS), keys, codec)
            size, digest = path.stat().st_size, files.sha256(path)
        row = (f"shards/{job.name}", block, 0, VIEWS, len(members))
        listed.append(ShardRow(*row, num_bytes=size, sha256=digest))
    Manifest(identity, sha256, VIEWS, {}, tuple(listed), None).save(folder)
    np.save(plan.folder / "first.npy", first)
    return folder, plan.folder / "first.npy"


def _keys(num: int) -> Keys:
    """`n00000123/n00000123_0000456.JPEG`, packed."""
    numbers, classes = np.arange(num), np.arange(num) % CLASSES
    text = np.frombuffer(b"n00000000/n00000000_00000000.JPEG", np.uint8)
    data = np.tile(text, (num, 1))
    for start, values in ((1, classes), (11, classes), (20, numbers)):
        for digit in range(8):
            data[:, start + 7 - digit] += (values // 10**digit % 10).astype(np.uint8)
    return Keys(data.reshape(-1), np.arange(num + 1) * len(text))


def _sparse(path: Path, header: ShardHeader, keys: list[str], codec: encodings.Codec) -> None:
    """A shard of zeros that takes no room on the disk."""
    how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    how.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    how.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    with h5py.File(path, "w", libver=hdf5.LIBVER) as file:
        file.attrs["header"] = json.dumps(header.to_json())
        file.create_dataset("keys", data=np.array([key.encode() for key in keys]))
        file.create_dataset("labels", data=np.zeros(len(keys), np.int64))
        for name, (dtype, shape) in stored_arrays(codec).items():
            space = h5py.h5s.create_simple((VIEWS, len(keys), *shape))
            kind = h5py.h5t.py_create(np.dtype(dtype))
            h5py.h5d.create(file.id, name.encode(), kind, space, how)


def measure(plan: Plan, folder: str, first: str) -> dict[str, Any]:
    """Seconds of each step from the start to the first batch's targets, and the memory then."""
    seconds: dict[str, float] = {}
    before = anonymous_mib()

    def timed(name: str, began: float) -> None:
        seconds[name] = time.perf_counter() - began

    clock = time.perf_counter()
    reader = Reader(Path(folder))
    timed("open", clock)
    clock = time.perf_counter()
    specs = Schedule(0, len(reader.samples["train"]), BATCH, 30, VIEWS).epoch_specs(0)
    timed("order", clock)
    clock = time.perf_counter()
    targets = EpochTargets(reader)
    targets.plan([Need(spec.step, spec.view, spec.rows) for spec in specs])
    arrays = targets.of(0, np.load(first))
    reader.decode({name: array for name, array in arrays.items() if name != "digests"}, 2.0)
    timed("first batch", clock)
    targets.close()
    return {"seconds": seconds, "mib": anonymous_mib(), "before": before}
