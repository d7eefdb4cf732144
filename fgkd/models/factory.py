"""Creation of timm models for a list of classes, from scratch or from given weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fgkd.config import format_kwargs
from fgkd.download import from_hub, http_status
from fgkd.errors import HubError, ModelError, OptionError, UnknownName, near
from fgkd.models import backbone, weights
from fgkd.models.classifier import Classifier

# Keyword arguments of timm's models that have options of their own.
OPTION_OF = {"img_size": "img_size", "drop_rate": "drop", "drop_path_rate": "drop_path"}


def create(
    name: str,
    *,
    class_names: list[str],
    kwargs: dict[str, Any] | None = None,
    img_size: int | None = None,
    crop_pct: float | None = None,
    pretrained: bool = False,
    initial_checkpoint: str | None = None,
    drop: float = 0.0,
    drop_path: float = 0.0,
    head_init_scale: float = 1.0,
    uses_dist: bool = True,
    uses_head: bool = True,
) -> tuple[Classifier, list[str]]:
    """A timm model for these classes, and lines that say how its weights were initialised.

    The input size, crop and class names are recorded in the model's config, so that its export
    carries them. Raises: UnknownName; ModelError for kwargs it does not take; OptionError for an
    image size it does not take, and for kwargs that options or the data contradict; WeightsError;
    HubError.
    """
    import timm

    if not timm.is_model(name):
        known = timm.list_models()
        message = f"timm {timm.__version__} has no model {name!r}{near(name, known)}"
        raise UnknownName(message, option="model", value=name, known=known)
    cfg = timm.get_pretrained_cfg(name)
    size_kwargs = {"img_size": img_size} if img_size and cfg and cfg.fixed_input_size else {}
    all_kwargs: dict[str, Any] = {"drop_rate": drop, "drop_path_rate": drop_path, **size_kwargs}
    known = {"num_classes": len(class_names), "in_chans": 3, "drop_path_rate": drop_path or None}
    known |= {"drop_rate": drop or None, "img_size": img_size or (cfg and cfg.input_size[-1])}
    _refuse_contradictions(kwargs or {}, known)
    all_kwargs |= {"num_classes": len(class_names), **(kwargs or {})}
    drawn = torch.get_rng_state()

    def build() -> Any:
        torch.set_rng_state(drawn)  # a download that failed came after draws of random weights
        return timm.create_model(name, pretrained=pretrained, **all_kwargs)

    try:
        try:
            net = from_hub(build)
        except TypeError as error:  # VGG and others have no stochastic depth to switch off
            if drop_path or "'drop_path_rate'" not in str(error):
                raise
            del all_kwargs["drop_path_rate"]
            net = from_hub(build)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        if pretrained and not isinstance(error, TypeError):
            raise _no_hub(name, error) from error
        message = f"timm cannot build {name} with {kwargs or 'its own arguments'}: {error}"
        raise ModelError(message, model=name) from None
    except Exception as error:
        raise _no_hub(name, error) from error
    said = [f"weights: timm pretrained, new {len(class_names)}-class head"] if pretrained else []
    if initial_checkpoint:
        said += weights.load_initial(net, initial_checkpoint)
    if head_init_scale != 1.0:
        for layer in _head_layers(net):
            for parameter in layer.parameters():
                parameter.data.mul_(head_init_scale)
    side = img_size or net.pretrained_cfg["input_size"][-1]
    if img_size or kwargs:
        _try_size(net, name, side, len(class_names))
    net.pretrained_cfg = dict(net.pretrained_cfg, input_size=(3, side, side))
    net.pretrained_cfg["crop_pct"] = crop_pct or net.pretrained_cfg["crop_pct"]
    net.pretrained_cfg["label_names"] = class_names
    return Classifier(net, uses_dist, uses_head), said or ["weights: random initialisation"]


def _refuse_contradictions(kwargs: Mapping[str, object], known: Mapping[str, object]) -> None:
    """Refuse keyword arguments that differ from what is known of them, where that is not None."""
    for key, value in kwargs.items():
        if known.get(key) is None or value == known[key]:
            continue
        message = f"model_kwargs has {key}={value}, but options and data say {known[key]}"
        if option := OPTION_OF.get(key):
            raise OptionError(message, option=option, value=known[key], suggestion=value)
        rest = format_kwargs({name: v for name, v in kwargs.items() if name != key}) or None
        raise OptionError(message, option="model_kwargs", value=value, suggestion=rest)


def _head_layers(net: Any) -> list[nn.Module]:
    """The linear (or 1 x 1 convolution) layers of the heads; LeViT wraps them in a norm."""
    return [
        layer
        for head in backbone.heads(net)
        for layer in head.modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]


def _try_size(net: nn.Module, name: str, side: int, num_classes: int) -> None:
    """Refuse what gives no logits of images of this size, before any work is done."""
    try:
        with torch.no_grad():
            out = net.eval()(torch.zeros(1, 3, side, side))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise OptionError(
            f"{name} cannot take images of {side} px: {error}",
            option="img_size",
            value=side,
            advice="give a multiple of the model's patch size",
        ) from None
    if out.shape != (1, num_classes):
        message = (
            f"{name} with these arguments gives {list(out.shape)}, not [1, {num_classes}] logits"
        )
        raise ModelError(message, model=name)
    net.train()


def _no_hub(name: str, error: Exception) -> HubError:
    reason = str(error).splitlines()[0] if str(error) else "no reason given"
    kind = type(error).__name__
    message = f"cannot get pretrained weights of {name} from the hub ({kind}: {reason})"
    return HubError(message, model=name, status=http_status(error))
