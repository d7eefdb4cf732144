"""Shards from strangers: whatever the bytes are, an explained error or a right answer.

Format readers are called directly, as no sha256 would let most of this through.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers.caches import NUM_CLASSES
from helpers.hostile import BACKENDS, FUZZ, NAMES, SHARD, SUFFIXES, consume, consume_bytes, valid
from hypothesis import given
from hypothesis import strategies as st

# ---- bytes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BACKENDS)
def test_a_valid_shard_is_read(name: str) -> None:
    found = consume_bytes(name, valid(name)[SHARD + SUFFIXES[name]])
    assert found
    assert found["logits"].shape == (2, 8, NUM_CLASSES)


@pytest.mark.parametrize("name", BACKENDS)
@FUZZ
@given(data=st.binary(max_size=3000), magic=st.booleans())
def test_random_bytes(name: str, data: bytes, magic: bool) -> None:
    start = valid(name)[SHARD + SUFFIXES[name]][:600] if magic else b""
    assert consume_bytes(name, start + data) is None


@pytest.mark.parametrize("name", BACKENDS)
@FUZZ
@given(share=st.floats(0, 0.999))
def test_truncations(name: str, share: float) -> None:
    """Refused; or, of a tar that lost but the padding at its end, whole."""
    whole = valid(name)[SHARD + SUFFIXES[name]]
    found = consume_bytes(name, whole[: int(share * len(whole))])
    if found is not None:
        true = consume_bytes(name, whole)
        assert true
        assert all(np.array_equal(found[n], true[n]) for n in NAMES)


@pytest.mark.parametrize("name", BACKENDS)
@FUZZ
@given(
    flips=st.lists(st.tuples(st.floats(0, 0.9999), st.integers(0, 7)), min_size=1, max_size=20),
    within=st.sampled_from([600, 4000, 10**9]),  # where structure is dense, and everywhere
)
def test_bit_flips(name: str, flips: list[tuple[float, int]], within: int) -> None:
    data = bytearray(valid(name)[SHARD + SUFFIXES[name]])
    for at, bit in flips:
        data[int(at * min(within, len(data)))] ^= 1 << bit
    consume_bytes(name, bytes(data))


# ---- HDF5 ----------------------------------------------------------------------------------------


def external_link(file: h5py.File) -> None:
    file["logits"] = h5py.ExternalLink("other.h5", "logits")


def soft_link(file: h5py.File) -> None:
    file["logits"] = h5py.SoftLink("/digests")


def external_bytes(file: h5py.File) -> None:
    """Raw storage in another file, as /etc/passwd."""
    file.create_dataset(
        "logits", (2, 8, NUM_CLASSES), "f2", external=[("other.raw", 0, h5py.h5f.UNLIMITED)]
    )


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((2, 8, NUM_CLASSES), "f2")
    layout[:] = h5py.VirtualSource("other.h5", "logits", (2, 8, NUM_CLASSES))
    file.create_virtual_dataset("logits", layout)


HOSTILE_HDF5: dict[str, Callable[[h5py.File], object]] = {
    "external link": external_link,
    "soft link": soft_link,
    "external bytes": external_bytes,
    "virtual": virtual,
    "huge": lambda f: f.create_dataset("logits", (2, 1 << 40), "f2", chunks=(1, 1 << 10)),
    "huge contiguous": lambda f: f.create_dataset("logits", (2, 1 << 28), "f2"),
    "compressed": lambda f: f.create_dataset(
        "logits", data=np.zeros((2, 1 << 22), "f2"), compression="gzip"
    ),
    "never written": lambda f: f.create_dataset("logits", (2, 8, NUM_CLASSES), "f2"),
    "text": lambda f: f.create_dataset("logits", data=["a", "b"]),
    "a scalar": lambda f: f.create_dataset("logits", data=1.0),
    "references": lambda f: f.create_dataset("logits", (2, 8), h5py.ref_dtype),
    "a group": lambda f: f.create_group("logits"),
    "missing": lambda f: None,
}


@pytest.mark.parametrize("kind", HOSTILE_HDF5)
def test_hostile_hdf5(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of the logits; the files that links point to are there, and not read."""
    monkeypatch.chdir(tmp_path)
    for name in ("shard.h5", "other.h5"):
        (tmp_path / name).write_bytes(valid("hdf5")[SHARD + ".h5"])
    (tmp_path / "other.raw").write_bytes(os.urandom(4000))
    with h5py.File(tmp_path / "shard.h5", "a") as file:
        del file["logits"]
        HOSTILE_HDF5[kind](file)
    assert consume("hdf5", tmp_path / "shard.h5") is None


@pytest.mark.parametrize("name", ["keys", "labels"])
def test_hostile_columns(name: str, tmp_path: Path) -> None:
    path = tmp_path / "shard.h5"
    for make_column in (
        lambda f: f.create_dataset(name, (1 << 40,), "i8", chunks=(1 << 10,)),
        lambda f: f.create_dataset(name, data=["é"]),
        lambda f: f.__setitem__(name, h5py.SoftLink("/nowhere")),
    ):
        path.write_bytes(valid("hdf5")[SHARD + ".h5"])
        with h5py.File(path, "a") as file:
            del file[name]
            make_column(file)
        assert consume("hdf5", path) is None


@pytest.mark.parametrize(
    "header", ["", "3", "[]", "[" * 100_000, "x" * (2 << 20), 7, np.zeros(1 << 18), None]
)
def test_hostile_headers_of_hdf5(header: Any, tmp_path: Path) -> None:
    path = tmp_path / "shard.h5"
    path.write_bytes(valid("hdf5")[SHARD + ".h5"])
    with h5py.File(path, "a", libver="latest") as file:
        del file.attrs["header"]
        if header is not None:
            file.attrs["header"] = header
    assert consume("hdf5", path) is None or header == "[]"
