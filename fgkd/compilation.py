"""torch.compile: when it pays, and its errors."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fgkd import distributed
from fgkd.config import args_file
from fgkd.errors import CompileError, FgkdError

if TYPE_CHECKING:
    import torch

# Of one H200 with torch 2.11 and bfloat16: what a compilation takes, and which share of the eager
# time it saves of ConvNeXt-B at inference and of DeiT-B's training steps.
COMPILATION_S = 80.0
INFERENCE_SAVES, TRAINING_SAVES = 0.43, 0.24
WARMUP, TIMED = 3, 5  # passes before those that are timed, and those


def chosen(
    asked: str,
    folder: Path | None,
    device: torch.device,
    saved_s: Callable[[], float],
) -> bool:
    """Whether to compile, for the option `asked`: on, off or auto; the same on all ranks.

    auto: as the run or cache in `folder` was begun; else on a GPU where `saved_s()`, the seconds
    that it saves on rank 0, exceed those of the compilation.
    """
    if asked != "auto" or device.type != "cuda":
        return asked == "on"
    pays = _begun_with(folder) if folder else None
    if pays is None:
        pays = _can_compile() and saved_s() > COMPILATION_S
    everyone = distributed.gather((_can_compile(), pays))
    return all(can for can, _ in everyone) and bool(everyone[0][1])


def _begun_with(folder: Path) -> bool | None:
    """What the run or cache in the folder was begun with, if there is one."""
    with contextlib.suppress(FgkdError):
        value = args_file.load_yaml(folder / "args.yaml").get("compile")
        return {"on": True, "off": False, True: True, False: False}.get(value)
    return None


def _can_compile() -> bool:
    """Whether this machine has what kernels are compiled with: Triton and a C compiler."""
    from torch.utils._triton import has_triton

    return has_triton() and any(map(shutil.which, ("cc", "gcc", "clang")))


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """How long `work()` takes on the device, once it has run a few times."""
    import torch

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    for _ in range(WARMUP):
        work()
    began = now()
    for _ in range(TIMED):
        work()
    return (now() - began) / TIMED


@contextlib.contextmanager
def errors_explained() -> Iterator[None]:
    """Inside, a failing compilation raises CompileError."""
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[:2]) or "no reason given"
        message = f"torch.compile cannot compile this model here: {reason[:300]}"
        raise CompileError(message) from error
