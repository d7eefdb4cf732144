"""Weights in and out: exports that timm reads, and every kind of initial checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from helpers.models import (
    CLASSES,
    DEIT,
    TINY_CONVNEXT,
    TINY_VIT,
    build,
    images,
    perturb,
    timm_logits,
    trained,
)

from fgkd import models
from fgkd.errors import FgkdError

# ---- exports -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (DEIT, {"uses_dist": True}),
        (DEIT, {"uses_dist": False}),
        ("convnext_atto", {}),
        ("vit_tiny_patch16_224", {}),
        ("resnet18", {"kwargs": {}}),
        ("levit_128s", {"kwargs": {}, "img_size": 64}),
    ],
    ids=["deit", "deit without its distillation head", "convnext", "vit", "resnet", "levit"],
)
def test_timm_reads_the_export(name: str, options: dict[str, object], tmp_path: Path) -> None:
    model = trained(tmp_path, name, **options)
    x = images(3, int(options.get("img_size", 32)))
    with torch.no_grad():
        ours, again = model(x).answer_BK, models.load(tmp_path)(x).answer_BK
    theirs = timm_logits(tmp_path, x)
    assert ours.abs().max() > 0.01
    torch.testing.assert_close(theirs, ours, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(again, ours, atol=1e-6, rtol=1e-6)


def test_export_carries_the_configuration(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, _ = models.create(
        "deit_tiny_distilled_patch16_224",
        class_names=CLASSES,
        kwargs=TINY_VIT,
        img_size=48,
        crop_pct=0.8,
    )
    model.net.pretrained_cfg |= {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}
    models.save(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["label_names"] == CLASSES
    assert config["num_classes"] == len(CLASSES)
    stored = config["pretrained_cfg"]
    assert stored["input_size"] == [3, 48, 48]
    assert stored["crop_pct"] == 0.8
    assert stored["interpolation"] == "bicubic"
    assert (stored["mean"], stored["std"]) == ([0.5, 0.4, 0.3], [0.2, 0.25, 0.3])
    loaded = models.load(tmp_path)
    assert list(loaded.config["label_names"]) == CLASSES
    assert loaded.mean.flatten().tolist() == pytest.approx([0.5, 0.4, 0.3])
    assert loaded.config["input_size"][-1] == 48
    assert loaded.config["crop_pct"] == 0.8


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("use_test_size", [False, True])
def test_timm_resolves_the_export_to_what_evaluate_does(
    crop_mode: str, use_test_size: bool, tmp_path: Path
) -> None:
    """Every field, also where the source has a size and a crop of its own for tests."""
    kwargs = {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8]}
    name = "convnext_tiny.fb_in22k_ft_in1k"  # its timm config tests at 288 px with crop 1.0
    model = build(name, kwargs=kwargs, img_size=64, crop_pct=0.8)
    assert model.config["test_input_size"] == (3, 288, 288)
    model.net.pretrained_cfg |= {"crop_mode": crop_mode, "interpolation": "bilinear"}
    models.save(model, tmp_path)
    net = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert timm.data.resolve_model_data_config(net, use_test_size=use_test_size) == {
        "input_size": (3, 64, 64),
        "crop_pct": 0.8,
        "crop_mode": crop_mode,
        "interpolation": "bilinear",
        "mean": list(model.config["mean"]),
        "std": list(model.config["std"]),
    }
    assert net.pretrained_cfg["label_names"] == CLASSES
    assert net.num_classes == net.pretrained_cfg["num_classes"] == len(CLASSES)


def test_export_is_deterministic(tmp_path: Path) -> None:
    trained(tmp_path / "a")
    trained(tmp_path / "b")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_export_leaves_the_model_as_it_is(tmp_path: Path) -> None:
    model = perturb(build(uses_dist=False))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    models.save(model, tmp_path)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("damage", ["no config", "no weights", "truncated", "not JSON"])
def test_load_refuses_a_damaged_folder(damage: str, tmp_path: Path) -> None:
    trained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    if damage == "no config":
        config.unlink()
    elif damage == "no weights":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        config.write_text("{")
    with pytest.raises(FgkdError, match="model"):
        models.load(tmp_path)


# ---- initial checkpoints -------------------------------------------------------------------


def start(source: Path, name: str = DEIT, **options: object) -> tuple[models.Classifier, str]:
    """A new model that starts from a checkpoint, and what is said of it."""
    torch.manual_seed(9)
    given = {"class_names": CLASSES, "img_size": 32, "kwargs": TINY_VIT} | options
    model, said = models.create(name, initial_checkpoint=str(source), **given)
    return model.eval(), "; ".join(said)


@pytest.mark.parametrize("kind", ["run", "folder", "safetensors", "pth", "pth in a wrapper"])
def test_initial_checkpoint(kind: str, tmp_path: Path) -> None:
    model = trained(tmp_path / "model")
    source = {
        "run": tmp_path,
        "folder": tmp_path / "model",
        "safetensors": tmp_path / "model/model.safetensors",
    }.get(kind, tmp_path / "weights.pth")
    if kind.startswith("pth"):
        state = model.net.state_dict()
        torch.save({"state_dict": state, "epoch": 3} if "wrapper" in kind else state, source)
    copy, said = start(source)
    assert torch.equal(copy(images()).answer_BK, model(images()).answer_BK)
    assert "weights.pth" in said or "model.safetensors" in said
    assert "anew" not in said


def test_a_zeroed_distillation_head_is_restored(tmp_path: Path) -> None:
    model = trained(tmp_path / "model", uses_dist=False)
    copy, said = start(tmp_path, uses_dist=True)
    assert torch.equal(copy.net.head.weight, model.net.head.weight)
    assert torch.equal(copy.net.head.bias, model.net.head.bias)
    assert copy.net.head_dist.weight.any()
    assert "newly initialised: head_dist.bias, head_dist.weight" in said
    alone, _ = start(tmp_path, uses_dist=False)
    assert torch.equal(alone(images()).answer_BK, model(images()).answer_BK)


@pytest.mark.parametrize("name", [DEIT, "convnext_atto"])
def test_another_class_count_gets_a_new_head(name: str, tmp_path: Path) -> None:
    kwargs = TINY_VIT if name == DEIT else TINY_CONVNEXT
    model = trained(tmp_path / "model", name)
    copy, said = start(tmp_path, name, kwargs=kwargs, class_names=[*CLASSES, "dog"])
    old, new = model.net.state_dict(), copy.net.state_dict()
    fresh = {name for name in new if new[name].shape != old[name].shape}
    assert all(name.startswith("head") for name in fresh)
    assert all(torch.equal(new[name], old[name]) for name in set(new) - fresh)
    assert f"newly initialised: {', '.join(sorted(fresh))}" in said


def test_another_image_size_resizes_positions(tmp_path: Path) -> None:
    model = trained(tmp_path / "model")
    copy, _ = start(tmp_path, img_size=48)
    assert copy.net.pos_embed.shape[1] == 2 + 6 * 6
    assert torch.equal(copy.net.pos_embed[:, :2], model.net.pos_embed[:, :2])  # both tokens
    mean = model.net.pos_embed[:, 2:].mean()
    torch.testing.assert_close(copy.net.pos_embed[:, 2:].mean(), mean, atol=0.02, rtol=0)
    assert copy(images(2, 48)).answer_BK.isfinite().all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("convnext_atto", {"kwargs": TINY_CONVNEXT}, "is not for convnext_atto"),
        ("vit_tiny_patch16_224", {}, "dist_token|size mismatch"),
        (DEIT, {"kwargs": TINY_VIT | {"depth": 3}}, "first: blocks.2"),
        (DEIT, {"kwargs": TINY_VIT | {"embed_dim": 24}}, "size mismatch"),
        ("resnet18", {"kwargs": {}}, "is not for resnet18"),
    ],
)
def test_a_checkpoint_of_another_model(
    name: str, options: dict[str, object], message: str, tmp_path: Path
) -> None:
    trained(tmp_path / "model")
    with pytest.raises(FgkdError, match=message) as caught:
        start(tmp_path, name, **options)
    assert "model.safetensors" in caught.value.message
    assert len(caught.value.message) < 500


@pytest.mark.parametrize("kind", ["missing", "empty folder", "text", "truncated", "code"])
def test_a_checkpoint_that_cannot_be_read(kind: str, tmp_path: Path) -> None:
    source = tmp_path / "weights.safetensors"
    if kind == "empty folder":
        source.mkdir()
    elif kind == "text":
        source.write_text("not a checkpoint")
    elif kind == "truncated":
        source.write_bytes(safetensors.torch.save(build().net.state_dict())[:-50])
    elif kind == "code":
        source = tmp_path / "weights.pth"
        torch.save({"state_dict": build()}, source)  # a pickled object: never to be run
    with pytest.raises(FgkdError) as caught:
        start(source)
    assert str(source) in caught.value.message
