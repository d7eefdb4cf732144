"""Answers through worker processes: leased memory is not written while something still reads it."""

from __future__ import annotations

import gc
import mmap
import os
import pickle
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.datasets import write_image

from fgkd.data import Samples
from fgkd.distributed import failures
from fgkd.errors import LostWorker, UnreadableImage
from fgkd.loading import workers
from fgkd.loading.workers import Pool, render
from fgkd.views.recipes import ViewRecipe
from fgkd.views.rendering import KeyedView, Request, ViewRenderer

RECIPE = ViewRecipe(crop_scale=(0.3, 1.0), hflip=0.5)


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> ViewRenderer:
    """Ten images at two sizes, of which the eighth cannot be read."""
    root = tmp_path_factory.mktemp("images")
    paths = [root / f"{i}.{'png' if i % 3 else 'jpg'}" for i in range(10)]
    for i, path in enumerate(paths):
        write_image(path, i % 4, i)
    paths[7].write_bytes(b"no image")
    zeros = np.zeros(10, np.int64)
    samples = Samples([path.name for path in paths], zeros, zeros, [str(path) for path in paths])
    return ViewRenderer(KeyedView(samples, RECIPE, 0), [16, 24], skip_unreadable=True)


def requests() -> list[Request]:
    """The first is the smallest, so that some do not fit its slot; the last two have one row."""
    rows = [[0], [1, 2], [3], [4], [7], [5], [6, 7, 8], [9], [0], [1]]
    return [Request(np.array(part), range(2)) for part in rows]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kept", ["none", "all", "slices"])
def test_the_images_are_those_of_one_process(
    renderer: ViewRenderer, workers: int, kept: str
) -> None:
    """Whether a consumer lets answers go, keeps them all, or keeps parts of their tensors."""
    expected = [renderer[request] for request in requests()]
    held = []
    for answer, want in zip(render(renderer, requests(), workers), expected, strict=True):
        assert answer.at.tolist() == want.at.tolist()
        assert answer.digests_BV.tolist() == want.digests_BV.tolist()
        assert [key for key, _ in answer.unreadable] == [key for key, _ in want.unreadable]
        assert all(map(torch.equal, answer.images, want.images))
        if kept != "none":
            held.append(answer.images if kept == "all" else tuple(i[:, 1:] for i in answer.images))
    for images, want in zip(held, expected, strict=False):
        cut = slice(None) if kept == "all" else slice(1, None)
        assert all(torch.equal(a, b[:, cut]) for a, b in zip(images, want.images, strict=True))
    assert len(held) in (0, 10)


def test_an_error_crosses_a_worker_whole(renderer: ViewRenderer) -> None:
    strict = ViewRenderer(renderer.view, renderer.sizes)
    answers = render(strict, requests(), 1)
    for _ in range(4):
        next(answers)
    with pytest.raises(UnreadableImage, match=r"cannot decode image .*7\.png"):
        next(answers)
    assert list(render(renderer, [], 2)) == []


def test_a_slot_is_free_when_nothing_of_it_is_left() -> None:
    pool = Pool(1, 100)
    shapes = [(2, 5, 3), (4, 10)]
    assert pool.take([(pool.slot_bytes + 1,)]) is None  # too large
    slot = pool.take(shapes)
    assert slot is not None
    for array, value in zip(pool.arrays(slot, shapes), (1, 2), strict=True):
        array[:] = value
    first, second = pool.tensors(slot, shapes)
    assert first.tolist() == np.full((2, 5, 3), 1).tolist()
    assert second.tolist() == np.full((4, 10), 2).tolist()
    part = second[1:2, ::3].numpy()[0, :1]
    del first, second
    assert pool.take(shapes) is None
    assert part.tolist() == [2]
    del part
    assert pool.take(shapes) == slot


class Cudart:
    """A CUDA runtime that locks pages, or refuses to."""

    def __init__(self, refuses: bool) -> None:
        self.cudaError = types.SimpleNamespace(success=0)
        self.refuses, self.locked = refuses, dict[int, int]()

    def cudaHostRegister(self, start: int, size: int, flags: int) -> int:
        assert start % mmap.PAGESIZE == size % mmap.PAGESIZE == 0
        assert start not in self.locked
        self.locked |= {} if self.refuses else {start: size}
        return 2 if self.refuses else 0

    def cudaHostUnregister(self, start: int) -> None:
        del self.locked[start]


