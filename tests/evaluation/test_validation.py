"""`evaluate` against timm's own validation: its reader, transform and loader; and its views."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers.datasets import encode, pixels
from helpers.failures import Fails
from helpers.models import CLASSES, DEIT, write_run
from helpers.runs import fgkd
from PIL import Image
from timm.data import create_dataset, create_loader, create_transform, resolve_model_data_config
from torchvision.transforms import functional as tv

from fgkd import models
from fgkd.data import open_dataset
from fgkd.evaluation import scoring
from fgkd.evaluation.scoring import Score

CPU = torch.device("cpu")
SIZES = [(40, 30), (30, 47), (64, 64), (33, 97), (120, 51), (35, 33)]  # width, height


@pytest.fixture(scope="module")
def odd_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageFolder test split of JPEGs of odd sizes, some grey; 3 classes of 6, 5 and 4."""
    root = tmp_path_factory.mktemp("odd")
    for label, name in enumerate(CLASSES):
        (root / "test" / name).mkdir(parents=True)
        for i, size in enumerate(SIZES[label:]):
            image = pixels(10 * label + i, i, size).convert("L" if i == 1 else "RGB")
            (root / "test" / name / f"{i}.jpg").write_bytes(encode(image, "JPEG"))
    return root


def scored(run: Path, data: Path, **options: Any) -> Score:
    """The score of a run's model on the test split."""
    dataset = open_dataset(f"folder:{data}")
    model = models.load(run / "model")
    return scoring.score(model, dataset, "test", device=CPU, workers=0, batch_size=4, **options)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        (DEIT, {"crop_pct": 0.8}),
        (DEIT, {"crop_pct": 1.0, "interpolation": "bilinear"}),
        ("convnext_atto", {"crop_pct": 0.9, "crop_mode": "squash"}),
        ("convnext_atto", {"crop_pct": 0.95, "crop_mode": "border", "mean": [0.2, 0.5, 0.8]}),
    ],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # timm's open files
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_every_logit_is_that_of_timms_validation(
    name: str, config: dict[str, Any], odd_data: Path, tmp_path: Path
) -> None:
    """timm's folder reader, evaluation transform and loader, as its validate.py puts them."""
    run = write_run(tmp_path / "run", f"folder:{odd_data}", name, **config)
    model = timm.create_model(f"local-dir:{run / 'model'}", pretrained=True).eval()
    settings = resolve_model_data_config(model, use_test_size=True)
    for key, value in config.items():
        assert settings[key] == value
    dataset = create_dataset("folder", root=str(odd_data / "test"), is_training=False)
    loader = create_loader(dataset, batch_size=7, use_prefetcher=False, num_workers=0, **settings)
    with torch.no_grad():
        theirs, labels = map(torch.cat, zip(*((model(x), y) for x, y in loader), strict=True))
    ours = scored(run, odd_data)
    assert ours.labels_N.tolist() == labels.tolist()
    torch.testing.assert_close(ours.logits_NK, theirs, atol=1e-5, rtol=0)
    correct = int((theirs.argmax(1) == labels).sum())
    assert scoring.measure(ours).top1_pct * len(labels) / 100 == pytest.approx(correct)
    assert len(ours.logits_NK.unique(dim=0)) == len(labels) == 15  # the images differ


def five_crops(image: Image.Image, size: int) -> list[Image.Image]:
    """Corners and centre by array slices; the centre as torchvision rounds it."""
    w, h = image.size
    corners = [(0, 0), (w - size, 0), (0, h - size), (w - size, h - size)]
    places = [*corners, (round((w - size) / 2), round((h - size) / 2))]
    return [image.crop((x, y, x + size, y + size)) for x, y in places]


@pytest.mark.parametrize("tta", ["flip", "five-crop", "ten-crop"])
def test_tta_is_the_mean_of_the_logits_of_the_views(
    tta: str, odd_data: Path, tmp_path: Path
) -> None:
    """Views by Pillow alone, one forward a view, averaged by hand."""
    run = write_run(tmp_path / "run", f"folder:{odd_data}", crop_pct=0.8)
    model = timm.create_model(f"local-dir:{run / 'model'}", pretrained=True).eval()
    to_input = create_transform(**resolve_model_data_config(model)).transforms[-2:]
    expected = []
    for path in sorted((odd_data / "test").rglob("*.jpg")):
        with Image.open(path) as file:
            image = tv.resize(file.convert("RGB"), 40, tv.InterpolationMode.BICUBIC)
        views = five_crops(image, 32)[-1:] if tta == "flip" else five_crops(image, 32)
        if tta != "five-crop":
            views += [view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for view in views]
        with torch.no_grad():
            answers = [model(to_input[1](to_input[0](view))[None])[0] for view in views]
        expected.append(torch.stack(answers).mean(0))
    found = scored(run, odd_data, tta=tta).logits_NK
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=0)
    plain = scored(run, odd_data).logits_NK
    assert not np.allclose(found, plain, atol=1e-4)


def test_tta_is_said_and_refused_where_it_is_wrong(
    odd_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fails: Fails,
) -> None:
    """The table names it; a bordered image has no five crops; chiral data are never mirrored."""
    run = write_run(tmp_path / "run", f"folder:{odd_data}")
    fgkd("evaluate", run, "--workers", 0)
    assert "--tta" not in capsys.readouterr().out
    fgkd("evaluate", run, "--workers", 0, "--tta", "flip")
    assert "tta flip: logits are means over views" in capsys.readouterr().out
    border = write_run(tmp_path / "border", f"folder:{odd_data}", crop_mode="border")
    said = fails("evaluate", border, "--workers", 0, "--tta", "five-crop")
    assert "five crops of 32 px do not fit into" in said
    chiral = dataclasses.replace(open_dataset([f"folder:{odd_data}"]), chiral=True)
    monkeypatch.setattr(sys.modules["fgkd.commands.evaluate"], "open_dataset", lambda *_: chiral)
    for tta in ("flip", "ten-crop"):
        said = fails("evaluate", run, "--workers", 0, "--tta", tta)
        assert f"tta {tta} mirrors images" in said
    fgkd("evaluate", run, "--workers", 0, "--tta", "five-crop")
