"""Random rows for the encodings that keep some classes: logits, labels, and what is stored."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from fgkd.cache.encodings import Arrays, Codec

GRID = (1.0, 2.0, 4.0)


def shapes(most_classes: int) -> st.SearchStrategy[tuple[int, int, int, int]]:
    """Rows, classes, top k, labels per row."""
    counts = st.integers(1, 3), st.integers(6, most_classes), st.integers(1, 3), st.integers(1, 2)
    return st.tuples(*counts)


def stored(
    name: str, shape: tuple[int, int, int, int], seed: int, coarse: bool, scale: float
) -> tuple[Codec, np.ndarray, np.ndarray, Arrays]:
    """(codec, logits [2, N, C], labels [2, N, L], arrays of the declared types and shapes).

    coarse: many logits are equal. Rows are stored alike wherever they are.
    """
    num_rows, num_classes, top_k, num_labels = shape
    codec = Codec(name, num_classes, top_k, GRID, num_labels)
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, scale, (2, num_rows, num_classes)).astype(np.float32)
    if coarse:
        logits = np.rint(logits / scale).astype(np.float32)
    labels = generator.integers(-1, num_classes, (2, num_rows, num_labels))
    arrays = codec.encode(logits, labels)
    for array_name, (dtype, trailing) in codec.arrays().items():
        assert arrays[array_name].dtype == dtype
        assert arrays[array_name].shape == (2, num_rows, *trailing)
    again = codec.encode(logits[1], labels[1])
    assert all(np.array_equal(again[n], arrays[n][1]) for n in arrays)
    return codec, logits, labels, arrays
