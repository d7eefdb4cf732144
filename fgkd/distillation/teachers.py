"""Teachers at inference: one model, or an ensemble whose outputs are averaged.

Shape legend: N views, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from fgkd import compilation
from fgkd.evaluation import inference
from fgkd.models import Classifier


@dataclass(frozen=True)
class Teachers:
    """One teacher, or several whose outputs are averaged.

    names: where each was loaded from. ensemble: average the "logits" or the "probs". img_size:
    side of the views whose digests are stored; each teacher sees its own input size. dtype:
    "float32", "bfloat16" (autocast) or "float64". max_batch: views per forward pass. runs: of
    `compiled`.
    """

    models: Sequence[Classifier]
    names: Sequence[str]
    ensemble: str
    img_size: int
    device: torch.device
    dtype: str
    max_batch: int
    runs: Sequence[inference.Compiled | None] = ()

    @property
    def sizes(self) -> list[int]:
        """Sides to render each view at: that of the digests first, then those of the teachers."""
        own = [model.config["input_size"][-1] for model in self.models]
        return list(dict.fromkeys([self.img_size, *own]))

    @property
    def amp_dtype(self) -> torch.dtype | None:
        """The type to autocast to; None without autocast."""
        return torch.bfloat16 if self.dtype == "bfloat16" else None

    def to_device(self) -> None:
        """Move the models to the device and number type."""
        kind = torch.float64 if self.dtype == "float64" else torch.float32
        for model in self.models:
            model.to(self.device, kind)
            model.to(memory_format=torch.channels_last)

    def compiled(self) -> Teachers:
        """The same with torch.compile, done by a batch that nobody needs. Raises: CompileError."""
        runs = [torch.compile(model.forward, dynamic=False) for model in self.models]
        found = replace(self, runs=runs)
        with compilation.errors_explained():
            found.logits(self.blank_views())
        return found

    def passes(self) -> list[tuple[Classifier, inference.Compiled | None]]:
        """Each model, with its compiled form if there is one."""
        runs = self.runs or [None] * len(self.models)
        return list(zip(self.models, runs, strict=True))

    def blank_views(self) -> tuple[torch.Tensor, ...]:
        """A batch without pixels, as `logits` takes it."""
        shapes = [(1, self.max_batch, side, side, 3) for side in self.sizes]
        return tuple(torch.zeros(shape, dtype=torch.uint8) for shape in shapes)

    def average(self, logits: Sequence[torch.Tensor]) -> np.ndarray:
        """float32 [N, K]: mean of the models' logits, or log of their mean probabilities."""
        if len(logits) == 1:
            return logits[0].numpy()
        stacked = torch.stack(list(logits)).double()
        if self.ensemble == "probs":
            mean = stacked.log_softmax(-1).logsumexp(0) - np.log(len(logits))
        else:
            mean = stacked.mean(0)
        return mean.float().numpy()

    def logits(self, images: tuple[torch.Tensor, ...]) -> np.ndarray:
        """float32 [N, K] of rendered views, given as one uint8 tensor for each of `sizes`."""
        return self.forward_async(images)()

    def forward_async(self, images: tuple[torch.Tensor, ...]) -> Callable[[], np.ndarray]:
        """Start the forward passes of `logits`; the function returned waits for the result."""
        of_size = dict(zip(self.sizes, images, strict=True))
        pending = [
            inference.forward_async(
                model,
                of_size[model.config["input_size"][-1]],
                device=self.device,
                max_batch=self.max_batch,
                amp_dtype=self.amp_dtype,
                compiled=run,
            )
            for model, run in self.passes()
        ]
        return lambda: self.average([wait() for wait in pending])
