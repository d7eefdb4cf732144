"""samples.h5: what is written is read back; a file from a stranger is refused with DamagedCache."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers.caches import IDENTITY, NO_VAL, TABLES, make_tables, write_cache
from helpers.errors import expected
from helpers.hostile import FUZZ, explained, frugal
from hypothesis import given
from hypothesis import strategies as st

from fgkd.cache import samples, samples_file
from fgkd.cache.reader import Reader
from fgkd.cache.samples import HASH_TYPE, SampleTable, SampleTables
from fgkd.data.keys import Keys
from fgkd.errors import DamagedCache

NAMES = ("keys", "labels", "domains", "sizes", "hashes")


def data_of(tables: SampleTables) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.h5"
        samples_file.write(path, tables)
        return path.read_bytes()


def load(path: Path) -> SampleTables | None:
    """The file that the identity vouches for; None when it was refused with an explained error."""
    with frugal():
        try:
            sha256 = samples_file.fingerprint(samples_file.read(path))
        except ValueError:
            sha256 = ""
        identity = dataclasses.replace(IDENTITY, samples_sha256=sha256)
        try:
            return samples_file.load(path.parent, identity)
        except DamagedCache as error:
            refused = error
    explained(refused, str(path))
    assert refused.path == path
    return None


def load_bytes(data: bytes) -> SampleTables | None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.h5"
        path.write_bytes(data)
        return load(path)


def assert_equal(a: SampleTables, b: SampleTables) -> None:
    for split in samples.SPLITS:
        assert samples.differences(a[split], b[split], split) == []
        for name, column in a[split].columns().items():
            if name != "keys":
                assert column.dtype == b[split].columns()[name].dtype


# Round trips


KEYS = st.lists(st.text(st.characters(codec="utf-8"), min_size=1), unique=True, max_size=20)


@FUZZ
@given(keys=KEYS, with_boxes=st.booleans(), data=st.data())
def test_round_trip(keys: list[str], with_boxes: bool, data: st.DataObject) -> None:
    num = len(keys)

    def column(low: int, high: int) -> np.ndarray:
        return np.array(
            data.draw(st.lists(st.integers(low, high), min_size=num, max_size=num)), int
        )

    hashes = np.array([f"{i:032x}" * (i > 0) for i in range(num)], HASH_TYPE)
    boxes = np.arange(1.0, 1 + 4 * num).reshape(num, 4) if with_boxes else None
    numbers = (column(-1, 5), column(0, 0), column(-1, 2**62))
    tables = {"train": SampleTable(Keys.of(keys), *numbers, hashes, boxes), "val": NO_VAL}
    written = data_of(tables)
    found = load_bytes(written)
    assert found
    assert_equal(found, tables)
    assert list(found["train"].keys) == keys
    assert data_of(found) == written


def test_equal_samples_give_equal_bytes(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache")
    data = (cache / "samples.h5").read_bytes()
    assert data == data_of(TABLES)
    assert samples_file.holds(cache / "samples.h5", samples_file.fingerprint(TABLES))
    assert data != data_of(make_tables(val__sizes__1=8))


def test_keys_behave_like_a_list() -> None:
    plain = ["a", "é/b.jpg", "日本", "a\0", "z" * 70_000]
    keys = Keys.of(plain)
    assert list(keys) == plain == keys == keys[:]
    assert [keys[i] for i in range(-5, 5)] == plain * 2
    assert keys[np.int64(1)] == plain[1]
    assert keys[1:4:2] == plain[1:4:2]
    assert keys.index("日本") == 2
    assert "b" not in keys
    assert keys != plain[:-1]
    assert keys == Keys.of(plain) != Keys.of(plain[::-1])
    for row in (5, -6):
        with pytest.raises(IndexError):
            keys[row]


@pytest.mark.parametrize("num", [0, 1, 70_000])
def test_many_keys(num: int) -> None:
    """Of more than one chunk; a repeated one is found wherever it is."""
    plain = [f"{i % 7}/{i}.jpg" for i in range(num)]
    assert Keys.of(plain) == plain
    assert Keys.of(plain).repeated() is None
    if num > 1:
        plain[-1] = plain[3]
        assert Keys.of(plain).repeated() == plain[3]


def test_keys_of_equal_hashes_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Keys, "_hashes", lambda self: np.zeros(len(self), np.uint64))
    assert Keys.of(["a", "b", "c"]).repeated() is None
    assert Keys.of(["a", "b", "a"]).repeated() == "a"


# Differences


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"train__keys__2": "b.jpg"}, "train.keys[2]: train/é 2.jpg -> b.jpg"),
        ({"train__labels__2": 5}, "train.labels[2]: 2 -> 5"),
        ({"val__domains__1": 1}, "val.domains[1]: 0 -> 1"),
        ({"val__hashes__1": b""}, f"val.hashes[1]: {1:032x} -> "),
        ({"val": NO_VAL}, "val.keys: 5 entries -> 0, from [0] on: val/0.jpg -> none"),
        ({"train__boxes": np.ones((23, 4))}, "train.boxes: none -> 23 entries"),
    ],
)
def test_differences(change: dict[str, Any], line: str) -> None:
    other = make_tables(**change)
    (split,) = {name.split("__")[0] for name in change}
    found = samples.differences(TABLES[split], other[split], split)
    assert str(found[0]) == line
    assert len(found) == (1 if "__" in next(iter(change)) else 5)


# Files from strangers


def test_a_file_that_the_identity_does_not_vouch_for(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache")
    path = cache / "samples.h5"
    path.write_bytes(data_of(make_tables(train__labels__0=5)))
    with expected(DamagedCache, path=path):
        Reader(cache)
    path.unlink()
    with expected(DamagedCache, path=path):
        Reader(cache)


@FUZZ
@given(data=st.binary(max_size=3000), magic=st.booleans())
def test_random_bytes(data: bytes, magic: bool) -> None:
    assert load_bytes(data_of(TABLES)[:600] * magic + data) is None


@FUZZ
@given(share=st.floats(0, 0.999))
def test_truncations(share: float) -> None:
    whole = data_of(TABLES)
    assert load_bytes(whole[: int(share * len(whole))]) is None


@FUZZ
@given(
    flips=st.lists(st.tuples(st.floats(0, 0.9999), st.integers(0, 7)), min_size=1, max_size=20),
    within=st.sampled_from([600, 4000, 10**9]),  # where structure is dense, and everywhere
)
def test_bit_flips(flips: list[tuple[float, int]], within: int) -> None:
    data = bytearray(data_of(TABLES))
    for at, bit in flips:
        data[int(at * min(within, len(data)))] ^= 1 << bit
    load_bytes(bytes(data))


def replace(name: str, *args: Any, **how: Any) -> Callable[[h5py.File], None]:
    """Create another dataset in the place of a column of train."""

    def change(file: h5py.File) -> None:
        del file[f"train/{name}"]
        file.create_dataset(f"train/{name}", *args, **how)

    return change


def link(name: str, to: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = to

    return change


def offsets(*first: int) -> Callable[[h5py.File], None]:
    """The first offsets of the keys replaced."""

    def change(file: h5py.File) -> None:
        file["train/key_offsets"][: len(first)] = first

    return change


def put(name: str, row: int, value: Any) -> Callable[[h5py.File], None]:
    return lambda file: file[f"train/{name}"].__setitem__(row, value)


EXTERNAL = [("other.raw", 0, h5py.h5f.UNLIMITED)]
HOSTILE: dict[str, Callable[[h5py.File], object]] = {
    **{f"no {name}": lambda f, n=name: f.__delitem__(f"train/{n}") for name in NAMES},
    "no offsets": lambda f: f.__delitem__("train/key_offsets"),
    "no val": lambda f: f.__delitem__("val"),
    "external link": link("train/labels", h5py.ExternalLink("other.h5", "train/labels")),
    "soft link": link("train/labels", h5py.SoftLink("/train/domains")),
    "a linked group": link("train", h5py.ExternalLink("other.h5", "train")),
    "a dataset as group": link("train", np.zeros(3)),
    "external bytes": replace("labels", (23,), "i8", external=EXTERNAL),
    "huge": replace("labels", (1 << 40,), "i8", chunks=(1 << 10,)),
    "huge contiguous": replace("labels", (1 << 28,), "i8"),
    "hugely many empty boxes": lambda f: f.create_dataset("train/boxes", (1 << 40, 0), "f8"),
    "compressed": replace("labels", data=np.zeros(1 << 22, "i8"), compression="gzip"),
    "never written": replace("labels", (23,), "i8"),
    "text": replace("keys", data=["a", "b"]),
    "references": replace("labels", (23,), h5py.ref_dtype),
    "a scalar": replace("labels", data=np.int64(1)),
    "no axis of offsets": replace("key_offsets", data=np.int64(0)),
    "no offset at all": replace("key_offsets", data=np.zeros(0, np.int64)),
    "two axes": replace("labels", data=np.zeros((23, 1), np.int64)),
    "int32": replace("labels", data=np.zeros(23, np.int32)),
    "big endian": replace("labels", data=np.zeros(23, ">i8")),
    "long hashes": replace("hashes", data=np.zeros(23, "S40")),
    "fewer labels": replace("labels", data=np.zeros(22, np.int64)),
    "more keys": replace("key_offsets", data=np.arange(25)),
    "a first offset that is not 0": offsets(1),
    "a negative offset": offsets(0, -5),
    "offsets that go backwards": offsets(0, 20, 5),
    "an empty key": offsets(0, 14, 14),
    "offsets that overflow": offsets(0, 2**63 - 1, -(2**63)),
    "an offset after the end": put("key_offsets", 23, 10**6),
    "an offset before the end": put("key_offsets", 23, 350),
    "a key cut inside a character": offsets(0, 14, 21),
    "keys that are not UTF-8": put("keys", 3, 0xFF),
    "a repeated key": put("keys", 23, ord("0")),
    "a label below none": put("labels", 3, -2),
    "a class that is not there": put("labels", 3, 6),
    "a domain that is not there": put("domains", 3, 1),
    "a hash that is not text": put("hashes", 3, b"\xff"),
    "no boxes": lambda f: f.create_dataset("train/boxes", data=np.ones((0, 4))),
    "fewer boxes": lambda f: f.create_dataset("train/boxes", data=np.ones((1, 4))),
    "boxes of text": lambda f: f.create_dataset("train/boxes", data=np.array([[b"1"] * 4] * 23)),
    "a scalar for boxes": lambda f: f.create_dataset("train/boxes", data=4.0),
    "huge boxes": lambda f: f.create_dataset("train/boxes", data=np.full((23, 4), 1e9)),
    "boxes of another shape": lambda f: f.create_dataset("train/boxes", data=np.ones((23, 3))),
    "boxes without area": lambda f: f.create_dataset("train/boxes", data=np.zeros((23, 4))),
    "boxes that are nan": lambda f: f.create_dataset("train/boxes", data=np.full((23, 4), np.nan)),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused, though the identity vouches for them; files that links point to are not read."""
    monkeypatch.chdir(tmp_path)
    for name in ("samples.h5", "other.h5"):
        (tmp_path / name).write_bytes(data_of(TABLES))
    (tmp_path / "other.raw").write_bytes(os.urandom(4000))
    with h5py.File(tmp_path / "samples.h5", "a") as file:
        HOSTILE[kind](file)
    assert load(tmp_path / "samples.h5") is None


