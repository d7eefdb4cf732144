"""Keyed sample order: how images are grouped into blocks, shuffled each epoch and paired for mixup.

All are keyed permutations, so that workers, ranks and resume points change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fgkd import rng


def blocks(
    seed: int, num_samples: int, shard_size: int, added: Sequence[int] = ()
) -> list[np.ndarray]:
    """Rows of each block: a keyed permutation cut every `shard_size`; so blocks mix classes.

    added: how many of the last samples came later, in each addition: they have blocks of their own,
    after those of the others, which stay as they were.
    """
    found, start = [], 0
    for number, count in enumerate((num_samples - sum(added), *added)):
        key = ("added", number) if number else ()
        order = start + rng.stream("blocks", seed, *key).permutation(count)
        found += [order[i : i + shard_size] for i in range(0, count, shard_size)]
        start += count
    return found


def partners(seed: int, view: int, block_rows: list[np.ndarray]) -> np.ndarray:
    """int64 [N]: each row's partner in this view, an involution within each block.

    The last sample of an odd block is its own partner.
    """
    partner = np.empty(sum(map(len, block_rows)), np.int64)
    for number, rows in enumerate(block_rows):
        shuffled = rows[rng.stream("pairs", seed, view, number).permutation(len(rows))]
        even = len(rows) // 2 * 2
        partner[shuffled[0:even:2]] = shuffled[1:even:2]
        partner[shuffled[1:even:2]] = shuffled[0:even:2]
        partner[shuffled[even:]] = shuffled[even:]
    return partner


def pairs_first(rows: np.ndarray, partner: np.ndarray) -> np.ndarray:
    """These rows with mixed pairs side by side, those without a partner last."""
    first, alone = rows[rows < partner[rows]], rows[rows == partner[rows]]
    return np.concatenate([np.stack([first, partner[first]], 1).reshape(-1), alone])


def epoch_order(
    seed: int, epoch: int, num_samples: int, partner: np.ndarray | None = None
) -> np.ndarray:
    """The rows of an epoch in order; with partners, pairs side by side and loners last."""
    stream = rng.stream("order", seed, epoch)
    if partner is None:
        return stream.permutation(num_samples)
    return _shuffle(stream, np.arange(num_samples), partner)


def _shuffle(stream: rng.Stream, rows: np.ndarray, partner: np.ndarray | None) -> np.ndarray:
    if partner is None:
        return rows[stream.permutation(len(rows))]
    first, loners = rows[rows < partner[rows]], rows[rows == partner[rows]]
    first = first[stream.permutation(len(first))]
    pairs = np.stack([first, partner[first]], axis=1).reshape(-1)
    return np.concatenate([pairs, loners[stream.permutation(len(loners))]])


def shard_order(
    seed: int,
    epoch: int,
    block_rows: list[np.ndarray],
    buffer: int,
    partner: np.ndarray | None = None,
) -> np.ndarray:
    """An epoch shard by shard: blocks in keyed order, rows mixed within `buffer` blocks."""
    stream = rng.stream("shard_order", seed, epoch)
    order = stream.permutation(len(block_rows))
    groups = [
        np.concatenate([block_rows[b] for b in order[i : i + buffer]])
        for i in range(0, len(order), buffer)
    ]
    return np.concatenate([_shuffle(stream, rows, partner) for rows in groups])