@pytest.mark.parametrize("refuses", [False, True])
def test_slots_are_locked_for_a_gpu_when_they_are_first_used(
    refuses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And as long as a tensor of the pool is left; a refusal stops nothing."""
    runtime = Cudart(refuses)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    pool = Pool(3, 5000)
    assert pool.slot_bytes == 2 * mmap.PAGESIZE
    for num_used in (1, 1, 2):
        slots = [pool.take([(5000,)]) for _ in range(num_used)]
        held = [pool.tensors(slot, [(5000,)])[0] for slot in slots if slot is not None]
        assert len(held) == num_used
        assert set(runtime.locked.values()) == (set() if refuses else {pool.slot_bytes})
        assert len(runtime.locked) == (0 if refuses else num_used)
        if num_used == 1:
            held.clear()
    part = held[0][:3]
    del pool, held
    gc.collect()
    assert len(runtime.locked) == (0 if refuses else 2)
    del part
    gc.collect()
    assert not runtime.locked


def test_a_script_that_leaves_off_in_the_middle_ends(
    renderer: ViewRenderer, tmp_path: Path
) -> None:
    """Its generator still lives at the exit; its worker processes must not."""
    (tmp_path / "renderer").write_bytes(pickle.dumps((renderer, requests())))
    code = (
        "import pickle, sys\nfrom fgkd.loading.workers import render\n"
        "answers = render(*pickle.load(open(sys.argv[1], 'rb')), 2)\nprint(len(next(answers).rows))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "renderer")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


# ---- workers that end, and little shared memory ----------------------------------------------


class Ending(KeyedView):
    """Views of which one ends its process, as the kernel does where memory is short."""

    signal = signal.SIGKILL

    def __call__(self, image_of: Any, row: int, *args: Any) -> np.ndarray:
        if row == 5:
            os.kill(os.getpid(), self.signal)
        return super().__call__(image_of, row, *args)


@pytest.mark.parametrize(("number", "words"), [(9, "Killed"), (7, "Bus error")])
def test_a_worker_that_is_killed_is_an_error_of_its_own(
    number: int, words: str, renderer: ViewRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ending, "signal", number)
    ending = ViewRenderer(Ending(renderer.samples, RECIPE, 0), [16], skip_unreadable=True)
    with pytest.raises((LostWorker, RuntimeError)) as caught:
        list(render(ending, requests(), 1))
    found = caught.value
    if not isinstance(found, LostWorker):  # raised by torch's handler of SIGCHLD
        explained = failures.lost_worker(found)
        assert explained is not None
        found = explained
    assert words in found.how or "exited" in found.how


@pytest.mark.parametrize("text", ["of another kind", "DataLoader timed out after 5 seconds"])
def test_other_errors_are_not_taken_for_a_lost_worker(text: str) -> None:
    assert failures.lost_worker(RuntimeError(text)) is None


def test_workers_need_no_room_in_dev_shm(renderer: ViewRenderer, tmp_path: Path) -> None:
    """Docker gives 64 MB; here it is 256 KiB, and the buffers are megabytes."""
    code = (
        "import pickle, sys\n"
        "from fgkd.loading.workers import render\n"
        "renderer, requests = pickle.load(open(sys.argv[1], 'rb'))\n"
        "print(len(list(render(renderer, requests, 2))))\n"
    )
    large = ViewRenderer(renderer.view, [512], skip_unreadable=True)
    (tmp_path / "given").write_bytes(pickle.dumps((large, requests())))
    mount = "mount -t tmpfs -o size=256k tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "bash", "-c", mount], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a file system")
    run = f'{mount} && exec "$@"'
    argv = ["unshare", "-m", "bash", "-c", run, "-", sys.executable, "-c", code]
    done = subprocess.run([*argv, tmp_path / "given"], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == (f"{len(requests())}\n", 0), done.stderr


def test_where_shared_memory_is_needed_and_short_this_process_loads(
    renderer: ViewRenderer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As with Python 3.14, whose workers are not forked."""
    monkeypatch.setattr(workers.multiprocessing, "get_start_method", lambda: "forkserver")
    usage = shutil.disk_usage("/dev/shm")
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    monkeypatch.setattr(workers, "DataLoader", None)
    answers = list(render(renderer, requests(), 2))
    assert [a.rows.tolist() for a in answers] == [renderer[r].rows.tolist() for r in requests()]
    assert "/dev/shm" in caplog.text
