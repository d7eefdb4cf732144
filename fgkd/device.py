"""Choice and set-up of the device, and explanations of its errors."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fgkd import distributed, files
from fgkd.distributed import failures
from fgkd.errors import DeviceError, FgkdError, NotDeterministic, OutOfMemory, TooManyRanks

if TYPE_CHECKING:
    import torch


def pick(name: str) -> tuple[torch.device, str]:
    """The device of this name (or "auto") for this rank, and why it was chosen.

    Raises: DeviceError for a device that torch does not know or this machine does not have.
    """
    import torch

    cuda = torch.cuda.is_available()
    if name == "auto":
        why = "CUDA is present" if cuda else "no CUDA device found"
        name = "cuda" if cuda else "cpu"
    else:
        why = "as given"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"device {name!r} does not exist", device=name) from None
    if device.type == "cuda":
        if not cuda:
            raise DeviceError(f"device {name}: torch sees no CUDA device", device=name)
        index = device.index if device.index is not None else int(os.environ.get("LOCAL_RANK", 0))
        if index >= torch.cuda.device_count():
            count, ranks = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
            if ranks > count and device.index is None:
                message = f"{ranks} processes, but {count} CUDA device(s) on this machine"
                raise TooManyRanks(message, device=name, count=count)
            message = f"device {name}: this machine has {count} CUDA device(s)"
            raise DeviceError(message, device=name)
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
        why += f", {torch.cuda.get_device_name(device)}"
    return device, why


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device, copied asynchronously from pinned memory.

    One that is pinned already, as images from `loading.workers` are, must be kept until the copy is
    done.
    """
    if device.type != "cuda":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def set_up(name: str, deterministic: bool | None = None) -> tuple[torch.device, str]:
    """Choose and configure the device, and join the process group.

    Also returns a line that says what was chosen and why. deterministic: see `set_up_gpu`.
    """
    import torch

    device, why = pick(name)
    files.raise_open_files_limit()
    distributed.start(device)
    failures.watch()
    make_float32_exact()
    if device.type == "cpu":
        keep_memory()
    else:
        set_up_gpu(deterministic)
    ranks = f", {distributed.world()} processes" if distributed.world() > 1 else ""
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return device, f"{device} ({why}){threads}{ranks}"


def keep_memory() -> None:
    """Let glibc keep freed memory for the next step, instead of returning it to the system.

    Otherwise a third of each CPU step goes into page faults of large blocks that are returned and
    requested again. Without glibc nothing happens.
    """
    trim_threshold, mmap_max = -1, -4  # <malloc.h>
    if glibc := _glibc():
        glibc.mallopt(mmap_max, 0)
        glibc.mallopt(trim_threshold, -1)


def give_memory_back() -> None:
    """Return freed memory to the system, after one-time work that left much of it."""
    if glibc := _glibc():
        glibc.malloc_trim(0)


def memory_in_use(device: torch.device) -> int:
    """Bytes that this process has reserved: on a GPU by torch, else resident in main memory."""
    import psutil
    import torch

    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    return int(psutil.Process().memory_info().rss)


def _glibc() -> ctypes.CDLL | None:
    try:
        glibc = ctypes.CDLL("libc.so.6")
        return glibc if hasattr(glibc, "malloc_trim") else None  # else another libc of that name
    except OSError:
        return None


def set_up_gpu(deterministic: bool | None) -> None:
    """Configure torch for a GPU.

    deterministic: True uses deterministic kernels or raises RuntimeError (see `explain`), None
    uses them where they exist, False uses any.
    """
    import torch

    # Little is left to do on the CPU. More threads only spin, on the cores of the data loading
    # workers: a step of DeiT-base takes 65 ms instead of 83 with one thread.
    torch.set_num_threads(1)
    if deterministic is not False:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at first use
        torch.use_deterministic_algorithms(True, warn_only=deterministic is None)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def make_float32_exact() -> None:
    """Let float32 mean float32, not TF32 or bfloat16: autocast is the way to ask for less.

    By torch's old names and its new ones: the old do not undo `torch.backends.fp32_precision`, and
    the new alone are in conflict with the old, which libraries read.
    """
    import torch

    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    for kind in _kinds_of_float32():
        kind.fp32_precision = "ieee"


def _kinds_of_float32() -> list[Any]:
    """What has a setting of how precise float32 is: matmul, conv and rnn, on a GPU and a CPU."""
    import torch

    backends: Any = torch.backends
    of_cpu = [backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]
    return [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, *of_cpu]


@contextlib.contextmanager
def settings_kept() -> Iterator[None]:
    """Torch's settings for the whole process and its random state are afterwards as before.

    They belong to the program that calls the library, which may be in the middle of its training.
    """
    import torch

    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    cpu_state, threads = torch.get_rng_state(), torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warns_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fills: bool = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    precisions = [(kind, kind.fp32_precision) for kind in _kinds_of_float32()]
    allow_tf32 = matmul = None
    with contextlib.suppress(RuntimeError):  # of a caller who uses torch's new names
        allow_tf32 = torch.backends.cudnn.allow_tf32
    with contextlib.suppress(RuntimeError):
        matmul = torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        if allow_tf32 is not None:
            torch.backends.cudnn.allow_tf32 = allow_tf32
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        for kind, precision in precisions:
            kind.fp32_precision = precision
        torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(deterministic, warn_only=warns_only)
        torch.set_num_threads(threads)
        torch.set_rng_state(cpu_state)
        if cuda_states:
            torch.cuda.set_rng_state_all(cuda_states)


def explain(error: Exception) -> FgkdError | None:
    """A GPU error that a user can do something about, as an FgkdError; None for any other."""
    first = (str(error) or type(error).__name__).splitlines()[0]
    if type(error).__name__ == "OutOfMemoryError":
        return OutOfMemory(f"the GPU has too little memory: {first}", device="cuda")
    if re.search("deterministic (implementation|behavior)", first, re.IGNORECASE):
        message = f"this model's steps are not deterministic on a GPU: {first}"
        return NotDeterministic(message, device="cuda")
    return None
