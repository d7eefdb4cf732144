"""The heads of a distilled DeiT: one that no loss trains has no part in any prediction."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import timm
import torch
from helpers.failures import Fails
from helpers.models import DEIT, build, images, perturb, timm_logits, trained
from helpers.runs import STUDENT, assert_same, fgkd, rows, saved
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from fgkd import models
from fgkd.errors import OptionError
from fgkd.models import weights
from fgkd.training import loop

SHORT = (*STUDENT, "--epochs", 3, "--batch-size", 16, "--lr", 5e-3, "--workers", 0)
# Weights of the label and the distillation loss, and the heads that they train.
CASES = {
    "targets alone": ((0, 1), ("head_dist",)),
    "labels alone": ((1, 0), ("head",)),
    "both": ((1, 0.5), ("head", "head_dist")),
}


def by_hand(run: Path, data: Path, heads: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of val: the mean of these heads of the best checkpoint, by timm alone."""
    net: Any = timm.create_model(
        DEIT, num_classes=8, img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2
    ).eval()
    state = saved(run, "best")["model"]
    net.load_state_dict({k.removeprefix("net."): v for k, v in state.items()})
    settings = resolve_model_data_config(timm.create_model(f"local-dir:{run / 'model'}"))
    transform = create_transform(**settings)
    files = sorted((data / "val").rglob("*.png"))
    names = sorted({path.parent.name for path in files})
    x = torch.stack([transform(Image.open(path).convert("RGB")) for path in files])
    with torch.no_grad():
        tokens = net.forward_features(x)
        every = {"head": net.head(tokens[:, 0]), "head_dist": net.head_dist(tokens[:, 1])}
    return torch.stack([every[name] for name in heads]).mean(0), torch.tensor(
        [names.index(p.parent.name) for p in files]
    )


@pytest.mark.parametrize("case", CASES)
def test_every_figure_is_that_of_the_trained_heads(
    case: str, tiny_cache: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """In training's validation, in RUN/model, by evaluate, and of a teacher made of the run."""
    (task, distill), heads = CASES[case]
    run, out = tmp_path / "run", tmp_path / "out.json"
    of_losses = ("--task-loss-weight", task, "--distill-loss-weight", distill)
    fgkd("train-student", "--cache", tiny_cache, *SHORT, *of_losses, "--output", run)
    logits, labels = by_hand(run, tiny_data, heads)
    nll = torch.nn.functional.cross_entropy(logits, labels).item()
    top1 = 100 * (logits.argmax(1) == labels).double().mean().item()
    best = saved(run, "best")
    assert (best["val_top1_pct"], best["val_nll"]) == (top1, pytest.approx(nll, rel=1e-4))
    fgkd("evaluate", run, "--split", "val", "--json", out, "--workers", 0)
    (scored,) = json.loads(out.read_text())
    assert (scored["top1_pct"], scored["nll"]) == (top1, pytest.approx(nll, rel=1e-4))
    untrained = {"head", "head_dist"} - set(heads)
    exported = models.load(run / "model").net.state_dict()
    first = rows(run)[0]
    assert ("distill_loss" in first) == (distill > 0)
    for name in untrained:
        assert not exported[f"{name}.weight"].any()
        assert saved(run)["model"][f"net.{name}.weight"].any()  # kept as it was initialised
    x = images(3)
    torch.testing.assert_close(
        models.load(run / "model").logits(x), timm_logits(run / "model", x), atol=1e-5, rtol=1e-5
    )


class Stopped(BaseException):
    """Ends a process at once, as a signal would."""


def stop_at(fit: Callable[..., Iterator[Any]], step: int) -> Callable[..., Iterator[Any]]:
    """`loop.fit` that ends after some steps."""

    def stopping(*args: Any, **more: Any) -> Iterator[Any]:
        for report in fit(*args, **more):
            yield report
            if report.step == step:
                raise Stopped

    return stopping


def test_a_run_of_targets_alone_resumes_bit_for_bit(tiny_cache: Path, tmp_path: Path) -> None:
    command = ("train-student", "--cache", tiny_cache, *SHORT, "--task-loss-weight", 0)
    fgkd(*command, "--model-ema", "--output", tmp_path / "whole")
    with pytest.raises(Stopped), mock.patch.object(loop, "fit", side_effect=stop_at(loop.fit, 9)):
        fgkd(*command, "--model-ema", "--checkpoint-steps", 4, "--output", tmp_path / "run")
    fgkd("train-student", "--resume", "--output", tmp_path / "run")
    assert saved(tmp_path / "run")["step"] == saved(tmp_path / "whole")["step"] == 21
    assert_same(saved(tmp_path / "run"), saved(tmp_path / "whole"))


def test_losses_that_all_have_weight_zero_are_refused(
    tiny_cache: Path, tmp_path: Path, fails: Fails
) -> None:
    command = ("train-student", "--cache", tiny_cache, *SHORT, "--output", tmp_path / "run")
    for losses in (("--distill-loss-weight", 0), ("--distillation", "none")):
        said = fails(*command, "--task-loss-weight", 0, *losses)
        assert isinstance(said.error, OptionError)
        assert said.error.option == "task_loss_weight"
    assert not (tmp_path / "run").exists()


def test_the_export_of_the_distillation_head_alone(tmp_path: Path) -> None:
    """timm averages both heads; a new run that starts from it has the trained head again."""
    model = trained(tmp_path / "model", DEIT, uses_dist=True, uses_head=False)
    x = images(3)
    with torch.no_grad():
        ours, again = model(x).answer_BK, models.load(tmp_path / "model")(x).answer_BK
        tokens = model.net.forward_features((x.permute(0, 3, 1, 2) / 255 - model.mean) / model.std)
        torch.testing.assert_close(ours, model.net.head_dist(tokens[:, 1]), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(again, ours, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(timm_logits(tmp_path / "model", x), ours, atol=1e-6, rtol=1e-6)
    fresh = perturb(build(DEIT))
    said = weights.load_initial(fresh.net, str(tmp_path))
    assert torch.equal(fresh.net.head_dist.weight, model.net.head_dist.weight)
    assert fresh.net.head.weight.any()
    assert "newly initialised: head.bias, head.weight" in said
