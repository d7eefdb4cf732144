"""Tars from strangers: links, lies about sizes, pickles; nothing is extracted, nothing run."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.caches import NUM_CLASSES
from helpers.hostile import FUZZ, JSON, SHARD, consume, consume_bytes, valid
from hypothesis import given
from hypothesis import strategies as st

from fgkd.cache import wds


class Unpickled(Exception):
    """A pickle was loaded, which runs what its author likes."""


class Bomb:
    def __reduce__(self) -> Any:
        return (_explode, ())


def _explode() -> None:
    raise Unpickled


def repack(change: Callable[[tarfile.TarInfo, bytes], Iterator[tuple[Any, bytes]]]) -> bytes:
    """The valid tar with its members changed, added or left out."""
    sink = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(valid("webdataset")[SHARD + ".tar"])) as old,
        tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as new,
    ):
        for info in old:
            file = old.extractfile(info)
            assert file
            for member, data in change(info, file.read()):
                member.size = len(data) if member.isreg() else 0
                new.addfile(member, io.BytesIO(data))
    return sink.getvalue()


def npy(array: Any, version: tuple[int, int] = (1, 0)) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asanyarray(array), version, allow_pickle=True)
    return buffer.getvalue()


def npy_header(text: str) -> bytes:
    """An array file that says whatever it likes of itself."""
    body = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body + b"\0" * 64


LOGITS = npy(np.ones((2, NUM_CLASSES), np.float16))
ARRAYS = {
    "objects": npy(np.array([[Bomb()] * NUM_CLASSES] * 2, object)),
    "a pickle": pickle.dumps(Bomb()),
    "fortran order": npy(np.asfortranarray(np.ones((2, NUM_CLASSES), np.float16))),
    "another version": npy(np.ones((2, NUM_CLASSES), np.float16), (2, 0)),
    "fewer views": npy(np.ones((1, NUM_CLASSES), np.float16)),
    "no views": npy(np.float16(1)),
    "too short": LOGITS[:-2],
    "too long": LOGITS + b"\0\0",
    "empty": b"",
    "a huge shape": npy_header(
        f"{{'descr': '<f2', 'fortran_order': False, 'shape': (2, {1 << 50})}}"
    ),
    "an overflow": npy_header(
        f"{{'descr': '<f2', 'fortran_order': False, 'shape': (2, {1 << 40}, {1 << 40})}}"
    ),
    "a negative shape": npy_header("{'descr': '<f2', 'fortran_order': False, 'shape': (2, -6)}"),
    "nothing, hugely": npy_header(
        f"{{'descr': '<f2', 'fortran_order': False, 'shape': (2, 0, {1 << 60})}}"
    ),
    "a huge type": npy_header("{'descr': '|S2000000000', 'fortran_order': False, 'shape': (2,)}"),
    "no shape": npy_header("{'descr': '<f2', 'fortran_order': False}"),
    "code": npy_header("__import__('os').abort()"),
    "deep": npy_header("(" * 110),
}


@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize("kind", ARRAYS)
def test_hostile_arrays(kind: str, everywhere: bool) -> None:
    """Of every sample, or of the second alone."""
    seen: list[str] = []

    def change(info: tarfile.TarInfo, data: bytes) -> Iterator[tuple[Any, bytes]]:
        if info.name.endswith(".logits.npy"):
            seen.append(info.name)
            data = ARRAYS[kind] if everywhere or len(seen) == 2 else data
        yield info, data

    assert consume_bytes("webdataset", repack(change)) is None


def rename(to: str) -> Callable[[tarfile.TarInfo], None]:
    return lambda info: setattr(info, "name", to)


def make(type: bytes, linkname: str = "") -> Callable[[tarfile.TarInfo], None]:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname = type, linkname

    return change


MEMBERS: dict[str, Callable[[tarfile.TarInfo], None]] = {
    "outside": rename("../../outside.npy"),
    "absolute": rename("/etc/passwd"),
    "a long name": rename("a/" * 70 + "b"),
    "not UTF-8": rename("\udcff"),
    "a symlink": make(tarfile.SYMTYPE, "/etc/passwd"),
    "a hard link": make(tarfile.LNKTYPE, "/etc/passwd"),
    "a device": make(tarfile.CHRTYPE),
    "a folder": make(tarfile.DIRTYPE),
}


@pytest.mark.parametrize("kind", MEMBERS)
def test_hostile_members(kind: str, tmp_path: Path) -> None:
    """In the place of an array; nothing is ever extracted."""
    changed: list[str] = []

    def change(info: tarfile.TarInfo, data: bytes) -> Iterator[tuple[Any, bytes]]:
        if info.name.endswith(".logits.npy") and not changed:
            changed.append(info.name)
            MEMBERS[kind](info)
        yield info, data

    path = tmp_path / "inner" / "shard.tar"
    path.parent.mkdir()
    path.write_bytes(repack(change))
    assert consume("webdataset", path) is None
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == [
        "inner",
        "inner/shard.tar",
    ]


def test_a_member_that_is_there_twice() -> None:
    def twice(info: tarfile.TarInfo, data: bytes) -> Iterator[tuple[Any, bytes]]:
        yield info, data
        if info.name.endswith(".logits.npy"):
            yield info, data

    assert consume_bytes("webdataset", repack(twice)) is None


@pytest.mark.parametrize(
    "size",
    [
        b"77777777777\0",
        b"00000100000\0",
        b"\x80" + b"\0" * 3 + b"\xff" * 8,
        b"\xff" * 12,
        b"-0000000001\0",
    ],
)
def test_sizes_that_are_lies(size: bytes) -> None:
    """Huge, or negative in base 256, which sends tarfile backwards for ever."""
    data = bytearray(valid("webdataset")[SHARD + ".tar"])
    data[124:136] = size
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + 256 + sum(data[156:512]))
    assert consume_bytes("webdataset", bytes(data)) is None


@FUZZ
@given(name=st.sampled_from(["header", "keys", "labels", "rows"]), value=JSON)
def test_hostile_headers_of_tars(name: str, value: Any) -> None:
    def change(info: tarfile.TarInfo, data: bytes) -> Iterator[tuple[Any, bytes]]:
        if info.name == wds.HEADER:
            data = json.dumps(json.loads(data) | {name: value}).encode()
        yield info, data

    consume_bytes("webdataset", repack(change))
