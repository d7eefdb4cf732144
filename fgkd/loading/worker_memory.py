"""Shared memory for the batches of a DataLoader's worker, used again once a batch is dropped.

torch moves each batch to new shared memory, whose page faults cost a tenth of rendering its images.
Here a worker renders into memory that is shared already, and that the main process hands back.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MOST_BUFFERS = 16  # of a worker; a caller that keeps more batches gets new memory for each


class WorkerMemory:
    """The buffers of one worker process."""

    def __init__(self) -> None:
        self._buffers: list[_Buffer] = []

    def images(self, number: int, height: int, width: int) -> Tensor:
        """Uninitialised uint8 images [B, 3, H, W], channels last, sent without a copy."""
        size = number * height * width * 3
        kept = [buffer for buffer in self._buffers if buffer.size >= size or not buffer.is_free]
        buffer = next((buffer for buffer in kept if buffer.size >= size and buffer.is_free), None)
        if buffer is None:
            buffer = _Buffer(size)
            if len(kept) < MOST_BUFFERS:
                kept.append(buffer)
        self._buffers = kept
        return buffer.images(number, height, width)


class _Buffer:
    """Shared memory of `size` bytes, and one byte more: whether another process uses it."""

    def __init__(self, size: int) -> None:
        self.size = size
        storage = torch.UntypedStorage._new_shared(size + 1)
        self.memory = torch.empty(0, dtype=torch.uint8).set_(storage)
        self.memory[-1] = 0
        self._used_here = False

    @property
    def is_free(self) -> bool:
        return not self._used_here and not self.memory[-1]

    def images(self, number: int, height: int, width: int) -> Tensor:
        self._used_here = True
        images = _images(self.memory, (number, height, width), self._dropped).as_subclass(_Sent)
        images.buffer = self
        return images

    def _dropped(self) -> None:
        self._used_here = False


class _Sent(Tensor):
    """A batch in a buffer. What is computed from it is a plain tensor."""

    buffer: _Buffer
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __reduce_ex__(self, protocol: Any) -> Any:
        memory = self.buffer.memory
        if memory[-1]:  # sent before, and still in use there
            return _as_it_is, (self.as_subclass(Tensor).clone(),)
        memory[-1] = 1
        number, _, height, width = self.shape
        return _received, (memory, (number, height, width))


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _received(memory: Tensor, shape_BHW: tuple[int, int, int]) -> Tensor:
    """The batch in another process, which hands the buffer back when its last view is gone."""

    def hand_back() -> None:
        memory[-1] = 0

    return _images(memory, shape_BHW, hand_back)


def _images(memory: Tensor, shape_BHW: tuple[int, int, int], dropped: Callable[[], None]) -> Tensor:
    """The first bytes of memory; `dropped` is called when no tensor views them any more."""
    array = memory.numpy()[: math.prod(shape_BHW) * 3]
    weakref.finalize(array, dropped).atexit = False  # the tensor's storage keeps the array
    return torch.from_numpy(array).view(*shape_BHW, 3).permute(0, 3, 1, 2)
