"""A model that is given in memory may be in the middle of its training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import fgkd
from fgkd import files
from fgkd.training.train import TrainedRun

PLAIN = {"aug_recipe": "light", "workers": 0}


class Net(nn.Module):
    """Convolution, BatchNorm and dropout of 32 px images; the BatchNorm is held still."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.ReLU())
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(8, num_classes)
        self.train()
        self.body[1].eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.body(x).mean((2, 3))))


@pytest.fixture
def dataset(tiny_data: Path) -> fgkd.data.Dataset:
    return fgkd.open_dataset(f"folder:{tiny_data}")


@pytest.fixture
def net(dataset: fgkd.data.Dataset) -> Net:
    return Net(len(dataset.classes))


def classifier(net: nn.Module, dataset: fgkd.data.Dataset) -> fgkd.models.Classifier:
    return fgkd.as_classifier(net, name="net", classes=dataset.classes, input_size=32)


def state_of(net: nn.Module) -> list[object]:
    """What an optimizer, a captured graph or the next epoch would notice."""
    tensors = [*net.parameters(), *net.buffers()]
    return [
        *(module.training for module in net.modules()),
        *((id(t), t.data_ptr(), t.dtype, t.device, t.stride()) for t in tensors),
    ]


def test_it_is_left_as_it_was(
    net: Net, dataset: fgkd.data.Dataset, tiny_data: Path, tmp_path: Path
) -> None:
    before, weights = state_of(net), {k: v.clone() for k, v in net.state_dict().items()}
    model = classifier(net, dataset)
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    once, again = model.logits(images), model.logits(images)
    assert torch.equal(once, again)  # no dropout
    data = f"folder:{tiny_data}"
    evaluated = fgkd.evaluate(model, data=[data], split="val", workers=0)
    assert evaluated[0].model
    fgkd.predict(model, next((tiny_data / "val").rglob("*.png")), workers=0)
    fgkd.export(model, format="torchscript", output=tmp_path / "export")
    for dtype in ("float32", "float64"):
        fgkd.capture(model, dataset=dataset, views=1, output=tmp_path / dtype, dtype=dtype, **PLAIN)
    with pytest.raises(fgkd.errors.DataMismatch):  # also after an error
        fgkd.capture(
            fgkd.as_classifier(net, name="net", classes=["x"] * 8, input_size=32),
            **{"dataset": dataset, "views": 1, "output": tmp_path / "other"},
        )
    assert state_of(net) == before
    assert all(torch.equal(value, weights[key]) for key, value in net.state_dict().items())


def test_what_is_trained_on_is_another_teacher(
    net: Net, dataset: fgkd.data.Dataset, tmp_path: Path
) -> None:
    """The cache that was begun with its former weights is not continued."""
    model, options = classifier(net, dataset), {"dataset": dataset, "output": tmp_path / "cache"}
    fgkd.capture(model, views=1, **options, **PLAIN)
    with torch.no_grad():
        net.head.bias += 1
    with pytest.raises(fgkd.errors.DataMismatch) as refused:
        fgkd.capture(model, views=2, **options, **PLAIN)
    assert "weights_sha256" in str(refused.value)


@pytest.mark.parametrize("how", ["by its path", "of the run"])
def test_a_loaded_model_that_is_trained_on_is_not_that_of_the_file(
    how: str, tiny_teacher: Path, dataset: fgkd.data.Dataset, tmp_path: Path
) -> None:
    run = TrainedRun(tiny_teacher, True, ("train", "val"))
    model = fgkd.load_classifier(tiny_teacher) if how == "by its path" else run.model
    file = files.sha256(tiny_teacher / "model/model.safetensors")

    def captured(name: str) -> str:
        fgkd.capture(model, dataset=dataset, views=1, output=tmp_path / name, **PLAIN)
        (teacher,) = fgkd.open_cache(tmp_path / name).identity.teachers
        return teacher.weights_sha256

    assert captured("as loaded") == file
    with torch.no_grad():
        next(model.net.parameters()).mul_(1.5)
    trained = captured("trained")
    assert trained == fgkd.models.classifier.state_sha256(model.net.state_dict()) != file
