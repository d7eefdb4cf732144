"""What only a GPU does: run where there is one. All other tests run on it there, too."""

from __future__ import annotations

import copy
from collections import Counter, deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.datasets import write_image
from helpers.loops import make_batches, step_fn
from helpers.models import DEIT, build, images
from torch import Tensor, nn

from fgkd import config, device
from fgkd.config import TrainTeacherConfig
from fgkd.data import Samples
from fgkd.device import to_device
from fgkd.distillation.teachers import Teachers
from fgkd.errors import FgkdError
from fgkd.evaluation import inference
from fgkd.loading.batch import Batch
from fgkd.loading.schedule import Schedule
from fgkd.loading.train_loader import TrainLoader
from fgkd.loading.workers import render
from fgkd.training import loop, optim, setup
from fgkd.views.recipes import ViewRecipe
from fgkd.views.rendering import KeyedView, Request, ViewRenderer
from fgkd.views.view_set import ViewSet

RECIPE = ViewRecipe(crop_scale=(0.3, 1.0), hflip=0.5)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
GPU = torch.device("cuda")


def make_state(opt: str = "adamw", name: str = "convnext_atto") -> loop.State:
    model = build(name).to(GPU)
    groups = optim.param_groups(model=model.net, weight_decay=0.05)
    return loop.State(
        model,
        optim.create_optimizer(name=opt, groups=groups, lr=1e-3, momentum=0.9),
        torch.amp.GradScaler("cuda", enabled=False),
    )


def fit(
    state: loop.State, batches: Iterable[Batch], step: loop.Step = step_fn, **options: Any
) -> list[loop.Report]:
    reports = loop.fit(
        state,
        batches=batches,
        step_fn=step,
        steps_per_epoch=3,
        lr_at=lambda step: 1e-3,
        seed=0,
        device=GPU,
        **options,
    )
    return list(reports)


@pytest.mark.parametrize("opt", ["adamw", "sgd", "lamb"])
@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_no_update_is_made_from_what_is_not_finite(opt: str, broken: str) -> None:
    """Whether the optimizer leaves it out by itself, or the host waits to know."""
    state = make_state(opt)
    assert optim.skip_unless(torch.ones((), device=GPU) > 0, state.optimizer) is (opt == "adamw")
    fit(state, make_batches()[:2])
    before = copy.deepcopy(state.model.state_dict())

    def breaking(net: nn.Module, batch: Batch) -> dict[str, Tensor]:
        loss = step_fn(net, batch)["loss"]
        if broken == "loss":
            return {"loss": loss * torch.inf}
        root = (loss - loss.detach()).abs().sqrt()  # 0, whose derivative is infinite
        return {"loss": loss + root}

    with pytest.raises(FgkdError, match=f"the {broken} is not finite at step 2"):
        fit(state, make_batches(2), breaking)
    assert all(map(torch.equal, state.model.state_dict().values(), before.values()))
    assert state.step == 2


def test_a_restored_optimizer_is_where_it_was() -> None:
    """A step count that lies elsewhere is copied at every step, and changes the next checkpoint."""
    for opt in ("adamw", "lamb"):
        state = make_state(opt)
        fit(state, make_batches()[:3])
        saved = copy.deepcopy(state.save())
        on_cpu = torch.utils._pytree.tree_map_only(Tensor, lambda x: x.cpu(), saved)
        again = make_state(opt)
        again.restore(on_cpu)
        fit(state, make_batches(3))
        fit(again, make_batches(3))
        for a, b in zip(
            state.optimizer.state.values(), again.optimizer.state.values(), strict=True
        ):
            for name in a:
                if isinstance(a[name], Tensor):
                    assert a[name].device == b[name].device, name
                    torch.testing.assert_close(a[name], b[name])


def test_images_of_workers_go_to_a_gpu_without_a_copy_in_between(renderer: ViewRenderer) -> None:
    """They lie in locked pages, and are what one process renders, whatever lay there before."""
    torch.zeros(1, device=GPU)  # before it is in use, no page is locked for it
    requests = [Request(np.arange(i % 5, i % 5 + 4), range(2)) for i in range(40)]
    moved = []
    for answer in render(renderer, requests, 2):
        (image_u8_BVHW3,) = answer.images
        assert image_u8_BVHW3.is_pinned()
        on_gpu = to_device(image_u8_BVHW3, GPU)
        assert on_gpu is not None
        torch.cuda.current_stream().synchronize()
        moved.append(on_gpu)
    for request, found in zip(requests, moved, strict=True):
        assert torch.equal(found.cpu(), renderer[request].images[0])


