"""`--batch-size auto`: what is counted of a forward pass, held against the memory that is free."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
import yaml
from helpers.errors import expected
from helpers.failures import exit_code
from helpers.models import DEIT, build
from helpers.runs import fgkd

import fgkd as library
from fgkd.errors import OptionError
from fgkd.evaluation import cost

CPU = torch.device("cpu")


def free(monkeypatch: pytest.MonkeyPatch, num_bytes: float) -> None:
    found = SimpleNamespace(available=num_bytes)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: found)


@pytest.mark.parametrize("name", ["convnext_atto", DEIT])
def test_the_largest_power_of_two_that_fits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a fifth of the memory left free; the model that needs most decides."""
    model = build(name)
    one = cost.inference_cost(model, 128, 32, False)[1] / 128
    for room, want in ((1e12, 128), (100, 64), (64 * 1.01, 64), (64 * 0.99, 32), (1.1, 1), (0, 1)):
        free(monkeypatch, room * one / cost.SHARE)
        assert cost.fitting_batch("auto", [model], CPU) == want
    free(monkeypatch, 100 * one / cost.SHARE)
    larger = build(name, img_size=64)
    assert cost.fitting_batch("auto", [model, larger], CPU) < 64
    assert cost.fitting_batch(7, [model], CPU) == 7


def test_a_gpu_is_asked_for_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half precision takes less than float32, so more fits."""
    gpu, sizes = torch.device("cuda"), {}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0.7e6, 1e9))
    for amp in (False, True):
        sizes[amp] = cost.fitting_batch("auto", [build("convnext_atto")], gpu, amp)
    assert 1 < sizes[False] <= sizes[True] <= 512


def test_a_model_that_is_any_code(tiny_data: Path, tmp_path: Path) -> None:
    """A function of numpy's arrays has no shapes to count."""

    def means(images: torch.Tensor) -> torch.Tensor:
        logits = np.zeros((len(images), 8), np.float32)
        logits[:, 0] = images.numpy().mean((1, 2, 3))
        return torch.from_numpy(logits)

    classes = library.open_dataset(f"folder:{tiny_data}").classes
    teacher = library.as_classifier(means, name="means", classes=classes, input_size=32)
    given = {"dataset": f"folder:{tiny_data}", "views": 1, "workers": 0}
    with expected(OptionError, option="batch_size", value="auto"):
        library.capture(teacher, output=tmp_path / "a", batch_size="auto", **given)
    assert not (tmp_path / "a" / "args.yaml").exists()
    library.capture(teacher, output=tmp_path / "b", batch_size=64, **given)


def test_commands_take_it_and_a_cache_records_the_number(
    tiny_cache: Path, tiny_teacher: Path, tiny_data: Path, tmp_path: Path
) -> None:
    auto = ("--batch-size", "auto", "--workers", 0)
    command = ("cache-logits", "-c", tiny_cache / "args.yaml", "--output", tmp_path / "cache")
    fgkd(*command, *auto, "--dry-run", "--json", tmp_path / "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text())["memory_bytes"] > 0
    fgkd(*command, *auto)
    assert yaml.safe_load((tmp_path / "cache/args.yaml").read_text())["batch_size"] == 128
    views = [
        library.open_cache(path).targets(np.arange(97), 0)
        for path in (tmp_path / "cache", tiny_cache)
    ]
    np.testing.assert_array_equal(*views)
    fgkd("evaluate", tiny_teacher, "--split", "val", *auto, "--json", tmp_path / "scores.json")
    plain = library.evaluate(tiny_teacher, split="val", workers=0)
    assert json.loads((tmp_path / "scores.json").read_text())[0]["top1_pct"] == plain.top1[0]
    fgkd("predict", tiny_teacher, tiny_data / "test", *auto)


@pytest.mark.parametrize("value", ["automatic", "0", "1.5"])
def test_other_words_are_refused(value: str, tiny_teacher: Path) -> None:
    assert exit_code("evaluate", tiny_teacher, "--batch-size", value) == 2
    with pytest.raises(OptionError):
        library.evaluate(tiny_teacher, batch_size=value)
