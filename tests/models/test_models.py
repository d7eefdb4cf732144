"""Models: keyed stochastic depth, pixels, options of creation, and which timm models work."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.models import CLASSES, DEIT, TINY_VIT, build, images
from torchvision.transforms.v2 import functional as tv

from fgkd import models
from fgkd.errors import FgkdError, ModelError, OptionError, UnknownName

# ---- stochastic depth ----------------------------------------------------------------------


def test_keyed_drop_path_has_timms_distribution() -> None:
    from timm.layers import DropPath

    keyed, timms = models.KeyedDropPath(0.3), DropPath(0.3)
    x = torch.ones(20_000, 1, 1)
    keyed.scale_B = torch.from_numpy(keyed.scales(np.random.default_rng(0).random(len(x))))
    torch.manual_seed(0)
    ours, theirs = keyed(x), timms(x)
    assert set(ours.unique().tolist()) == set(theirs.unique().tolist())  # 0 and 1 / 0.7
    assert abs(ours.mean().item() - 1.0) < 0.02
    assert abs((ours == 0).float().mean().item() - (theirs == 0).float().mean().item()) < 0.02
    keyed.eval()
    assert keyed(x) is x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("drop_prob", [0.05, 0.1, 1 / 3, 0.5, 0.9])
def test_drop_path_scales_in_each_number_type(dtype: torch.dtype, drop_prob: float) -> None:
    """Bit-equal to a comparison and a division in that type."""
    uniform_B = np.append(np.random.default_rng(1).random(500), drop_prob)
    keyed = models.KeyedDropPath(drop_prob)
    keyed.scale_B = torch.from_numpy(keyed.scales(uniform_B))
    kept_B = torch.from_numpy(uniform_B).float() >= drop_prob
    want = kept_B.to(dtype) / (1.0 - drop_prob)
    assert torch.equal(keyed(torch.ones(501, 1, dtype=dtype))[:, 0], want)


def test_drop_path_draws_belong_to_the_row() -> None:
    model = build(drop_path=0.5).train()
    ids = np.array([7, 8, 9, 2**64 - 1], np.uint64)
    x = images(4)

    def run(rows: list[int], step: int = 3) -> torch.Tensor:
        model.set_drop_path_draws(11, step, ids[rows])
        with torch.no_grad():
            return model(x[rows]).head_BK

    whole = run([0, 1, 2, 3])
    for rows in ([3, 1], [2], [1, 2, 0]):
        torch.testing.assert_close(run(rows), whole[rows], atol=1e-6, rtol=0)
    assert any(not torch.allclose(run([0, 1, 2, 3], step), whole) for step in range(4, 9))
    assert len(model.drop_paths) == 2  # attention and MLP of the second block: the first keeps all
    model.set_drop_path_draws(11, 3, np.arange(64, dtype=np.uint64))
    first, second = (m.scale_B for m in model.drop_paths)
    assert not torch.equal(first, second)


def test_drop_path_of_rows_that_are_parts_of_images() -> None:
    drop = models.KeyedDropPath(0.5)
    drop.scale_B = torch.from_numpy(drop.scales(np.array([0.9, 0.1])))
    assert drop(torch.ones(6, 2))[:, 0].tolist() == [2.0, 2.0, 2.0, 0.0, 0.0, 0.0]


# ---- pixels and number types ---------------------------------------------------------------


def test_normalisation_equals_torchvision() -> None:
    model = build("convnext_atto")
    x = images(3)
    seen: list[torch.Tensor] = []
    model.net.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model.eval()(x)
    floats = tv.to_dtype(x.permute(0, 3, 1, 2), torch.float32, scale=True)
    expected = tv.normalize(floats, model.config["mean"], model.config["std"])
    torch.testing.assert_close(seen[0], expected, atol=1e-6, rtol=0)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_float64() -> None:
    model = build().eval()
    single = model(images())
    double = model.double()(images())
    assert double.head_BK.dtype == torch.float64
    assert double.dist_BK is not None
    torch.testing.assert_close(double.answer_BK.float(), single.answer_BK, atol=1e-5, rtol=0)


def test_answer_is_the_mean_of_the_trained_heads() -> None:
    both, one = build(uses_dist=True).eval(), build(uses_dist=False).eval()
    out = both(images())
    assert out.dist_BK is not None
    assert torch.equal(out.answer_BK, (out.head_BK + out.dist_BK) / 2)
    alone = one(images())
    assert alone.dist_BK is None
    assert torch.equal(alone.answer_BK, out.head_BK)  # the same seed: the same class head
    trained = {name for name, p in one.named_parameters() if p.requires_grad}
    assert not any("head_dist" in name for name in trained)


# ---- options -------------------------------------------------------------------------------


def test_unknown_model_names_near_ones() -> None:
    with pytest.raises(UnknownName, match=r"no model 'convnext_bas'.*did you mean.*convnext_base"):
        build("convnext_bas", kwargs={})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (DEIT, {"kwargs": {"depht": 2}}, "depht"),
        ("efficientformer_l1", {"img_size": 64}, "cannot take images of 64 px"),
        ("densenet121", {"drop_path": 0.1}, "drop_path_rate"),
    ],
)
def test_what_timm_cannot_build(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(FgkdError, match=message):
        build(name, **options)


@pytest.mark.parametrize(
    ("kwargs", "option", "suggestion"),
    [
        ({"img_size": 48}, "img_size", 48),
        ({"drop_rate": 0.1}, "drop", 0.1),
        ({"drop_path_rate": 0.1, "depth": 2}, "drop_path", 0.1),
        ({"num_classes": 100}, "model_kwargs", None),
        ({"in_chans": 1, "depth": 2}, "model_kwargs", ("depth=2",)),
    ],
)
def test_kwargs_that_options_or_the_data_contradict(
    kwargs: dict[str, Any], option: str, suggestion: object
) -> None:
    with pytest.raises(OptionError) as error:
        build(DEIT, kwargs=kwargs, drop=0.3, drop_path=0.2)
    assert (error.value.option, error.value.suggestion) == (option, suggestion)
    assert next(iter(kwargs)) in str(error.value)


def test_kwargs_that_say_what_is_known_are_taken() -> None:
    """As timm's users write them; --drop and --drop-path may be left to them."""
    same = {"img_size": 32, "num_classes": len(CLASSES), "in_chans": 3}
    model = build(DEIT, kwargs=TINY_VIT | same | {"drop_path_rate": 0.2, "drop_rate": 0.1})
    wanted = build(DEIT, drop=0.1, drop_path=0.2)
    assert [m.drop_prob for m in model.drop_paths] == [m.drop_prob for m in wanted.drop_paths]
    assert model.net.head_drop.p == wanted.net.head_drop.p == 0.1
    with pytest.raises(OptionError) as error:  # without --img-size it is the architecture's
        build(DEIT, kwargs={"img_size": 48}, img_size=None)
    assert (error.value.option, error.value.suggestion) == ("img_size", 48)


