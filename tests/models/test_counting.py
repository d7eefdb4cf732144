"""Bytes and FLOPs counted from shapes equal those counted by hand and those of real runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgkd import models
from fgkd.models import counting
from fgkd.training import optim

TINY = {
    "convnext": (
        "convnext_atto",
        {"patch_size": 2, "depths": [1, 1, 2, 1], "dims": [8, 8, 16, 16]},
    ),
    "deit": (
        "deit_tiny_distilled_patch16_224",
        {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2},
    ),
    "batch norm": ("resnet10t", {}),
}
SIDE, BATCH = 32, 4


def build(name: str, drop_path: float = 0.0) -> models.Classifier:
    model, kwargs = TINY[name]
    made, _ = models.create(
        model, class_names=list("abcde"), kwargs=kwargs, img_size=SIDE, drop_path=drop_path
    )
    return made.train()


def forward_of(model: models.Classifier) -> Callable[[], Tensor]:
    images = torch.zeros(BATCH, SIDE, SIDE, 3, dtype=torch.uint8)
    labels = torch.zeros(BATCH, dtype=torch.int64)

    def forward() -> Tensor:
        heads = [logits for logits in model(images) if logits is not None]
        return torch.stack([F.cross_entropy(logits, labels) for logits in heads]).sum()

    return forward


def graph_bytes(model: nn.Module, loss: Tensor) -> int:
    """What a real graph holds besides the model: every tensor its nodes saved, by its address."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    found: dict[int, int] = {}
    keep, todo, seen = [], [loss.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        todo += [parent for parent, _ in node.next_functions]
        for name in dir(node):
            value = getattr(node, name) if name.startswith("_saved_") else None
            for tensor in value if isinstance(value, tuple) else (value,):
                if isinstance(tensor, Tensor):
                    keep.append(tensor)
                    storage = tensor.untyped_storage()
                    found[storage.data_ptr()] = storage.nbytes()
    return sum(size for address, size in found.items() if address not in own)


@pytest.mark.parametrize("name", TINY)
def test_activations_are_those_of_a_real_run(name: str) -> None:
    """Every byte, and the drop path rates are read as they are."""
    real = build(name, 0.3 if name != "batch norm" else 0.0)
    want = graph_bytes(real, forward_of(real)())
    assert counting.saved_bytes(real, forward_of(real)) == want
    with counting.imagined("cpu"):
        model = build(name, 0.3 if name != "batch norm" else 0.0)
        assert counting.saved_bytes(model, forward_of(model)) == want
    assert [path.drop_prob for path in model.drop_paths] == [p.drop_prob for p in real.drop_paths]
    assert want > 4 * BATCH * 3 * SIDE * SIDE


@pytest.mark.parametrize("name", ["convnext", "deit"])
def test_a_gpu_that_is_not_there(name: str) -> None:
    """In float32 its activations are a CPU's but for what attention pads; bfloat16 saves some."""
    saved = {}
    for device, dtype in (("cpu", None), ("cuda", None), ("cuda", torch.bfloat16)):
        with counting.imagined(device):
            model = build(name)
            forward = forward_of(model)
            with counting.autocast(device, dtype):
                saved[device, dtype] = counting.saved_bytes(model, forward)
    assert saved["cuda", None] == pytest.approx(saved["cpu", None], rel=0.02)
    assert saved["cuda", torch.bfloat16] < 0.8 * saved["cuda", None]
    assert not torch.is_autocast_enabled("cuda")


def test_parameters_and_optimizers_by_hand() -> None:
    """AdamW keeps two numbers a trained parameter, SGD with momentum one, without momentum none."""
    with counting.imagined("cpu"):
        model = nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5), nn.Linear(5, 3, bias=False))
        model[2].requires_grad_(False)
        trained = 7 * 5 + 5 + 5 + 5
        assert counting.num_bytes(model.parameters()) == 4 * (trained + 15)
        assert counting.num_bytes([*model.parameters(), *model.parameters(), None]) == 4 * (
            trained + 15
        )
        assert counting.num_bytes(model.buffers()) == 4 * 10 + 8  # means, variances, a 64 bit count
        assert counting.gradient_bytes(model) == 4 * trained
        for name, momentum, numbers in (("adamw", 0.9, 2), ("sgd", 0.9, 1), ("momentum", 0.0, 0)):
            groups = optim.param_groups(model=model, weight_decay=0.1)
            made = optim.create_optimizer(name=name, groups=groups, lr=0.1, momentum=momentum)
            assert counting.optimizer_bytes(made) == 4 * trained * numbers, (name, momentum)


def test_views_share_their_storage() -> None:
    base = torch.zeros(10, 10)
    assert counting.num_bytes([base, base[2:4], base.T, torch.zeros(3)]) == 412


@pytest.mark.parametrize("groups", [1, 4, 16])
def test_flops_of_products_by_hand(groups: int) -> None:
    """Two a multiply-add; the first layer passes no gradient down, so it costs 2 and others 3."""
    with counting.imagined("cpu"):
        net = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, groups=groups),
            nn.Conv2d(16, 16, 3, padding=1, groups=groups),
            nn.Flatten(),
            nn.Linear(16 * 36, 7),
        )
        images = torch.zeros(2, 16, 6, 6)
        conv = 2 * 2 * 36 * 9 * 16 * 16 // groups
        linear = 2 * 2 * 16 * 36 * 7
        assert counting.flops(lambda: net(images)) == 2 * conv + linear
        assert counting.flops(lambda: net(images).sum().backward()) == 5 * conv + 3 * linear


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_flops_of_attention_by_hand(device: str) -> None:
    """Two products of (tokens x tokens x width) a head; five again in the backward pass."""
    with counting.imagined(device):
        q, k, v = (torch.zeros(2, 3, 10, 8, requires_grad=True) for _ in range(3))
        one = 2 * 2 * 3 * 10 * 10 * 8
        assert counting.flops(lambda: F.scaled_dot_product_attention(q, k, v)) == 2 * one
        if device == "cpu":
            run = counting.flops(lambda: F.scaled_dot_product_attention(q, k, v).sum().backward())
            assert run == 7 * one


def test_the_widest_moment_of_an_answer() -> None:
    """Of a chain of layers: the input and output of the widest, not the sum of all."""
    with counting.imagined("cpu"):
        net = nn.Sequential(nn.Linear(10, 50), nn.Linear(50, 50), nn.Linear(50, 5))
        rows = torch.zeros(3, 10)
        assert counting.peak_bytes(lambda: net(rows)) == 4 * 3 * (50 + 50)
    net = nn.Sequential(nn.Linear(10, 50), nn.Linear(50, 50), nn.Linear(50, 5))
    assert counting.peak_bytes(lambda: net(torch.zeros(3, 10))) == 4 * 3 * (10 + 50 + 50)
