"""`load_classifier` and `as_classifier`: every source of a model gives that model's own logits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import timm
import torch
import torchvision
from helpers.errors import expected
from helpers.models import CLASSES, build, images, perturb, timm_logits
from torch import nn

import fgkd
from fgkd import download, models
from fgkd.errors import HubError, MissingModel, ModelError, NotLocal, UnreadableFile, WrongKind
from fgkd.models import loading


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder's model, of random weights."""
    models.save(perturb(build("convnext_atto")), tmp_path / "run" / "model")
    return tmp_path / "run"


def test_a_run_and_its_folder_in_every_form(run: Path) -> None:
    x = images(3)
    wanted = timm_logits(run / "model", x)
    model = run / "model"
    for source in (run, str(run), model, f"local-dir:{model}", f"local-dir:{run}"):
        found = fgkd.load_classifier(source)
        torch.testing.assert_close(found.logits(x), wanted, atol=1e-6, rtol=1e-6)
        assert found.classes == CLASSES
        assert found.architecture == "convnext_atto"
        assert found.input_size == (3, 32, 32)
        assert not found.training
        assert found.weights_path == model / "model.safetensors"
    config = json.loads((model / "config.json").read_text())["pretrained_cfg"]
    assert found.mean.flatten().tolist() == pytest.approx(config["mean"])
    assert found.std.flatten().tolist() == pytest.approx(config["std"])


def test_the_weights_hash_is_that_of_the_file_or_of_the_tensors(run: Path) -> None:
    import hashlib

    file = run / "model" / "model.safetensors"
    assert fgkd.load_classifier(run).weights_sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    one, same, other = build("convnext_atto"), build("convnext_atto"), perturb(build("resnet18"))
    assert one.weights_sha256 == same.weights_sha256 != other.weights_sha256


def test_what_is_no_model_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingModel) as missing:
        fgkd.load_classifier(tmp_path / "nothing")
    assert missing.value.path == tmp_path / "nothing"
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "identity.json").touch()
    with pytest.raises(WrongKind) as cache:
        fgkd.load_classifier(tmp_path / "cache")
    assert cache.value.found == "cache"
    weights = run / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UnreadableFile):
        fgkd.load_classifier(run)


@pytest.mark.parametrize("form", ["{}", "local-dir:{}"])
def test_the_home_folder_and_urls(form: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(run.parent))
    assert fgkd.load_classifier(form.format("~/run")).classes == CLASSES
    for url in ("s3://bucket/run", "https://host/weights.pth"):
        with pytest.raises(NotLocal) as error:
            fgkd.load_classifier(form.format(url))
        assert error.value.path == url


