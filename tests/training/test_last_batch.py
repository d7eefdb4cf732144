"""A last batch of one image, which batch norm at a feature map of one pixel cannot take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.failures import Fails
from helpers.models import build
from helpers.runs import fgkd

from fgkd.errors import OptionError
from fgkd.loading.schedule import Schedule
from fgkd.training.setup import check_last_batch


def test_it_is_refused_at_the_start_with_a_batch_size_that_works(
    fails: Fails, tiny_data: Path, tmp_path: Path
) -> None:
    """97 images in batches of 16, by a ResNet at 32 px."""
    command = ("train-teacher", "--data", f"folder:{tiny_data}", "--model", "resnet18")
    command = (*command, "--img-size", 32, "--epochs", 1, "--workers", 0)
    said = fails(*command, "--output", tmp_path / "run", "--batch-size", 16)
    assert isinstance(said.error, OptionError)
    assert (said.error.option, said.error.value) == ("batch_size", 16)
    assert not (tmp_path / "run").exists()
    fgkd(*command, "--output", tmp_path / "run", "--batch-size", said.error.suggestion)


@pytest.mark.parametrize(
    ("name", "num", "batch", "accumulated", "fails"),
    [
        ("resnet18", 97, 16, 1, True),
        ("resnet18", 98, 16, 1, False),
        ("resnet18", 98, 16, 2, True),
        ("resnet18", 96, 16, 16, True),
        ("resnet18", 96, 1, 1, True),
        ("convnext_atto", 97, 16, 1, False),
    ],
)
def test_which_models_and_batches_cannot_be_trained(
    name: str, num: int, batch: int, accumulated: int, fails: bool
) -> None:
    """What torch itself says of a batch of one."""
    model = build(name, **({} if name == "convnext_atto" else {"kwargs": {}}))
    state, random = torch.get_rng_state(), model.net.state_dict()
    before = {key: value.clone() for key, value in random.items()}
    schedule = Schedule(0, num, batch, 1, 1)
    if fails:
        with pytest.raises(ValueError, match="more than 1 value"):
            model.train()(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))
        model.eval()
        with pytest.raises(OptionError) as error:
            check_last_batch(model, schedule, accumulated)
        assert num % error.value.suggestion != 1
    else:
        check_last_batch(model, schedule, accumulated)
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in model.net.state_dict().items():
        if not fails:
            assert torch.equal(value, before[key])
