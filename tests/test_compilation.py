"""torch.compile: one graph of a whole model, one compilation a run, and when it pays."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.loops import CPU, assert_equal_weights, fit, make_batches, state_of
from helpers.models import CLASSES, DEIT, build
from helpers.runs import STUDENT, fgkd, saved, start_ranks

import fgkd as library
from fgkd import compilation, config, distributed
from fgkd.config import TrainStudentConfig, TrainTeacherConfig
from fgkd.errors import CompileError, FgkdError
from fgkd.loading import train_loader
from fgkd.loading.schedule import Schedule
from fgkd.training import setup

FAILURE = "torch._inductor.compile_fx.compile_fx"


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Models are traced but not compiled, which would take minutes; graphs are counted."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    return torch._dynamo.utils.counters["stats"]  # type: ignore[no-any-return]


def compile_of(folder: Path) -> object:
    return yaml.safe_load((folder / "args.yaml").read_text())["compile"]


def missing(*args: object, **kwargs: object) -> None:
    raise RuntimeError("no C++ compiler")


# ---- training ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["convnext_atto", DEIT, "resnet18"])
def test_a_model_in_training_is_one_graph_for_all_steps(name: str, traced: Counter[str]) -> None:
    """Draws are set from outside at every step; an epoch's short last batch is not compiled."""
    plain, fast = (state_of(build(name, drop_path=0.3, uses_dist=False), "sgd") for _ in range(2))
    fit(plain, make_batches())
    fit(fast, make_batches(), compiled_sizes={8})
    assert traced["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]
    assert_equal_weights(plain.model, fast.model, atol=1e-5)


@pytest.mark.parametrize("parts", [1, 3, 20])
def test_what_is_compiled_are_the_micro_batches_of_a_whole_step(
    parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = object.__new__(train_loader.TrainLoader)
    loader.unit, loader.stream = 1, None
    for num_samples, rows in ((100, 16), (11, 11)):
        loader.schedule = Schedule(0, num_samples, 16, 1, 1)
        sizes = Counter(
            len(part.row_ids)
            for batch in make_batches()[:1]
            for part in _resized(batch, rows).split(parts, rows, rows, CPU)
        )
        assert loader.usual_sizes(parts) - {0} == set(sizes)


def test_a_rank_that_reads_shard_by_shard_has_steps_of_two_sizes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """1,000 images on two ranks in 16 steps: 31 or 32 rows each, and pairs if images are mixed."""
    monkeypatch.setattr(distributed, "world", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    loader = object.__new__(train_loader.TrainLoader)
    loader.stream, loader.schedule = object(), Schedule(0, 1000, 64, 1, 1)
    for unit, sizes in ((1, {31, 32}), (2, {30, 32})):
        loader.unit = unit
        assert loader.usual_sizes(1) == sizes
    assert loader.usual_sizes(2) == {15, 16}


def _resized(batch: Any, rows: int) -> Any:
    index = torch.arange(rows) % len(batch.row_ids)
    return dataclasses.replace(
        batch,
        count=rows,
        row_ids=batch.row_ids[index.numpy()],
        image_u8_BHW3=batch.image_u8_BHW3[index],
        labels_B=batch.labels_B[index],
    )


def test_without_a_compiler_compilation_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FAILURE, missing)
    with pytest.raises(CompileError) as error:
        fit(state_of(build(class_names=CLASSES)), make_batches()[:1], compiled_sizes={8})
    assert "no C++ compiler" in error.value.message


def test_a_compiled_run_is_recorded_resumed_and_scored(
    traced: Counter[str], tiny_cache: Path, tmp_path: Path
) -> None:
    command = ("train-student", "--cache", tiny_cache, *STUDENT, "--epochs", 2, "--workers", 0)
    fgkd(*command, "--output", tmp_path / "plain")
    assert compile_of(tmp_path / "plain") == "off"  # auto, on a CPU
    fgkd(*command, "--output", tmp_path / "run", "--compile")
    assert compile_of(tmp_path / "run") == "on"
    assert traced["unique_graphs"] == 1  # 97 images, and validation: no further one
    for a, b in zip(
        saved(tmp_path / "run")["model"].values(),
        saved(tmp_path / "plain")["model"].values(),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


# ---- capture -------------------------------------------------------------------------------


def capture(teacher: Path, output: Path, *more: object) -> None:
    fgkd(
        *("cache-logits", "--teacher", teacher, "--output", output, "--views", 2),
        *("--encoding", "dense32", "--shard-size", 13, "--batch-size", 10, "--workers", 0, *more),
    )


def targets(path: Path) -> torch.Tensor:
    cache = library.open_cache(path)
    return torch.from_numpy(np.stack([cache.targets(np.arange(97), v) for v in range(2)]))


def test_a_compiled_teacher_is_compiled_once_whatever_the_batch(
    traced: Counter[str], tiny_teacher: Path, tmp_path: Path
) -> None:
    """Shards of 13 images in batches of 10: short batches are filled up, and the rest cut off."""
    capture(tiny_teacher, tmp_path / "plain")
    assert not traced
    capture(tiny_teacher, tmp_path / "fast", "--compile", "on")
    assert traced["unique_graphs"] == 1
    assert compile_of(tmp_path / "plain") == "off"
    assert compile_of(tmp_path / "fast") == "on"
    torch.testing.assert_close(targets(tmp_path / "fast"), targets(tmp_path / "plain"))


def test_a_teacher_that_cannot_be_compiled(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error where compilation was asked for; where it was fgkd's choice, it runs without."""
    monkeypatch.setattr(FAILURE, missing)
    with pytest.raises(CompileError):
        library.cache_logits(
            teacher=str(tiny_teacher), output=str(tmp_path / "on"), views=1, compile="on"
        )
    assert not (tmp_path / "on" / "args.yaml").exists()
    monkeypatch.setattr(compilation, "chosen", lambda *args: True)
    capture(tiny_teacher, tmp_path / "auto")
    assert compile_of(tmp_path / "auto") == "off"


# ---- the choice ----------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A GPU, as far as the choice asks."""
    monkeypatch.setattr(compilation, "_can_compile", lambda: True)
    return torch.device("cuda")


def never() -> float:
    raise AssertionError("nothing is to be timed")


def test_compilation_is_chosen_where_it_saves_more_than_it_takes(gpu: torch.device) -> None:
    least = compilation.COMPILATION_S
    for saved_s, choice in ((0.9 * least, False), (1.1 * least, True)):
        assert compilation.chosen("auto", None, gpu, lambda seconds=saved_s: seconds) is choice
    assert compilation.chosen("on", None, gpu, never)
    assert not compilation.chosen("off", None, gpu, never)
    assert compilation.chosen("on", None, CPU, never)
    assert not compilation.chosen("auto", None, CPU, never)


@pytest.mark.parametrize(
    ("held", "choice"),
    [
        ("compile: 'on'", True),
        ("compile: on", True),
        ("compile: 'off'", False),
        ("compile: false", False),
        ("compile: true", True),
    ],
)
def test_what_was_begun_goes_on_with_the_same_kernels(
    held: str, choice: bool, gpu: torch.device, tmp_path: Path
) -> None:
    (tmp_path / "args.yaml").write_text(held + "\n")
    assert compilation.chosen("auto", tmp_path, gpu, never) is choice
    assert compilation.chosen("auto", tmp_path / "new", gpu, lambda: 1e9)


def test_without_triton_nothing_is_compiled_by_itself(
    gpu: torch.device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(compilation, "_can_compile", lambda: False)
    (tmp_path / "args.yaml").write_text("compile: on\n")
    assert not compilation.chosen("auto", tmp_path, gpu, never)


@pytest.mark.parametrize("value", ["on", True])
def test_yaml_and_keywords_may_say_true(value: object) -> None:
    assert config.build(TrainStudentConfig, {"compile": value}, "here").run.compile == "on"
    assert config.build(TrainStudentConfig, {"compile": False}, "here").run.compile == "off"
    with pytest.raises(FgkdError):
        config.build(TrainStudentConfig, {"compile": "maybe"}, "here")


def _choose(folder: Path) -> None:
    """Of two ranks that measure different times, the first decides."""
    distributed.start(CPU)
    compilation._can_compile = lambda: True
    saved_s: Callable[[], float] = lambda: 1e9 * (distributed.rank() == 0)  # noqa: E731
    chosen = compilation.chosen("auto", None, torch.device("cuda"), saved_s)
    (folder / f"{distributed.rank()}").write_text(str(chosen))


def saves_some(asked: str, folder: Path | None, device: torch.device, saved_s: Any) -> bool:
    """As `chosen`, of a device where every second counts."""
    return bool(saved_s() > 60.0)


def test_a_training_step_is_timed_on_a_copy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By it and the number of steps; neither weights nor BatchNorm's statistics move."""
    monkeypatch.setattr(compilation, "chosen", saves_some)
    model = build("resnet18")
    before = copy.deepcopy(model.state_dict())
    options = config.build(TrainTeacherConfig, {"output": str(tmp_path), "amp": True}, "here")
    loader = object.__new__(train_loader.TrainLoader)
    loader.unit, loader.stream = 1, None
    for epochs, choice in ((1, "off"), (10_000_000, "on")):
        loader.schedule = Schedule(0, 9, 4, epochs, 1)
        assert setup.decide_compilation(options, model, loader, CPU).run.compile == choice
    assert all(map(torch.equal, model.state_dict().values(), before.values()))
    assert all(p.grad is None for p in model.parameters())


def test_a_capture_is_timed_by_the_views_that_are_left(
    monkeypatch: pytest.MonkeyPatch, traced: Counter[str], tiny_teacher: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(compilation, "chosen", saves_some)
    capture(tiny_teacher, tmp_path / "cache")
    assert compile_of(tmp_path / "cache") == "off"
    monkeypatch.setattr(compilation, "INFERENCE_SAVES", 1e9)
    capture(tiny_teacher, tmp_path / "cache", "--views", 3)
    assert traced["unique_graphs"] == 1


def test_all_ranks_choose_the_same(tmp_path: Path) -> None:
    ranks = start_ranks(2, _choose, tmp_path)
    for rank in ranks:
        rank.join(60)
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["True", "True"]
