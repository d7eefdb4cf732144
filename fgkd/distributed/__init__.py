"""Rank, world and collectives under torchrun; no-ops in a single process."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch


def rank() -> int:
    """This process's rank; 0 outside torchrun."""
    return int(os.environ.get("RANK", 0))


def world() -> int:
    """The number of processes; 1 outside torchrun."""
    return int(os.environ.get("WORLD_SIZE", 1))


def start(device: torch.device) -> None:
    """Join the process group that torchrun describes (nccl on CUDA, gloo otherwise)."""
    import torch.distributed as dist

    if world() == 1 or dist.is_initialized():
        return
    backend, restart = "nccl" if device.type == "cuda" else "gloo", _restart()
    if not restart:
        dist.init_process_group(backend)
        return
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    # The launcher's store still has the addresses of the processes that ended (pytorch #135712).
    store = next(rendezvous("env://"))[0]
    own = PrefixStore(f"restart-{restart}", store)
    dist.init_process_group(backend, store=own, rank=rank(), world_size=world())


def _restart() -> int:
    """How often torchrun has started this group again; 0 where machines may not agree on it."""
    if os.environ.get("LOCAL_WORLD_SIZE") != os.environ.get("WORLD_SIZE"):
        return 0
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


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
    """Rows of all ranks, in rank order, differentiable: a row's gradient is summed over ranks.

    Ranks may have different numbers of rows, or none. All ranks must call it, and either all or
    none of them run its backward pass.
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
    """Copy rank 0's BatchNorm statistics, which are the ones that are saved, to every rank."""
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
