"""Tiny models of 32 px, their exports, and runs that hold one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch

from fgkd import files, models
from fgkd.views.recipes import ViewRecipe

CLASSES = ["ant", "bee", "cat"]
DEIT = "deit_tiny_distilled_patch16_224"
TINY_VIT = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
TINY_CONVNEXT = {"patch_size": 2, "depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8]}


def build(name: str = DEIT, **options: object) -> models.Classifier:
    """A tiny model for 32 px, seeded."""
    if "convnext" in name:
        options.setdefault("kwargs", TINY_CONVNEXT)
    elif "patch16" in name:
        options.setdefault("kwargs", TINY_VIT)
    torch.manual_seed(0)
    options = {"class_names": CLASSES, "img_size": 32} | options
    return models.create(name, **options)[0]


def images(n: int = 2, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8, generator=generator)


def perturb(model: models.Classifier) -> models.Classifier:
    """Move every parameter and buffer off its initial value, so that none can be forgotten."""
    generator = torch.Generator().manual_seed(5)
    for value in model.net.state_dict().values():
        if value.is_floating_point():
            value.add_(torch.rand(value.shape, generator=generator) * 0.02)
    return model.eval()


def trained(folder: Path, name: str = DEIT, **options: object) -> models.Classifier:
    """A perturbed model and its export in `folder`."""
    model = perturb(build(name, **options))
    if model.has_dist and not model.uses_dist:
        model.net.head_dist.requires_grad_(False)
    models.save(model, folder)
    return model


def timm_logits(folder: Path, x: torch.Tensor) -> torch.Tensor:
    """What timm alone says of uint8 images: its model, its mean and std."""
    net = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    data = timm.data.resolve_data_config(model=net)
    mean, std = (torch.tensor(data[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        return net((x.permute(0, 3, 1, 2).float() / 255 - mean) / std)


def write_run(run: Path, data: str, name: str = DEIT, **config: Any) -> Path:
    """A run folder that was never trained: perturbed weights, and what `evaluate` reads."""
    kwargs = {"crop_pct": config.pop("crop_pct", None)}
    model = perturb(build(name, **kwargs))
    model.net.pretrained_cfg |= config
    models.save(model, run / "model")
    facts = {"stage": "train-student", "parents": {}, "data": [data], "val_fraction": 0.1}
    facts |= {"views": {"recipe": ViewRecipe().to_dict(), "seed": 0, "img_size": 32}}
    files.write_json(run / "run.json", facts)
    return run