@pytest.mark.parametrize("chunk", [1, 8, 1 << 16])
def test_padded_keys(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As numpy packs the encoded texts; in any order, and again and again."""
    monkeypatch.setattr("fgkd.data.keys.CHUNK", chunk)
    plain = ["a", "é/b.jpg", "日本", "z" * 300]
    rows = np.array([3, 1, 0, 2, 1])
    expected = np.array([plain[row].encode() for row in rows])
    found = Keys.of(plain).padded(rows)
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)
    assert np.array_equal(Keys.of(plain).padded(rows[2:3]), expected[2:3])


def test_paths_may_be_no_text(tmp_path: Path) -> None:
    """A file name that is no UTF-8 is found again."""
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / name).touch()
    (found,) = Keys.of(os.listdir(tmp_path))
    assert found == name
    assert (tmp_path / found).exists()


def test_narrow_keys_are_equal_and_their_file_is_the_same() -> None:
    table = TABLES["train"]
    narrow = dataclasses.replace(table, keys=table.keys.narrow())
    assert narrow.keys == table.keys
    assert narrow.keys.offsets.dtype == np.uint32
    tables = {**TABLES, "train": narrow}
    assert samples_file.fingerprint(tables) == samples_file.fingerprint(TABLES)
    assert data_of(tables) == data_of(TABLES)
