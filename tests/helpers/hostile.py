"""Feeding readers with files from strangers: an explained error or a result, in little memory."""

from __future__ import annotations

import functools
import tempfile
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from fgkd.cache import hdf5, wds
from fgkd.errors import FgkdError
from helpers.caches import write_cache
from stages.remedies import remedy

SHARD = "shards/shard-00001-v000-002"
SUFFIXES = {"hdf5": ".h5", "webdataset": ".tar"}
BACKENDS = {"hdf5": hdf5, "webdataset": wds}
NAMES = ["logits", "digests"]
FUZZ = settings(max_examples=150, deadline=None, derandomize=True)


@functools.cache
def valid(name: str) -> dict[str, bytes]:
    """The files of a complete cache of a format."""
    with tempfile.TemporaryDirectory() as folder:
        cache = write_cache(Path(folder) / "cache", views=2, format=name)
        return {
            path.relative_to(cache).as_posix(): path.read_bytes()
            for path in cache.rglob("*")
            if path.is_file()
        }


@contextmanager
def frugal() -> Iterator[None]:
    """No more than 32 MiB of new memory, for shards of a few KiB."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def explained(error: FgkdError, where: str) -> None:
    """An error that says where and what to do."""
    assert where in str(error)
    assert remedy(error)


def consume(name: str, path: Path) -> dict[str, np.ndarray] | None:
    """All that a format's reader gives; None when it refused the file with an explained error."""
    with frugal():
        try:
            reader = BACKENDS[name].Reader(path)
            try:
                keys = reader.sample_keys()
                held_views = [reader.arrays_of_view(view, NAMES) for view in range(2)]
                if name == "webdataset":
                    for i in range(len(keys)):
                        offset, size = reader.image_place(i)
                        assert offset + size <= path.stat().st_size
            finally:
                reader.close()
        except FgkdError as error:
            explained(error, str(path))
            return None
    return {n: np.stack([held[n] for held in held_views]) for n in NAMES}


def consume_bytes(name: str, data: bytes) -> dict[str, np.ndarray] | None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"shard{SUFFIXES[name]}"
        path.write_bytes(data)
        return consume(name, path)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([1 << 40, 1 << 70, -(1 << 70)])
    | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)
