"""The device that computes: choosing it, setting torch up for it, what its errors mean."""

from __future__ import annotations

import ctypes
import os
import re
from typing import TYPE_CHECKING

from fgkd.errors import FgkdError

if TYPE_CHECKING:
    import torch


def pick(name: str) -> tuple[torch.device, str]:
    """The device of `--device` for this rank, and why it was chosen.

    Raises: FgkdError for a device that torch does not know or this machine does not have.
    """
    import torch

    cuda = torch.cuda.is_available()
    if name == "auto":
        why = "CUDA is present" if cuda else "no CUDA device found"
        name = "cuda" if cuda else "cpu"
    else:
        why = "--device"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise FgkdError(f"--device {name!r} is not a device", "--device auto") from None
    if device.type == "cuda":
        if not cuda:
            raise FgkdError(f"--device {name}: torch sees no CUDA device", "--device cpu")
        index = device.index if device.index is not None else int(os.environ.get("LOCAL_RANK", 0))
        if index >= torch.cuda.device_count():
            raise FgkdError(
                f"--device {name}: this machine has {torch.cuda.device_count()} CUDA device(s)",
                "--device auto",
            )
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
        why += f", {torch.cuda.get_device_name(device)}"
    return device, why


def keep_memory() -> None:
    """Have glibc keep what is freed, for the next step, where a CPU computes.

    By itself it gives large blocks back and asks for them again, and to fill the new ones with
    zeros takes the system a third of every step. Elsewhere than on glibc nothing happens.
    """
    trim_threshold, mmap_max = -1, -4  # <malloc.h>
    if glibc := _glibc():
        glibc.mallopt(mmap_max, 0)
        glibc.mallopt(trim_threshold, -1)


def give_memory_back() -> None:
    """Have glibc give back what is free, after work that was done once and left holes."""
    if glibc := _glibc():
        glibc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    try:
        glibc = ctypes.CDLL("libc.so.6")
        return glibc if hasattr(glibc, "malloc_trim") else None  # else another libc of that name
    except OSError:
        return None


def set_up_gpu(deterministic: bool | None) -> None:
    """How torch is to compute on a GPU.

    deterministic: take kernels that give the same bits every time, or raise RuntimeError (see
    `explain`); None: take them where there are such; False: any.
    """
    import torch

    # What the CPU still does is small: threads for it cost more in waiting for one another, and
    # while they wait they take the cores of the workers (a step of DeiT-base 65 ms instead of 83).
    torch.set_num_threads(1)
    # float32 means float32: autocast is the way to ask for less.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    if deterministic is not False:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at first use
        torch.use_deterministic_algorithms(True, warn_only=deterministic is None)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def explain(error: Exception) -> FgkdError | None:
    """A GPU's error that a user can do something about, in words; None for any other."""
    first = (str(error) or type(error).__name__).splitlines()[0]
    if type(error).__name__ == "OutOfMemoryError":
        return FgkdError(
            f"the GPU has too little memory: {first}",
            "--batch-size 16   # in training also --grad-accum-steps 2 (the same steps in parts) "
            "or --eval-batch-size 64",
        )
    if re.search("deterministic (implementation|behavior)", first, re.IGNORECASE):
        return FgkdError(
            f"this model's steps cannot be repeated bit for bit on a GPU: {first}",
            "--no-deterministic",
        )
    return None
