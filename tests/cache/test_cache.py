"""What is written into a cache is read back; its bytes do not depend on the order of writing."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers.caches import (
    NO_VAL,
    NUM_CLASSES,
    NUM_TRAIN,
    TABLES,
    digest_of,
    encoding_of,
    logits_of,
    open_writer,
    publish,
    tree,
    val_logits,
    write_cache,
)

from fgkd import files
from fgkd.cache import encodings, shards
from fgkd.cache.reader import Reader
from fgkd.cache.shards import Shard, ShardHeader, ShardJob
from fgkd.cache.writer import BACKENDS
from fgkd.config.specs import FORMAT_NAMES
from fgkd.views import orders


def expected(row: int, view: int, codec: encodings.Codec) -> np.ndarray:
    label = np.array([TABLES["train"].labels[row]])
    return codec.decode(codec.encode(logits_of(row, view), label))


@pytest.mark.parametrize("encoding", encodings.ENCODINGS)
@pytest.mark.parametrize("name", BACKENDS)
def test_every_target_comes_back(name: str, encoding: str, tmp_path: Path) -> None:
    folder = write_cache(tmp_path / "cache", format=name, encoding=encoding_of(encoding))
    reader = Reader(folder)
    codec = reader.codec
    assert (reader.views, codec.num_classes, codec.name) == (3, NUM_CLASSES, encoding)
    for view in (2, 0, 1, 2):
        held = reader.arrays_of_view(view)
        decoded = codec.decode({k: v for k, v in held.items() if k != "digests"})
        assert decoded.shape == (NUM_TRAIN, NUM_CLASSES)
        for row in range(NUM_TRAIN):
            assert np.array_equal(decoded[row], expected(row, view, codec))
            assert int(held["digests"][row]) == digest_of(row, view)
    assert np.array_equal(reader.val_logits(), val_logits())
    reader.close()


@pytest.mark.parametrize("name", BACKENDS)
def test_backend_contract(name: str, tmp_path: Path) -> None:
    """Write a shard and read it back, by a format's own writer and reader."""
    backend = BACKENDS[name]
    arrays = {
        "logits": np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float16),
        "scale": np.arange(6, dtype=np.float32).reshape(2, 3),
        "digests": np.array([[1, 2**64 - 1, 3], [4, 5, 6]], np.uint64),
    }
    keys = ["a/b.c.jpg", "ünïcode/x y.png", "z"]
    labels, rows = np.array([2, -1, 0]), np.array([7, 3, 11])
    images = [b"one", b"", b"three" * 300]
    header = ShardHeader("ab", 0, 4, 6)
    paths = [tmp_path / f"{i}{backend.SUFFIX}" for i in range(2)]
    shard = Shard(header, keys, labels, rows, ["p", "q", "r"], arrays, images.__getitem__)
    for path in paths:
        backend.write(path, shard)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    reader = backend.Reader(paths[0])
    assert reader.header == header
    assert reader.sample_keys() == keys
    assert reader.labels.tolist() == labels.tolist()
    for view in (1, 0):
        for key, array in reader.arrays_of_view(view, list(arrays)).items():
            assert array.dtype == arrays[key].dtype
            assert np.array_equal(array, arrays[key][view])
    if backend.HOLDS_IMAGES:
        for i, image in enumerate(images):
            offset, size = reader.image_place(i)
            assert paths[0].read_bytes()[offset : offset + size] == image
    reader.close()


def test_the_options_name_every_format() -> None:
    assert set(FORMAT_NAMES) == set(BACKENDS)


