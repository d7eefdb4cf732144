"""Saving and loading models in timm's local-dir form (config.json, model.safetensors)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fgkd import files
from fgkd.errors import UnreadableFile
from fgkd.models import weights
from fgkd.models.classifier import Classifier


def save(model: Classifier, folder: Path) -> None:
    """Write timm's local-dir form: config.json and model.safetensors.

    `timm.create_model(f"local-dir:{folder}", pretrained=True)` then gives the same logits: timm
    averages both heads of a distilled DeiT, so a head that was not trained is written as zeros, and
    the other doubled.
    """
    import safetensors.torch
    from timm.models._hub import save_config_for_hf

    net: Any = model.net
    config = dict(net.pretrained_cfg)
    state = {k: v.detach().cpu().contiguous() for k, v in net.state_dict().items()}
    if model.has_dist and not (model.uses_dist and model.uses_head):
        trained, other = ("head", "head_dist") if model.uses_head else ("head_dist", "head")
        for name in ("weight", "bias"):
            state[f"{trained}.{name}"] = state[f"{trained}.{name}"] * 2
            state[f"{other}.{name}"] = torch.zeros_like(state[f"{other}.{name}"])
    files.write_bytes(folder / "model.safetensors", safetensors.torch.save(state))
    keys = ("input_size", "mean", "std", "interpolation", "crop_pct")
    with files.replacing(folder / "config.json") as partial:
        save_config_for_hf(
            net,
            str(partial),
            model_config={"label_names": config["label_names"]},
            data_config={key: config[key] for key in keys},
        )


def load(folder: Path) -> Classifier:
    """The model that `save` wrote, or any timm local-dir folder, in eval mode.

    Raises: MissingModel; UnreadableFile when it is damaged.
    """
    import timm

    weights.require_model(folder)
    try:
        net = timm.create_model(f"local-dir:{folder}", pretrained=True)
    except Exception as error:  # a KeyError says no more than the key
        reason = f"{type(error).__name__} {error}"
        message = f"model {folder} does not load: {reason}"
        raise UnreadableFile(message, path=folder, reason=reason) from None
    model = Classifier(net, uses_dist=True).eval()
    file = folder / "model.safetensors"
    model.weights_path = file if file.is_file() else None
    return model
