"""Models of Hugging Face's transformers as teachers: its own logits, from its own processors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.datasets import pixels
from helpers.errors import expected
from helpers.models import CLASSES
from helpers.runs import fgkd as run
from timm.data import create_transform, resolve_data_config
from transformers import (
    BitImageProcessor,
    ConvNextImageProcessor,
    DeiTImageProcessor,
    MobileViTImageProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)

import fgkd
from fgkd.errors import HubError, MissingModel, ModelError, OtherLibrary
from fgkd.models import export

PROCESSORS: dict[str, Any] = {
    "squashed": ViTImageProcessor(size={"height": 32, "width": 32}),
    "squashed, then cropped": DeiTImageProcessor(
        size={"height": 36, "width": 36}, crop_size={"height": 32, "width": 32}
    ),
    "a share of the shorter side": ConvNextImageProcessor(
        size={"shortest_edge": 32}, crop_pct=0.875
    ),
    "cropped": BitImageProcessor(
        size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}, resample=2
    ),
    "as it is between 0 and 1": ViTImageProcessor(
        size={"height": 32, "width": 32}, do_normalize=False
    ),
    "between -1 and 1": ViTImageProcessor(
        size={"height": 32, "width": 32}, rescale_factor=1 / 127.5, image_mean=[1.0, 1.0, 1.0]
    ),
}


def save(
    folder: Path,
    processor: Any,
    names: list[str] | None = CLASSES,
    kind: Any = ViTForImageClassification,
) -> Any:
    """A ViT of random weights for 32 px, as `save_pretrained` writes it."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "intermediate_size": 32}
    given = {"id2label": dict(enumerate(names))} if names else {"num_labels": 3}
    config = ViTConfig(**sizes, num_attention_heads=2, image_size=32, patch_size=8, **given)
    net = kind(config)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    net.save_pretrained(folder)
    processor.save_pretrained(folder)
    return net.eval()


@pytest.mark.parametrize("name", PROCESSORS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    """Of pixels at the input's size; of a photograph up to the rounding of resized pixels."""
    net = save(tmp_path / "vit", PROCESSORS[name])
    found = fgkd.load_classifier(f"transformers:{tmp_path / 'vit'}")
    assert found.classes == CLASSES
    assert found.input_size == (3, 32, 32)
    photo = pixels(0, 1, (67, 90))
    photo.save(tmp_path / "photo.png")
    values = PROCESSORS[name](images=photo, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        wanted = net(values).logits
    mean, std = (torch.tensor(found.config[key]).view(3, 1, 1) for key in ("mean", "std"))
    image = ((values[0] * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    torch.testing.assert_close(found.logits(image[None]), wanted, atol=2e-2, rtol=1e-2)
    transform = create_transform(**resolve_data_config(found.config), is_training=False)
    ours = (transform(photo) * std + mean) * 255
    assert (ours - image).abs().mean() < 1  # of 96 levels of noise; they resize in torch
    (predicted,) = fgkd.predict(
        f"transformers:{tmp_path / 'vit'}", tmp_path / "photo.png", workers=0
    )
    probs = dict(predicted.top)
    for name_of, prob in zip(CLASSES, wanted.softmax(1)[0].tolist(), strict=True):
        assert probs[name_of] == pytest.approx(prob, abs=0.05)


@pytest.mark.parametrize("format", export.FORMATS)
def test_it_is_exported_for_any_batch(format: str, tmp_path: Path) -> None:
    """`convert` runs the file on batches of several sizes."""
    save(tmp_path / "vit", PROCESSORS["squashed"])
    found = fgkd.load_classifier(f"transformers:{tmp_path / 'vit'}")
    data, worst = export.convert(found, format, "vit")
    assert data
    assert worst < 1e-5


def test_large_images_of_convnext_are_not_cropped(tmp_path: Path) -> None:
    save(tmp_path / "vit", ConvNextImageProcessor(size={"shortest_edge": 384}, crop_pct=0.875))
    found = fgkd.load_classifier(f"transformers:{tmp_path / 'vit'}")
    assert found.eval_transform.size == 384
    assert (found.eval_transform.crop_pct, found.eval_transform.crop_mode) == (1.0, "squash")


def test_classes_without_names(tmp_path: Path) -> None:
    save(tmp_path / "vit", PROCESSORS["squashed"], names=None)
    found = fgkd.load_classifier(f"transformers:{tmp_path / 'vit'}")
    assert (found.classes, found.num_classes) == ([], 3)


def test_what_cannot_be_a_teacher(tmp_path: Path) -> None:
    """A processor that swaps channels, a model without a head, and places where there is none."""
    save(
        tmp_path / "bgr", MobileViTImageProcessor(size={"shortest_edge": 32}, do_center_crop=False)
    )
    save(tmp_path / "headless", PROCESSORS["squashed"], kind=ViTModel)
    save(tmp_path / "longest", PROCESSORS["squashed"])
    config = tmp_path / "longest" / "preprocessor_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"size": {"longest_edge": 32}}))
    for name in ("bgr", "headless", "longest"):
        with expected(ModelError, model=f"transformers:{tmp_path / name}"):
            fgkd.load_classifier(f"transformers:{tmp_path / name}")
    with expected(MissingModel, path=f"{tmp_path}/nothing"):
        fgkd.load_classifier(f"transformers:{tmp_path}/nothing")
    (tmp_path / "empty").mkdir()
    with expected(HubError, model=f"transformers:{tmp_path}/empty"):
        fgkd.load_classifier(f"transformers:{tmp_path}/empty")


@pytest.mark.parametrize("form", ["{}", "local-dir:{}"])
def test_a_folder_of_transformers_is_not_timms(form: str, tmp_path: Path) -> None:
    save(tmp_path / "vit", PROCESSORS["squashed"])
    suggestion = f"transformers:{tmp_path / 'vit'}"
    with expected(OtherLibrary, suggestion=suggestion):
        fgkd.load_classifier(form.format(tmp_path / "vit"))


def test_a_cache_of_its_logits(tiny_data: Path, tmp_path: Path) -> None:
    """Stored targets are transformers' logits of the views that the cache gives."""
    data = fgkd.open_dataset(f"folder:{tiny_data}")
    net = save(tmp_path / "vit", PROCESSORS["squashed"], names=data.classes)
    run(
        *("cache-logits", "--teacher", f"transformers:{tmp_path / 'vit'}", "--workers", 0),
        *("--data", f"folder:{tiny_data}", "--views", 1, "--encoding", "dense32"),
        *("--output", tmp_path / "cache"),
    )
    views = fgkd.CachedViews(tmp_path / "cache")
    batch = [views[i] for i in range(5)]
    values = (torch.stack([torch.as_tensor(one["image"]) for one in batch]) / 255 - 0.5) / 0.5
    with torch.no_grad():
        wanted = net(values).logits
    found = torch.as_tensor(np.stack([one["teacher_logits"] for one in batch]))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