def test_a_shard_is_plain_hdf5(tmp_path: Path) -> None:
    folder = write_cache(tmp_path)
    block = orders.blocks(4, NUM_TRAIN, 8)[1]
    train = TABLES["train"]
    with h5py.File(folder / "shards/shard-00001-v000-003.h5") as file:
        assert set(file) == {"keys", "labels", "logits", "digests"}
        assert [key.decode() for key in file["keys"]] == [train.keys[i] for i in block]
        assert file["labels"][:].tolist() == train.labels[block].tolist()
        assert file["logits"].shape == (3, 8, NUM_CLASSES)
        assert file["logits"].dtype == np.float16
        assert file["digests"].dtype == np.uint64
        assert file["logits"].chunks is None  # contiguous: an epoch is one read
        assert file["logits"].compression is None
        for i, row in enumerate(block):
            assert np.array_equal(file["logits"][2, i], logits_of(row, 2).astype(np.float16))
        header = json.loads(file.attrs["header"])
    found = json.loads((folder / "manifest.json").read_text())
    assert header["identity_sha256"] == found["identity_sha256"]
    assert (header["block"], header["start"], header["stop"]) == (1, 0, 3)


def test_bytes_do_not_depend_on_the_order_of_writing(tmp_path: Path) -> None:
    forwards, backwards = write_cache(tmp_path / "a"), write_cache(tmp_path / "b", order=-1)
    assert tree(forwards) == tree(backwards)
    assert len(tree(forwards)) == 6  # three shards, the val split, the samples, the manifest
    text = (forwards / "manifest.json").read_text()
    assert str(tmp_path) not in text


def test_bytes_of_two_writers_that_share_the_work(tmp_path: Path) -> None:
    """As ranks do: each has its own Writer and takes every second job."""
    whole = write_cache(tmp_path / "whole")
    writers = [open_writer(tmp_path / "two", 3) for _ in range(2)]
    jobs = writers[0].jobs()
    for i in (1, 2, 0):
        publish(writers[i % 2], jobs[i])
    assert writers[1].jobs() == []
    writers[1].publish_val(val_logits(), [])
    writers[0].finish()
    assert tree(tmp_path / "two") == tree(whole)


def test_growing_adds_shards_and_keeps_the_old(tmp_path: Path) -> None:
    folder = write_cache(tmp_path, views=2)
    before = tree(folder)
    write_cache(folder, views=5)
    after = tree(folder)
    assert {name: after[name] for name in before if "manifest" not in name} == {
        name: data for name, data in before.items() if "manifest" not in name
    }
    new = sorted(set(after) - set(before))
    assert new == [f"shards/shard-{block:05d}-v002-005.h5" for block in range(3)]
    reader = Reader(folder)
    for view in range(5):
        logits = reader.arrays_of_view(view)["logits"]
        for row in range(NUM_TRAIN):
            assert np.array_equal(logits[row], logits_of(row, view).astype(np.float16))
    fewer = open_writer(folder, 3)  # asks for less than there is
    assert fewer.jobs() == []


def test_a_shard_of_a_grown_cache_is_rewritten_alone(tmp_path: Path) -> None:
    folder = write_cache(tmp_path, views=2)
    write_cache(folder, views=5)
    before = tree(folder)
    for name in ("shard-00001-v000-002.h5", "shard-00002-v002-005.h5"):
        (folder / "shards" / name).unlink()
        writer = open_writer(folder, 5)
        assert [job.name for job in writer.jobs()] == [name]
        write_cache(folder, views=5)
        assert tree(folder) == before


def test_an_image_that_could_not_be_read(tmp_path: Path) -> None:
    writer = open_writer(tmp_path, 1)
    key = TABLES["train"].keys[writer.block_rows[1][2]]
    for job in writer.jobs():
        publish(writer, job, [key] if job.block == 1 else [])
    writer.publish_val(val_logits(), [])
    writer.finish()
    assert Reader(tmp_path).unreadable_keys == {key}


def test_a_dataset_without_validation(tmp_path: Path) -> None:
    reader = Reader(write_cache(tmp_path, val=NO_VAL))
    assert reader.val_logits() is None
    assert not (tmp_path / "val").exists()


