"""Randomness as a function of a key.

A stream is Philox-4x64 (Salmon et al., SC 2011; NumPy keeps its bits stable across versions) keyed
by the blake2b hash of the key. Distributions are derived here from the raw bits, because NumPy
promises nothing about those of its `Generator`.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np

Key = str | int | float | bytes


def digest(*key: Key, size: int = 16) -> bytes:
    """blake2b of the key's parts; parts are typed and length-prefixed, so no two keys collide."""
    state = hashlib.blake2b(digest_size=size)
    for part in key:
        raw = part if isinstance(part, bytes) else repr(part).encode()
        state.update(f"{type(part).__name__}{len(raw)}:".encode() + raw)
    return state.digest()


def hash64(*key: Key) -> int:
    """An unsigned 64-bit hash of the key, equal in every process and on every machine."""
    return int.from_bytes(digest(*key, size=8), "little")


TORCH_SORTS_FROM = 1 << 20  # words


class Stream:
    """Draws from one keyed Philox stream, in the order in which they are asked for."""

    def __init__(self, key: bytes, counter: int = 0) -> None:
        # The counter's upper half separates streams of one key; its lower half counts draws.
        self._bits = np.random.Philox(key=int.from_bytes(key, "little"), counter=counter << 128)

    def raw(self, n: int) -> np.ndarray:
        """`n` uint64 words."""
        return self._bits.random_raw(n)

    def uniforms(self, n: int) -> np.ndarray:
        """`n` float64 in [0, 1), from the top 53 bits of each word."""
        return _unit(self.raw(n))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """One float in [low, high)."""
        return low + (high - low) * float(self.uniforms(1)[0])

    def integer(self, n: int) -> int:
        """One int in [0, n), by multiply-shift (bias below n / 2**64)."""
        return (int(self.raw(1)[0]) * n) >> 64

    def normal(self) -> float:
        """One standard normal, by Box-Muller."""
        u, v = self.uniforms(2)
        return math.sqrt(-2.0 * math.log(1.0 - u)) * math.cos(2.0 * math.pi * v)

    def beta(self, a: float, b: float) -> float:
        """One Beta(a, b) draw in [0, 1], by Johnk's algorithm in logs (any a, b > 0)."""
        while True:
            u, v = (math.log(1.0 - x) for x in self.uniforms(2))
            x, y = u / a, v / b
            top = max(x, y)
            log_sum = top + math.log(math.exp(x - top) + math.exp(y - top))
            if log_sum <= 0.0:  # x**(1/a) + y**(1/b) <= 1
                return math.exp(x - log_sum)

    def permutation(self, n: int) -> np.ndarray:
        """A permutation of range(n), int64: the order of n raw words (ties by position)."""
        words = self.raw(n)
        if n < TORCH_SORTS_FROM:
            return np.argsort(words, kind="stable").astype(np.int64, copy=False)
        import torch  # whose sort of integers takes less than half of the time

        signed = (words ^ np.uint64(1 << 63)).view(np.int64)  # in the same order
        order: np.ndarray = torch.sort(torch.from_numpy(signed), stable=True).indices.numpy()
        return order


def _unit(words: np.ndarray) -> np.ndarray:
    return (words >> np.uint64(11)) * 2.0**-53


def stream(*key: Key) -> Stream:
    """The stream of a key, from its beginning."""
    return Stream(digest(*key))


def row_uniforms(row_ids: np.ndarray, n: int, *key: Key) -> np.ndarray:
    """float64 [len(row_ids), n] in [0, 1); row i depends on the key and `row_ids[i]` (uint64).

    Used for per-sample drop path, so that a sample's draws do not depend on its neighbours.
    """
    bits = np.random.Philox(key=int.from_bytes(digest(*key), "little"))
    start, words = bits.state, np.empty((len(row_ids), n), np.uint64)
    for i, row in enumerate(row_ids):  # of Stream(digest(*key), row), without an object for each
        start["state"]["counter"][:] = 0, 0, row, 0
        bits.state = start
        words[i] = bits.random_raw(n)
    return _unit(words)


def seed_torch(*key: Key) -> None:
    """Seed torch's generators (CPU and every device) from a key."""
    import torch

    torch.manual_seed(hash64(*key) >> 1)