@pytest.mark.parametrize("size", [(3, 48, 32), (1, 32, 32)])
def test_models_of_images_that_are_no_squares_in_colour(size: tuple[int, ...]) -> None:
    net = build().net
    net.pretrained_cfg = dict(net.pretrained_cfg, input_size=size)
    with pytest.raises(ModelError) as error:
        models.Classifier(net, uses_dist=True)
    assert error.value.model == DEIT


def test_kwargs_of_another_size_are_refused_before_any_work() -> None:
    with pytest.raises(OptionError) as error:
        build(DEIT, kwargs=TINY_VIT | {"patch_size": 300}, img_size=None)
    assert (error.value.option, error.value.value) == ("img_size", 224)
    with pytest.raises(ModelError):  # of every patch
        build(DEIT, kwargs=TINY_VIT | {"global_pool": ""})


def test_head_init_scale() -> None:
    plain, small = build().state_dict(), build(head_init_scale=0.01).state_dict()
    for name, value in plain.items():
        factor = 0.01 if name.split(".")[1] in ("head", "head_dist") else 1.0
        torch.testing.assert_close(small[name], value * factor)


def test_drop_is_before_the_head() -> None:
    model = build(drop=0.5).train()
    torch.manual_seed(1)
    first = model(images()).head_BK
    torch.manual_seed(2)
    assert not torch.equal(first, model(images()).head_BK)


# ---- which timm models work ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kwargs", "size"),
    [
        ("resnet18", {}, 32),
        ("mobilenetv3_small_050", {}, 32),
        ("vit_tiny_patch16_224", TINY_VIT, 32),
        (
            "swin_tiny_patch4_window7_224",
            {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 1), "window_size": 4},
            32,
        ),
        ("levit_128s", {}, 64),  # distilled, but not by DeiT's tokens: a plain classifier
        ("pit_ti_distilled_224", {}, 64),  # as LeViT
        ("densenet121", {"growth_rate": 4, "block_config": (1, 1)}, 32),  # takes no drop path
    ],
)
def test_other_models(name: str, kwargs: dict[str, object], size: int) -> None:
    drop_path = 0.0 if name == "densenet121" else 0.1
    scale = 0.5
    model = build(name, kwargs=kwargs, img_size=size, drop_path=drop_path, head_init_scale=scale)
    assert not model.uses_dist
    model.set_drop_path_draws(0, 0, np.arange(2, dtype=np.uint64))
    out = model.train()(images(2, size))
    assert out.dist_BK is None
    assert out.answer_BK.shape == (2, len(CLASSES))
    out.answer_BK.square().sum().backward()
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []  # DDP would wait for them


def test_levit_answers_as_timm_does() -> None:
    model = build("levit_128s", kwargs={}, img_size=64).eval()
    x = images(2, 64)
    scaled = (x.permute(0, 3, 1, 2).float() / 255 - model.mean) / model.std
    assert torch.equal(model(x).answer_BK, model.net(scaled))
