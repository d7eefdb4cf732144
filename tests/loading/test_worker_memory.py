"""Shared memory of DataLoader workers: used again once a batch is dropped, and never before."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import multiprocessing
from torch.utils.data import DataLoader, Dataset, get_worker_info

from fgkd.loading.worker_memory import MOST_BUFFERS, WorkerMemory

SHAPE = (4, 6, 5)  # images, height, width


class Numbered(Dataset[Any]):
    """Batch i is full of i; its label is the address of its memory in the worker."""

    def __init__(self, change: Callable[[Any], Any] | None = None, keep: bool = False) -> None:
        self.change, self.keep = change, keep
        self.memory: WorkerMemory | None = None
        self.kept: list[tuple[int, torch.Tensor]] = []

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        assert get_worker_info() is not None
        self.memory = self.memory or WorkerMemory()
        # every seventh batch is a short one
        images = self.memory.images(SHAPE[0] - (index % 7 == 0), *SHAPE[1:]).fill_(index)
        address = images.data_ptr()
        if self.keep:
            assert all((image == number).all() for number, image in self.kept)
            self.kept.append((index, images[0]))
        return (self.change(images) if self.change else images), address


def half(images: torch.Tensor) -> torch.Tensor:
    return images[:2]


def brighter(images: torch.Tensor) -> torch.Tensor:
    result = images + 100
    assert type(result) is torch.Tensor
    return result


@pytest.fixture(params=["file_descriptor", "file_system"])
def strategy(request: pytest.FixtureRequest) -> Any:
    before = multiprocessing.get_sharing_strategy()
    multiprocessing.set_sharing_strategy(request.param)
    yield request.param
    multiprocessing.set_sharing_strategy(before)


def loader(dataset: Numbered, workers: int = 1, **options: Any) -> Any:
    return DataLoader(dataset, batch_size=None, num_workers=workers, **options)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_batches_arrive_as_they_were_and_their_memory_is_used_again(
    strategy: str, start: str
) -> None:
    addresses = set()
    for index, (images, address) in enumerate(loader(Numbered(), multiprocessing_context=start)):
        assert images.shape == (SHAPE[0] - (index % 7 == 0), 3, *SHAPE[1:])
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert type(images) is torch.Tensor
        assert (images == index).all()
        addresses.add(address)
    assert len(addresses) <= 6  # of 60 batches


def test_batches_that_the_caller_keeps_are_not_overwritten(strategy: str) -> None:
    kept = [images for images, _ in loader(Numbered(), workers=2)]
    assert len(kept) > 2 * MOST_BUFFERS
    assert [int(images.float().mean()) for images in kept] == list(range(len(kept)))


def test_a_view_of_a_batch_keeps_its_memory() -> None:
    rows, addresses = [], []
    for images, address in loader(Numbered()):
        rows.append(images[1, :, 2:])
        addresses.append(address)
        del images
        gc.collect()
    assert [int(row.float().mean()) for row in rows] == list(range(60))


@pytest.mark.parametrize(("change", "added"), [(half, 0), (brighter, 100)])
def test_what_a_worker_computes_from_a_batch_arrives(
    change: Callable[[Any], Any], added: int
) -> None:
    for index, (images, _) in enumerate(loader(Numbered(change))):
        assert (images == index + added).all()


def test_memory_that_the_worker_itself_keeps_is_not_used_again() -> None:
    batches = list(loader(Numbered(keep=True)))
    assert len({address for _, address in batches}) == len(batches)


def test_a_batch_that_is_sent_twice_arrives_twice() -> None:
    images = WorkerMemory().images(*SHAPE).fill_(3)
    queue: Any = multiprocessing.get_context("fork").SimpleQueue()
    queue.put(images)
    queue.put(images)
    first, second = queue.get(), queue.get()
    assert (first == 3).all()
    assert (second == 3).all()
    del first
    images.fill_(4)
    assert (second == 3).all()


def test_a_larger_batch_gets_memory_of_its_own() -> None:
    memory = WorkerMemory()
    small = memory.images(2, 4, 4).fill_(1)
    large = memory.images(3, 4, 4).fill_(2)
    assert (small == 1).all()
    assert (large == 2).all()
    place = large.data_ptr()
    del small, large
    assert memory.images(3, 4, 4).data_ptr() == place
