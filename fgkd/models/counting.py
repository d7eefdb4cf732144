"""Memory and FLOPs of a training step, counted without data, weights or a GPU.

Inside `imagined` tensors have shapes, types and storages but no bytes, so that a model of any size
is built and run at once. Memory is counted by storage: views of one tensor count once.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten


@contextlib.contextmanager
def imagined(device: str) -> Iterator[None]:
    """Inside, tensors are on `device`, which this machine need not have, and hold no bytes.

    Real tensors may take part. Gradients can be computed on "cpu" alone.
    """
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        torch.device(device),
        _Numbers(),
        _FusedAttention(),
    ):
        yield


class _Numbers(TorchDispatchMode):
    """Python numbers from tensors without bytes: true for drop path rates, 1 for all others.

    Models read their rates from `linspace`; optimizers read their step and norms, whose values
    change no shape. Pinning memory does nothing, as fake tensors cannot be pinned.
    """

    REAL = (
        aten.linspace.default,
        aten.unbind.int,
        aten.split_with_sizes.default,
        aten.split.Tensor,
    )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten._pin_memory.default:  # memory of the host, which is not counted
            return args[0]
        is_number, is_fake = func is aten._local_scalar_dense.default, _is_fake(args)
        if is_number and is_fake:
            return 1.0
        if not is_fake and (is_number or func in self.REAL):
            with unset_fake_temporarily():
                return func(*args, **kwargs or {})
        return func(*args, **kwargs or {})


def _is_fake(args: Any) -> bool:
    return bool(args) and isinstance(args[0], FakeTensor)


class _FusedAttention(TorchFunctionMode):
    """Attention on an absent GPU as on a present one: fused, the weights of all pairs never kept.

    Torch asks the driver which kernel to take, and without one falls back to plain products.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or args[0].device.type != "cuda":
            return func(*args, **kwargs)
        mask = kwargs.get("attn_mask", args[3] if len(args) > 3 else None)
        half = torch.is_autocast_enabled("cuda")
        dtype = torch.get_autocast_dtype("cuda") if half else args[0].dtype
        q, k, v = (x.to(dtype) for x in args[:3])
        mask = mask if mask is None or mask.dtype == torch.bool else mask.to(dtype)
        scale = kwargs.get("scale")
        if mask is None and half:
            return aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)[0]
        if mask is not None and mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=dtype)
        return aten._scaled_dot_product_efficient_attention(q, k, v, mask, True, scale=scale)[0]


@contextlib.contextmanager
def autocast(device: str, dtype: torch.dtype | None) -> Iterator[None]:
    """torch.autocast, also for a device that is not here (torch.autocast then switches itself off).

    dtype None: off.
    """
    before = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    torch.set_autocast_enabled(device, dtype is not None)
    torch.set_autocast_dtype(device, dtype or before[1])
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled(device, before[0])
        torch.set_autocast_dtype(device, before[1])


def num_bytes(tensors: Iterable[Any]) -> int:
    """Bytes of the storages behind the tensors among these values, each storage once."""
    storages = [t.untyped_storage() for t in tensors if isinstance(t, Tensor)]
    return sum({s._cdata: s.nbytes() for s in storages}.values())


def gradient_bytes(model: nn.Module) -> int:
    """Bytes of the gradients of the parameters that are trained."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)


def saved_bytes(model: nn.Module, forward: Callable[[], Any]) -> int:
    """Bytes that `forward()` leaves for its backward pass, besides the model's own tensors.

    Under autocast these hold the model's weights once more, in half precision. The backward pass
    itself needs some more for a moment, the largest layer's gradients and its workspace.
    """
    own = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    total = num_bytes(saved)
    del result  # a graph freed while it is counted would lend its storages' places to others
    return total


class _Peak(TorchDispatchMode):
    """The largest sum of bytes of new storages that lived at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {t.untyped_storage()._cdata for t in tree_leaves(args) if isinstance(t, Tensor)}
        result = func(*args, **kwargs or {})
        for tensor in tree_leaves(result):
            storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
            if storage is not None and storage._cdata not in before and storage not in self.known:
                self.known.add(storage)
                self.now += (size := storage.nbytes())
                weakref.finalize(storage, self._free, size)
        self.peak = max(self.peak, self.now)
        return result

    def _free(self, size: int) -> None:
        self.now -= size


def peak_bytes(forward: Callable[[], Any]) -> int:
    """The most bytes that tensors made by `forward()` take at one time, without gradients."""
    with _Peak() as tracked, torch.no_grad():
        forward()
    return tracked.peak


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the optimizer's state after a step; numbers it keeps in main memory not counted."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    leaves = tree_leaves([*optimizer.state.values()])
    return num_bytes(t for t in leaves if isinstance(t, Tensor) and t.ndim)


def _conv_backward_flops(
    grad_shape: Any, x_shape: Any, w_shape: Any, *args: Any, **kwargs: Any
) -> int:
    """As often as forward for each of the gradients to the image and to the weight.

    Torch's own formula forgets that a grouped convolution joins few channels: a depthwise one
    counts hundreds of times too much.
    """
    transposed, output_mask = args[4], args[7]
    once = flop_counter.conv_flop_count(x_shape, w_shape, grad_shape, transposed)
    return once * sum(output_mask[:2])


def _attention_flops(q_shape: Any, k_shape: Any, v_shape: Any, *args: Any, **kwargs: Any) -> int:
    return flop_counter.sdpa_flop_count(q_shape, k_shape, v_shape)


def _attention_backward_flops(
    grad_shape: Any, q_shape: Any, k_shape: Any, v_shape: Any, *args: Any, **kwargs: Any
) -> int:
    return flop_counter.sdpa_backward_flop_count(grad_shape, q_shape, k_shape, v_shape)


FORMULAS = {
    aten.convolution_backward: _conv_backward_flops,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


def flops(run: Callable[[], Any]) -> int:
    """Floating point operations of the products that `run()` takes, a multiply-add being two.

    Matrix products, convolutions and attention, forward and backward; not what is cheap beside
    them (norms, activations, the optimizer).
    """
    with flop_counter.FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        run()
    return int(counter.get_total_flops())