@pytest.mark.parametrize("prefix", ["", "local-dir:", "transformers:"])
def test_a_source_for_any_folder(prefix: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("run", "r:u n"):
        (tmp_path / name).mkdir()
        assert loading.absolute(f"{prefix}{name}") == f"{prefix}{tmp_path}/{name}"
        assert loading.is_here(f"{prefix}{name}")
    for elsewhere in (f"{prefix}no/run", "hf-hub:me/run", "timm:run", "torchvision:run"):
        assert loading.absolute(elsewhere) == elsewhere
        assert not loading.is_here(elsewhere)


def hub_folder(cache: Path, repo: str, model: Path) -> None:
    """A model as huggingface_hub leaves it in its download cache."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    shutil.copytree(model, folder / "snapshots" / ("0" * 40))


def test_a_model_of_the_hugging_face_hub(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By timm's and huggingface_hub's own code, from their download cache, without a network."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub_folder(cache, "birds/teacher", run / "model")
    x = images(2)
    found = fgkd.load_classifier("hf-hub:birds/teacher")
    torch.testing.assert_close(found.logits(x), timm_logits(run / "model", x), atol=1e-6, rtol=1e-6)
    assert found.classes == CLASSES
    with pytest.raises(HubError) as missing:
        fgkd.load_classifier("hf-hub:birds/nobody")
    assert missing.value.model == "hf-hub:birds/nobody"


def test_a_timm_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """ImageNet's classes are WordNet ids in timm's order; an unknown name is refused."""
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, pretrained: create(name, pretrained=False)
    )
    found = fgkd.load_classifier("timm:resnet10t.c3_in1k")
    assert len(found.classes) == 1000
    assert found.classes[0] == "n01440764"  # tench, by the ILSVRC 2012 class list
    assert found.logits(images(1, 64)).shape == (1, 1000)
    with pytest.raises(ModelError):
        fgkd.load_classifier("timm:resnet10tt")


def test_a_download_that_is_repeated_leaves_the_same_new_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """timm draws a model's weights before it fetches others; a 503 then does not move the draws."""
    create, failures = timm.create_model, [503, 429]

    def busy(name: str, pretrained: bool, **kwargs: Any) -> Any:
        net = create(name, pretrained=False, **kwargs)
        if pretrained and failures:
            error = OSError("busy")
            error.response = SimpleNamespace(status_code=failures.pop())  # type: ignore[attr-defined]
            raise error
        return net

    monkeypatch.setattr(timm, "create_model", busy)
    monkeypatch.setattr(download, "FIRST_PAUSE_S", 0.01)
    heads = []
    for _ in range(2):
        torch.manual_seed(3)
        made, _ = models.create("resnet10t.c3_in1k", class_names=CLASSES, pretrained=True)
        heads.append(made.net.get_classifier().weight)
    assert not failures
    assert heads[0].equal(heads[1])
    failures[:] = [404]
    with pytest.raises(HubError) as gone:
        models.create("resnet10t.c3_in1k", class_names=CLASSES, pretrained=True)
    assert gone.value.status == 404
    assert not failures  # asked once


def test_a_torchvision_model_is_a_classifier() -> None:
    torch.manual_seed(0)
    net = torchvision.models.mobilenet_v3_small(num_classes=3).eval()
    x = images(2, 64)
    ours = fgkd.as_classifier(net, name="mobilenet", classes=CLASSES, input_size=64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        theirs = net(((x / 255 - mean) / std).permute(0, 3, 1, 2))
    torch.testing.assert_close(ours.logits(x), theirs, atol=1e-5, rtol=1e-5)
    assert (ours.architecture, ours.classes, ours.input_size) == ("mobilenet", CLASSES, (3, 64, 64))
    assert len(ours.weights_sha256) == 64


def test_a_function_and_a_model_that_returns_an_object() -> None:
    class Output:
        def __init__(self, logits: torch.Tensor) -> None:
            self.logits = logits

    def by_colour(x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))

    x = images(2)
    plain = {"classes": CLASSES, "input_size": 32, "mean": (0, 0, 0), "std": (1, 1, 1)}
    function = fgkd.as_classifier(by_colour, name="colour", **plain)
    torch.testing.assert_close(function.logits(x), x.float().mean((1, 2)) / 255)
    wrapped = fgkd.as_classifier(lambda x: Output(by_colour(x)), name="object", **plain)
    assert torch.equal(wrapped.logits(x), function.logits(x))
    assert function.weights_sha256 != wrapped.weights_sha256  # their names stand for them


@pytest.mark.parametrize(
    "returned",
    [torch.zeros(2, 4), torch.zeros(3), torch.zeros(3, 3), torch.zeros(2, 3, 1), np.zeros((2, 3))],
    ids=["other classes", "one dimension", "other images", "three dimensions", "numpy"],
)
def test_what_is_no_logits_is_refused(returned: Any) -> None:
    model = fgkd.as_classifier(lambda x: returned, name="odd", classes=CLASSES)
    with expected(ModelError, model="odd"):
        model.logits(images(2))


def test_logits_take_both_layouts_and_leave_the_mode_alone() -> None:
    model = build("resnet18", kwargs={}).train()
    x = images(2)
    found = model.logits(x)
    assert torch.equal(model.logits(x.permute(0, 3, 1, 2)), found)
    assert torch.equal(model.logits(x.numpy()), found)
    assert model.training
    assert found.dtype == torch.float32
    assert not found.requires_grad
    with torch.no_grad():
        assert torch.equal(model.eval()(x).answer_BK, found)  # batch norm in eval mode


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(2, 3, 32, 32),
        torch.zeros(3, 32, 32, dtype=torch.uint8),
        torch.zeros(2, 4, 32, 32, dtype=torch.uint8),
        np.zeros((2, 32, 32, 1), np.uint8),
    ],
    ids=["float", "one image", "four channels", "grey"],
)
def test_logits_refuse_what_is_no_batch_of_images(wrong: Any) -> None:
    model = fgkd.as_classifier(nn.Identity(), name="x", classes=CLASSES)
    with pytest.raises(ModelError) as error:
        model.logits(wrong)
    assert error.value.model == "x"
    assert str(list(wrong.shape)) in error.value.message
