"""Rendering of requests in worker processes, into a pool of shared-memory buffers.

Tensors that DataLoader workers return lie in new shared memory each time, whose page faults cost a
tenth of rendering the images. So workers write into the buffers of one pool, which are reused.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import logging
import math
import mmap
import multiprocessing
import os
import shutil
import signal
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from fgkd.distributed import failures
from fgkd.errors import FgkdError
from fgkd.files import human_bytes
from fgkd.views.rendering import RenderedViews, Request, ViewRenderer

# The most answers in use at a time: of a capture, one being encoded, two that wait for it, and one
# in front of the teacher. A training step holds its own batch and the next.
IN_USE = 4
log = logging.getLogger(__name__)
log.addHandler(logging.NullHandler())


def render(
    renderer: ViewRenderer, requests: Iterable[Request], workers: int
) -> Iterator[RenderedViews]:
    """Rendered views in the order of the requests, from `workers` processes (0: this one)."""
    if workers:
        yield from _from_workers(renderer, iter(requests), workers)
        return
    for request in requests:
        yield _sound(renderer[request])


def _from_workers(
    renderer: ViewRenderer, requests: Iterator[Request], workers: int
) -> Iterator[RenderedViews]:
    first = next(requests, None)
    if first is None:
        return
    # Two requests a worker are under way; one answer is coming in, and some are in use.
    num_slots, slot_bytes = 2 * workers + 1 + IN_USE, sum(map(math.prod, renderer.shapes(first)))
    if not _fits_shared_memory(num_slots * slot_bytes):
        yield from render(renderer, itertools.chain([first], requests), 0)
        return
    pool = Pool(num_slots, slot_bytes)
    sent: deque[tuple[Request, int | None]] = deque()

    def with_buffers() -> Iterator[tuple[Request, int | None]]:
        for request in itertools.chain([first], requests):
            sent.append((request, pool.take(renderer.shapes(request))))
            yield sent[-1]

    loader: Any = DataLoader(
        _Pooled(renderer, pool),
        sampler=with_buffers(),
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_is,
        worker_init_fn=_ignore_signals,
    )
    answers = iter(loader)
    # A caller that stops in the middle may still hold this generator at exit, and multiprocessing
    # waits there for workers, which ignore SIGTERM. Registered later, this is called before that.
    kill = functools.partial(_kill, answers._workers)
    atexit.register(kill)
    try:
        for answer in answers:
            request, slot = sent.popleft()
            if slot is not None:
                images = pool.tensors(slot, renderer.shapes(request))
                if not isinstance(answer, FgkdError):
                    there = tuple(image[: len(answer.at)] for image in images)
                    answer = replace(answer, images=there)
                    del there
                del images
            elif not isinstance(answer, FgkdError):
                answer = replace(answer, images=tuple(map(torch.from_numpy, answer.images)))
            yield _sound(answer)
            del answer
    except RuntimeError as error:
        raise failures.lost_worker(error) or error from None
    finally:
        del answers  # else an error's traceback would keep it, and with it the workers
        atexit.unregister(kill)


def _kill(processes: list[Any]) -> None:
    for process in processes:
        process.kill()


def _sound(answer: RenderedViews | FgkdError) -> RenderedViews:
    if isinstance(answer, FgkdError):
        raise answer
    return answer


def _as_is(answer: Any) -> Any:
    return answer


def _ignore_signals(worker: int) -> None:
    """Ctrl-C, and the SIGTERM of torchrun, reach the whole group: the main process handles them."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class _Pooled(TorchDataset[Any]):
    """A renderer that writes images into a buffer of the pool, and returns the rest."""

    def __init__(self, renderer: ViewRenderer, pool: Pool) -> None:
        self.renderer, self.pool = renderer, pool

    def __getitem__(self, asked: tuple[Request, int | None]) -> RenderedViews | FgkdError:
        request, slot = asked
        if slot is None:  # through the pipe, as torch's own way needs shared memory of its own
            answer = self.renderer[request]
            if isinstance(answer, FgkdError):
                return answer
            arrays: Any = tuple(image.numpy() for image in answer.images)
            return replace(answer, images=arrays)
        try:
            arrays = self.pool.arrays(slot, self.renderer.shapes(request))
            answer = self.renderer.render_into(arrays, request)
        except FgkdError as error:
            return error
        if answer.unreadable:  # the others moved together
            for array, image in zip(arrays, answer.images, strict=True):
                array[: len(image)] = image.numpy()
        return replace(answer, images=())


