"""Rank, world and collectives under torchrun; no-ops in a single process."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, Any

from .errors import FgkdError

if TYPE_CHECKING:
    import numpy as np
    import torch


def rank() -> int:
    """This process's rank; 0 outside torchrun."""
    return int(os.environ.get("RANK", 0))


def world() -> int:
    """The number of processes; 1 outside torchrun."""
    return int(os.environ.get("WORLD_SIZE", 1))


def pick_device(name: str) -> tuple[torch.device, str]:
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
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, -1)


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
            "--grad-accum-steps 2 (training: the same steps in parts), or a smaller --batch-size",
        )
    if "does not have a deterministic implementation" in first:
        return FgkdError(
            f"this model's steps cannot be repeated bit for bit on a GPU: {first}",
            "--no-deterministic",
        )
    return None


def start(device: torch.device) -> None:
    """Join the process group that torchrun describes (nccl on CUDA, gloo otherwise)."""
    import torch.distributed as dist

    if world() > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def stop() -> None:
    """Leave the process group."""
    if world() > 1:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()


def sums(values: list[float], device: torch.device) -> list[float]:
    """Each value summed over ranks, in float64."""
    if world() == 1:
        return values
    import torch
    import torch.distributed as dist

    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return list(total.tolist())


def add_up(values: torch.Tensor) -> None:
    """Each value summed over ranks, in place."""
    if world() > 1:
        import torch.distributed as dist

        dist.all_reduce(values)


def gather(value: Any) -> list[Any]:
    """Every rank's value, in rank order, on every rank."""
    if world() == 1:
        return [value]
    import torch.distributed as dist

    out: list[Any] = [None] * world()
    dist.all_gather_object(out, value)
    return out


def gather_rows(rows_BK: torch.Tensor) -> torch.Tensor:
    """The rows of all ranks, in rank order; the gradient of a row is the sum of what ranks ask.

    Ranks may have different numbers of rows, or none. All ranks must call it, and all or none of
    them take its gradient.
    """
    if world() == 1:
        return rows_BK
    import torch
    import torch.distributed as dist

    class GatherRows(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, own_BK: torch.Tensor) -> torch.Tensor:
            counts = [int(n) for n in gather(len(own_BK))]
            ctx.start = sum(counts[: rank()])
            ctx.stop = ctx.start + counts[rank()]
            padded = own_BK.new_zeros(max(counts), *own_BK.shape[1:])
            padded[: len(own_BK)] = own_BK
            everyone = [torch.empty_like(padded) for _ in counts]
            dist.all_gather(everyone, padded)
            return torch.cat([part[:n] for part, n in zip(everyone, counts, strict=True)])

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
            grad_NK = grads[0].clone()
            dist.all_reduce(grad_NK)
            return grad_NK[ctx.start : ctx.stop]

    out: torch.Tensor = GatherRows.apply(rows_BK)
    return out


def share_statistics(model: torch.nn.Module) -> None:
    """Give every rank the norm statistics of rank 0, which are those that are saved."""
    if world() > 1:
        from timm.utils import distribute_bn

        distribute_bn(model, world())


def barrier() -> None:
    """Wait for all ranks."""
    if world() > 1:
        import torch.distributed as dist

        dist.barrier()


def share(rows: np.ndarray, unit: int = 1) -> np.ndarray:
    """This rank's contiguous part of a global batch, cut at multiples of `unit` (2 keeps pairs)."""
    units = -(-len(rows) // unit)
    cuts = [min(len(rows), units * r // world() * unit) for r in range(world() + 1)]
    return rows[cuts[rank()] : cuts[rank() + 1]]
