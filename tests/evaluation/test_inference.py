"""Asking for logits, and evaluation: every image once, in any batches and on any ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.models import build, images

from fgkd import distributed
from fgkd.data import open_dataset
from fgkd.evaluation import inference
from fgkd.views.clean import clean_renderer

CPU = torch.device("cpu")


def test_logits_are_asked_for_max_batch_views_at_a_time() -> None:
    model, sizes = build().train(), []
    model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    views = images(15).view(5, 3, 32, 32, 3)
    logits = inference.logits(model, views, device=CPU, max_batch=4)
    none = inference.logits(model, views[:0], device=CPU, max_batch=4)
    assert sizes == [4, 4, 4, 3]
    assert logits.shape == (15, 3)
    assert none.shape == (0, 3)
    with torch.no_grad():
        torch.testing.assert_close(logits, model(views.flatten(0, 1)).answer_BK)
    assert not model.training


@pytest.mark.parametrize("batch_size", [1, 7, 100])
@pytest.mark.parametrize("world", [1, 3])
def test_evaluate_counts_every_image_once(
    batch_size: int, world: int, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = open_dataset([f"folder:{tiny_data}"]).splits["test"]
    model = build()
    renderer = clean_renderer(samples, model.eval_transform, False)
    monkeypatch.setenv("WORLD_SIZE", str(world))
    monkeypatch.setattr(distributed, "gather", lambda value: [value])
    rows, logits = [], []
    for rank in range(world):
        monkeypatch.setenv("RANK", str(rank))
        found = inference.evaluate(model, renderer, batch_size=batch_size, workers=0, device=CPU)
        rows += found[0].tolist()
        logits.append(found[1])
        assert found[2] == []
    assert rows == list(range(len(samples)))
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    whole = inference.evaluate(model, renderer, batch_size=100, workers=0, device=CPU)
    torch.testing.assert_close(torch.cat(logits), whole[1], atol=1e-5, rtol=0)