class Pool:
    """A fixed number of shared-memory buffers ("slots"), created before the workers.

    A slot is free again when the main process has dropped the last tensor that views it.
    """

    def __init__(self, num_slots: int, slot_bytes: int) -> None:
        self.slot_bytes = -(-slot_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        memory = _shared_memory(num_slots * self.slot_bytes)
        self._memory = memory.view(num_slots, self.slot_bytes)
        self._free = list(range(num_slots))
        self._locks: dict[int, _PageLock] = {}  # by slot

    def take(self, shapes: Sequence[tuple[int, ...]]) -> int | None:
        """A free slot for uint8 arrays of these shapes; None if all are in use or too small."""
        fits = sum(map(math.prod, shapes)) <= self.slot_bytes
        return self._free.pop() if fits and self._free else None

    def arrays(self, slot: int, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        """Consecutive arrays of these shapes in a slot."""
        return _cut(self._memory[slot].numpy(), shapes)

    def tensors(self, slot: int, shapes: Sequence[tuple[int, ...]]) -> tuple[torch.Tensor, ...]:
        """The arrays as tensors; the slot is free again when all of them are gone."""
        if torch.cuda.is_initialized() and slot not in self._locks:
            self._locks[slot] = _PageLock(self._memory[slot])
        whole = self._memory[slot].numpy()
        weakref.finalize(whole, self._release, slot)  # views and tensors keep `whole`
        return tuple(map(torch.from_numpy, _cut(whole, shapes)))

    def _release(self, slot: int) -> None:
        self._free.append(slot)


def _shared_memory(num_bytes: int) -> torch.Tensor:
    """Memory that processes started later share; no page of it is touched yet."""
    if multiprocessing.get_start_method() == "fork":  # needs no room in /dev/shm
        return torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(num_bytes)
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def _fits_shared_memory(num_bytes: int) -> bool:
    """Whether /dev/shm, which a container may limit to 64 MB, has room where it is needed."""
    if multiprocessing.get_start_method() == "fork" or not os.path.isdir("/dev/shm"):
        return True
    free = shutil.disk_usage("/dev/shm").free
    if num_bytes <= free:
        return True
    log.warning(
        "/dev/shm has %s free, and worker processes need %s: images are loaded by this process "
        "(a container can be given more)",
        *(human_bytes(free), human_bytes(num_bytes)),
    )
    return False


class _PageLock:
    """Pins a slot's pages for asynchronous copies to the GPU, for as long as this object lives.

    Where the system refuses, tensors are copied to pinned memory first.
    """

    def __init__(self, memory: torch.Tensor) -> None:
        self.memory, self.process, cudart = memory, os.getpid(), torch.cuda.cudart()
        done = cudart.cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)
        self._unlock = cudart.cudaHostUnregister
        if done != cudart.cudaError.success:
            self._unlock = None
            with contextlib.suppress(RuntimeError):  # torch raises this at the next kernel, once
                torch.ones((), device="cuda")  # the current one: the last error is the thread's

    def __del__(self) -> None:
        if self._unlock and self.process == os.getpid():  # not in a worker that was forked later
            self._unlock(self.memory.data_ptr())


def _cut(whole: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    ends = np.cumsum([math.prod(shape) for shape in shapes]).tolist()
    starts = [0, *ends[:-1]]
    return [whole[a:b].reshape(shape) for a, b, shape in zip(starts, ends, shapes, strict=True)]
