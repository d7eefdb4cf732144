"""model/README.md: a card that huggingface_hub takes, beside a model that timm takes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers.runs import STUDENT, fgkd, rows
from huggingface_hub import ModelCard

from fgkd import models
from fgkd.training.card import wilson_ci95


@pytest.fixture(scope="module")
def student(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("card") / "run"
    options = ("--epochs", 2, "--workers", 0, "--temperature", 2, "--license", "cc-by-4.0")
    fgkd("train-student", "--cache", tiny_cache, *STUDENT, *options, "--output", run)
    return run


def test_the_hub_takes_the_card(student: Path) -> None:
    card = ModelCard.load(student / "model" / "README.md", ignore_metadata_errors=False)
    assert card.data.license == "cc-by-4.0"
    assert (card.data.library_name, card.data.pipeline_tag) == ("timm", "image-classification")
    top1 = next(r for r in card.data.eval_results if r.metric_name == "Top-1 accuracy")
    best = max(row["val_top1_pct"] for row in rows(student))
    assert top1.metric_value == pytest.approx(best, abs=0.005)
    low, high = wilson_ci95(best, 32)
    for text in (
        "convnext_atto",
        "97 train",
        f"{low:.2f} to {high:.2f}",
        torch.__version__.partition("+")[0],
    ):
        assert text in card.text


def test_timm_takes_the_folder_as_the_hub_would(student: Path, tmp_path: Path) -> None:
    shutil.copytree(student / "model", tmp_path / "repository")
    net = timm.create_model(f"local-dir:{tmp_path / 'repository'}", pretrained=True).eval()
    own = models.load(student / "model")
    image = torch.rand(2, *own.input_size)
    with torch.no_grad():
        assert torch.equal(net(image), own.net.eval()(image))
    assert sorted(path.name for path in (tmp_path / "repository").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_the_recipe_of_the_card_trains_the_same_model(
    student: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    text = (student / "model" / "README.md").read_text()
    block = text.partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "recipe.yaml").write_text(block)
    places = ("--cache", tiny_cache, "--output", tmp_path / "again", "--workers", 0)
    fgkd("train-student", "-c", tmp_path / "recipe.yaml", *places)
    one, other = (
        torch.load(run / "checkpoints" / "last.pt", weights_only=True)["model"]
        for run in (student, tmp_path / "again")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (tmp_path / "again" / "model" / "README.md").read_text().replace(
        "license: other", "license: cc-by-4.0"
    ).replace("| Licence | other |", "| Licence | cc-by-4.0 |") == text


@pytest.mark.parametrize(("right", "num"), [(0, 10), (10, 10), (37, 150)])
def test_wilson_interval(right: int, num: int) -> None:
    """By the formula of the paper."""
    p, z = right / num, 1.959963984540054
    middle = (p + z * z / (2 * num)) / (1 + z * z / num)
    half = z / (1 + z * z / num) * np.sqrt(p * (1 - p) / num + z * z / (4 * num * num))
    low, high = wilson_ci95(100 * p, num)
    assert (low, high) == pytest.approx((100 * (middle - half), 100 * (middle + half)), abs=1e-6)


def test_a_teacher_without_a_val_split_has_a_card(tiny_teacher: Path) -> None:
    card = ModelCard.load(tiny_teacher / "model" / "README.md", ignore_metadata_errors=False)
    assert card.data.license == "other"
    assert "learned from labels" in card.text