@pytest.fixture
def renderer(tmp_path: Path) -> ViewRenderer:
    """Views of nine images at one size."""
    paths = [tmp_path / f"{i}.png" for i in range(9)]
    for i, path in enumerate(paths):
        write_image(path, i % 4, i)
    zeros = np.zeros(9, np.int64)
    samples = Samples([path.name for path in paths], zeros, zeros, [str(path) for path in paths])
    return ViewRenderer(KeyedView(samples, RECIPE, 0), [64])


def test_logits_asked_for_ahead_are_those_of_their_images(renderer: ViewRenderer) -> None:
    """Several questions are under way, and the memory of the images is used again and again."""
    model = build("convnext_atto").to(GPU)
    requests = [Request(np.arange(i % 5, i % 5 + 4), range(2)) for i in range(40)]
    asked: deque[Callable[[], Tensor]] = deque()
    found = []
    for answer in render(renderer, requests, 2):
        asked.append(inference.forward_async(model, answer.images[0], device=GPU, max_batch=3))
        if len(asked) > 2:
            found.append(asked.popleft()())
    found += [wait() for wait in asked]
    for request, logits in zip(requests, found, strict=True):
        images = renderer[request].images[0]
        want = inference.logits(model, images, device=GPU, max_batch=3)
        torch.testing.assert_close(logits, want)


@pytest.mark.parametrize("name", ["convnext_atto", DEIT])
def test_trainings_from_worker_memory_repeat_bit_for_bit(name: str, renderer: ViewRenderer) -> None:
    """In float32 too; were a slot written before it is read, workers would give other weights."""
    schedule = Schedule(0, len(renderer.samples), 4, 20, 1)
    ends = []
    try:
        device.set_up_gpu(True)
        for workers in (2, 2, 0):
            loader = TrainLoader(
                ViewSet(renderer.samples, RECIPE, 0, 32, 64),
                schedule,
                workers=workers,
            )
            state = make_state(name=name)
            assert len(fit(state, loader.batches(0))) == schedule.total_steps
            ends.append(state.model.state_dict())
    finally:
        torch.use_deterministic_algorithms(False)
    for end in ends[1:]:
        assert all(map(torch.equal, end.values(), ends[0].values()))


# ---- compilation ---------------------------------------------------------------------------


@pytest.fixture
def stats() -> Counter[str]:
    """Torch's count of compiled graphs."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    return torch._dynamo.utils.counters["stats"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["convnext_atto", DEIT])
def test_a_compiled_training_is_the_plain_one_and_repeats_bit_for_bit(
    name: str, stats: Counter[str]
) -> None:
    """One compilation, the short last batch of an epoch and a continued run included."""
    try:
        device.set_up_gpu(True)
        plain, whole, first = (make_state(name=name) for _ in range(3))
        fit(plain, make_batches())
        fit(whole, make_batches(), compiled_sizes={8})
        assert stats["unique_graphs"] == 1
        fit(first, make_batches()[:3], compiled_sizes={8})
        rest = make_state(name=name)
        rest.restore(copy.deepcopy(first.save()))
        fit(rest, make_batches(3), compiled_sizes={8})
    finally:
        torch.use_deterministic_algorithms(False)
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(
            value, plain.model.state_dict()[name], rtol=1e-2, atol=1e-3, msg=name
        )
        assert torch.equal(value, rest.model.state_dict()[name]), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_compiled_teacher_gives_a_view_the_same_logits_in_any_batch(
    dtype: str, stats: Counter[str]
) -> None:
    teachers = Teachers([build("convnext_atto")], ["it"], "logits", 32, GPU, dtype, 16)
    teachers.to_device()
    views = (images(45).unflatten(0, (15, 3)),)
    eager, fast = teachers.logits(views), teachers.compiled()
    compiled = fast.logits(views)
    assert stats["unique_graphs"] == 1
    atol = 1e-4 if dtype == "float32" else 3e-2
    np.testing.assert_allclose(compiled, eager, rtol=atol, atol=atol)
    np.testing.assert_array_equal(fast.logits((views[0][4:6],)), compiled[12:18])


def test_what_compilation_saves_is_timed_on_a_copy(tmp_path: Path, renderer: ViewRenderer) -> None:
    """The choice moves neither the weights nor the statistics of a model."""
    model = build("resnet18")
    before = copy.deepcopy(model.state_dict())
    options = config.build(TrainTeacherConfig, {"output": str(tmp_path), "amp": True}, "here")
    views = ViewSet(renderer.samples, RECIPE, 0, 32, 64)
    for epochs, choice in ((1, "off"), (10_000_000, "on")):
        loader = TrainLoader(views, Schedule(0, 9, 4, epochs, 1))
        chosen = setup.decide_compilation(options, model, loader, GPU)
        assert chosen.run.compile == choice
    assert all(map(torch.equal, model.state_dict().values(), before.values()))