def test_num_bytes(tmp_path: Path) -> None:
    reader = Reader(write_cache(tmp_path))
    on_disk = sum(path.stat().st_size for path in tmp_path.glob("shards/*"))
    assert reader.num_bytes == on_disk


# ---- what is left to write -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "views", "gaps"),
    [
        ([], 2, [(0, 0, 2), (1, 0, 2)]),
        ([(0, 0, 2), (1, 0, 2)], 2, []),
        ([(0, 0, 2), (1, 0, 2)], 1, []),
        ([(0, 0, 2), (1, 0, 2)], 5, [(0, 2, 5), (1, 2, 5)]),
        ([(0, 2, 5), (1, 0, 5)], 5, [(0, 0, 2)]),
        ([(0, 0, 1), (0, 3, 4), (1, 0, 4)], 4, [(0, 1, 3)]),
        (
            [(0, 3, 4), (0, 0, 1), (1, 2, 3)],
            6,
            [(0, 1, 3), (0, 4, 6), (1, 0, 2), (1, 3, 6)],
        ),
        ([(0, 0, 3), (0, 1, 2), (1, 0, 3)], 4, [(0, 3, 4), (1, 3, 4)]),
        ([(0, 4, 6), (1, 0, 2)], 2, [(0, 0, 2)]),
        ([(0, 0, 2), (0, 4, 6), (1, 0, 2)], 2, []),
        ([(0, 0, 2), (0, 4, 6), (1, 0, 2)], 1, []),
    ],
)
def test_missing(
    rows: list[tuple[int, int, int]], views: int, gaps: list[tuple[int, int, int]]
) -> None:
    assert shards.missing(rows, 2, views) == gaps


def test_a_shard_shrunk_away_in_a_grown_cache(tmp_path: Path) -> None:
    """Shards [0, 2) and [2, 5); without the first, `--views 1` must still write its whole range."""
    folder = write_cache(tmp_path, views=2)
    write_cache(folder, views=5)
    (folder / "shards/shard-00000-v000-002.h5").unlink()
    (job,) = open_writer(folder, 1).jobs()
    assert (job.block, job.start, job.stop) == (0, 0, 1)


def test_job_names() -> None:
    assert ShardJob(3, 8, 16, ".h5").name == "shard-00003-v008-016.h5"


# ---- a writer that was killed --------------------------------------------------------------


def test_writing_continues_after_every_shard(tmp_path: Path) -> None:
    whole = write_cache(tmp_path / "whole")
    for done in range(4):
        folder = tmp_path / f"after {done}"
        writer = open_writer(folder, 3)
        for job in writer.jobs()[:done]:
            publish(writer, job)
        partial = folder / "shards/shard-00002-v000-003.h5.partial"
        partial.parent.mkdir(exist_ok=True)
        partial.write_bytes(b"cut short")
        assert not (folder / "manifest.json").exists()
        write_cache(folder)
        assert not partial.exists()
        assert tree(folder) == tree(whole)


def test_a_published_shard_without_a_journal_line_is_written_again(tmp_path: Path) -> None:
    whole = write_cache(tmp_path / "whole")
    folder = tmp_path / "killed"
    writer = open_writer(folder, 3)
    for job in writer.jobs():
        publish(writer, job)
    journal = folder / "shards.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:2]) + lines[2][:20])  # the last line was cut short
    assert [job.block for job in open_writer(folder, 3).jobs()] == [2]
    write_cache(folder)
    assert tree(folder) == tree(whole)
    assert all(files.sha256(folder / r["name"]) == r["sha256"] for r in files.read_lines(journal))


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_journalled_shard_that_is_gone_is_written_again(damage: str, tmp_path: Path) -> None:
    folder = write_cache(tmp_path)
    before = tree(folder)
    path = folder / "shards/shard-00001-v000-003.h5"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    assert [job.block for job in open_writer(folder, 3).jobs()] == [1]
    write_cache(folder)
    assert tree(folder) == before
