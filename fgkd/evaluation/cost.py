"""Estimates of a forward pass: its memory and FLOPs, and the batch that a device has room for."""

from __future__ import annotations

from collections.abc import Sequence

import psutil
import torch

from fgkd import distributed
from fgkd.errors import OptionError
from fgkd.models import Classifier, counting

LARGEST = {"cuda": 512, "cpu": 128}  # more makes nothing faster
SHARE = 0.8  # of the free memory: a GPU's allocator rounds up, and another process may grow


def inference_cost(model: Classifier, batch: int, size: int, amp: bool) -> tuple[int, int, int]:
    """(bytes of the weights, peak bytes of a forward pass, its FLOPs) of a batch."""
    device = model.mean.device.type
    with counting.imagined(device):
        images = torch.zeros(batch, size, size, 3, dtype=torch.uint8)

        def forward() -> torch.Tensor:
            with counting.autocast(device, torch.bfloat16 if amp else None):
                return model(images).answer_BK

        peak, flops = counting.peak_bytes(forward), counting.flops(forward)
    return counting.num_bytes([*model.parameters(), *model.buffers()]), peak, flops


def fitting_batch(
    asked: int | str, models: Sequence[Classifier], device: torch.device, amp: bool = False
) -> int:
    """Images per forward pass: as asked, or for "auto" as many as there is memory for.

    models: on the device already; one runs at a time. A power of two, the same on all ranks.
    Raises: OptionError for a model whose memory cannot be counted.
    """
    if asked != "auto":
        return int(asked)
    largest = LARGEST["cuda" if device.type == "cuda" else "cpu"]
    on_gpu = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if on_gpu else psutil.virtual_memory().available
    try:
        peak = max(inference_cost(model, largest, model.input_size[-1], amp)[1] for model in models)
    except Exception as error:  # of any kind: a model may be any code
        what = f"the memory that the model takes cannot be counted: {error}".splitlines()[0]
        raise OptionError(what, option="batch_size", value=asked, suggestion=64) from error
    fits = largest
    while fits > 1 and peak * fits / largest > SHARE * free:
        fits //= 2
    return min(distributed.gather(fits))
