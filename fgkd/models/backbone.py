"""Backbone freezing and gradient checkpointing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fgkd.errors import OptionError


def heads(net: Any) -> list[nn.Module]:
    """The classification heads of a timm model: one, or two of a distilled DeiT."""
    found = net.get_classifier()
    return list(found) if isinstance(found, tuple) else [found]


def freeze(net: nn.Module) -> None:
    """Turn off the gradient of every parameter outside the heads."""
    trained = {id(p) for head in heads(net) for p in head.parameters()}
    for parameter in net.parameters():
        if id(parameter) not in trained:
            parameter.requires_grad_(False)


def hold_still(net: nn.Module) -> None:
    """Put everything but the heads, and the dropout before them, in eval mode.

    So batch-norm statistics do not change, and the frozen features have no dropout or drop path.
    """
    trained = {module for head in heads(net) for module in head.modules()}
    for name, module in net.named_modules():
        is_head_dropout = isinstance(module, nn.Dropout) and name.startswith("head")
        if name and module not in trained and not is_head_dropout:
            module.training = False


def recompute(net: Any, name: str) -> None:
    """Gradient checkpointing by timm. Raises: OptionError for a model that has none."""
    try:
        net.set_grad_checkpointing(True)
    except (AssertionError, AttributeError):
        raise OptionError(
            f"timm has no gradient checkpointing for {name}",
            option="grad_checkpointing",
            value=True,
            suggestion=False,
            advice="a larger grad_accum_steps, which saves memory too",
        ) from None


@contextlib.contextmanager
def statistics_kept(net: nn.Module) -> Iterator[None]:
    """Restore batch-norm statistics afterwards: recomputed layers would update them twice."""
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    kept = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
    yield
    for buffer, value in kept:
        buffer.copy_(value)
