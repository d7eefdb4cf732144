"""Torch's settings of the whole process belong to the program that calls the library."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers.runs import STUDENT

import fgkd
from fgkd import device

BACKENDS = torch.backends
SETTINGS: dict[str, Callable[[], object]] = {
    "all": lambda: BACKENDS.fp32_precision,
    "matmul": lambda: BACKENDS.cuda.matmul.fp32_precision,
    "conv": lambda: BACKENDS.cudnn.conv.fp32_precision,
    "matmul on the CPU": lambda: BACKENDS.mkldnn.matmul.fp32_precision,
    "TF32 in matmul": lambda: BACKENDS.cuda.matmul.allow_tf32,
    "TF32 in cudnn": lambda: BACKENDS.cudnn.allow_tf32,
    "float32 matmul": torch.get_float32_matmul_precision,
    "threads": torch.get_num_threads,
    "deterministic": torch.get_deterministic_debug_mode,
    "filled": lambda: torch.utils.deterministic.fill_uninitialized_memory,
    "random": lambda: torch.get_rng_state().tolist(),
}
CALLERS: dict[str, Callable[[], None]] = {
    "none": lambda: None,
    "TF32": lambda: setattr(BACKENDS.cuda.matmul, "allow_tf32", True),
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "TF32 by its new name": lambda: setattr(BACKENDS, "fp32_precision", "tf32"),
    "no TF32 in conv": lambda: setattr(BACKENDS.cudnn.conv, "fp32_precision", "ieee"),
    "deterministic": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "threads": lambda: torch.set_num_threads(2),
    "seed": lambda: torch.manual_seed(7) and None,
}


def seen() -> dict[str, object]:
    """Every setting; torch refuses to tell one that was made by its old and its new name."""
    found: dict[str, object] = {}
    for name, setting in SETTINGS.items():
        try:
            found[name] = setting()
        except RuntimeError:
            found[name] = "refused"
    return found


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    BACKENDS.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    BACKENDS.cudnn.allow_tf32 = True
    mkldnn = BACKENDS.mkldnn
    for kind in (BACKENDS.cuda.matmul, mkldnn.matmul, mkldnn.conv, mkldnn.rnn):
        kind.fp32_precision = "none"
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("caller", CALLERS)
def test_a_function_leaves_them(caller: str) -> None:
    CALLERS[caller]()
    before = seen()

    @device.settings_kept()
    def work() -> None:
        device.set_up("cpu")
        device.set_up_gpu(deterministic=True)
        torch.manual_seed(0)
        during = seen()
        precisions = ("matmul", "conv", "matmul on the CPU")
        assert {during[name] for name in precisions} == {"ieee"}
        assert {during[name] for name in ("TF32 in matmul", "TF32 in cudnn")} == {False}
        assert during["float32 matmul"] == "highest"  # and not refused: libraries read it
        raise KeyError

    with pytest.raises(KeyError):
        work()
    assert seen() == before


def test_every_function_leaves_them(
    tiny_teacher: Path, tiny_data: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    """Its random state, too: a seeded program goes on as without the call."""
    torch.set_float32_matmul_precision("medium")
    torch.set_num_threads(1)
    before, image = seen(), next(tiny_data.rglob("*.png"))
    words = [word.removeprefix("--").replace("-", "_") for word in STUDENT]
    student = dict(zip(words[::2], words[1::2], strict=True))
    for call in (
        lambda: fgkd.train_student(
            cache=tiny_cache, output=tmp_path / "run", epochs=1, workers=0, **student
        ),
        lambda: fgkd.evaluate(tiny_teacher, split="val", workers=0),
        lambda: fgkd.predict(tiny_teacher, image, workers=0),
        lambda: fgkd.inspect(tiny_cache, verify=True),
        lambda: fgkd.cache_logits(teacher=tiny_teacher, views=1, output=tmp_path / "cache"),
    ):
        call()
        assert seen() == before


def test_float32_is_exact_whatever_the_caller_has_set() -> None:
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 512, generator=draw) for _ in range(2))
    exact = a @ b
    torch.set_float32_matmul_precision("medium")
    with device.settings_kept():
        device.set_up("cpu")
        assert torch.equal(a @ b, exact)
    assert math.isfinite((a @ b).sum())
