"""One declaration an option: its choices, range and help; strict loading; round trips."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from pathlib import Path
from typing import Any

import pytest

from fgkd import config, losses
from fgkd.cache import encodings
from fgkd.cache.writer import BACKENDS
from fgkd.config import args_file, specs
from fgkd.config.schema import Leaf
from fgkd.data import DATASETS
from fgkd.errors import FgkdError
from fgkd.models import export
from fgkd.training import optim, schedules
from fgkd.views import recipes, rendering

CONFIGS = (
    config.TrainTeacherConfig,
    config.CacheLogitsConfig,
    config.TrainStudentConfig,
    config.EvaluateConfig,
)
FIELDS = {
    f"{c.__name__}.{name}": (c, leaf) for c in CONFIGS for name, leaf in config.leaves(c).items()
}


def choices(cls: type, name: str) -> tuple[str, ...]:
    """The choices that an option declares."""
    found: tuple[str, ...] = FIELDS[f"{cls.__name__}.{name}"][1].field.metadata["choices"]
    return found


def test_choices_are_the_registries() -> None:
    student, cache = config.TrainStudentConfig, config.CacheLogitsConfig
    assert set(choices(student, "kd_loss")) == set(losses.LOSSES)
    assert set(choices(student, "aug_recipe")) == set(recipes.RECIPES)
    assert set(choices(student, "sched")) == set(schedules.SCHEDULES)
    assert set(choices(student, "layer_decay_style")) == set(optim.LAYER_DECAY_STYLES)
    assert set(choices(student, "clip_mode")) == set(optim.CLIP_MODES)
    assert set(choices(student, "interpolation")) == set(typing.get_args(recipes.Interpolation))
    assert set(choices(student, "erasing_mode")) == set(typing.get_args(recipes.ErasingMode))
    assert set(choices(cache, "format")) == set(BACKENDS)
    assert set(choices(cache, "encoding")) == set(encodings.ENCODINGS)
    assert choices(cache, "dtype") == choices(student, "dtype") == specs.DTYPE_NAMES
    assert set(choices(config.EvaluateConfig, "tta")) == set(rendering.TTA)
    assert set(choices(config.EvaluateConfig, "export")) == set(export.FORMATS)
    assert set(specs.DATASET_NAMES) == set(DATASETS)


def test_every_view_option_is_a_field_of_the_recipe() -> None:
    names = {f.name for f in dataclasses.fields(config.ViewSpec)} - {"aug_recipe"}
    assert names <= {f.name for f in dataclasses.fields(recipes.ViewRecipe)}


def test_a_view_option_in_range_is_taken_or_refused_by_the_recipe_with_a_word() -> None:
    """The two sets of ranges may differ, but only the recipe's own error may come of it."""
    for field in dataclasses.fields(config.ViewSpec):
        meta, kind = field.metadata, config.leaves(config.ViewSpec)[field.name].kind
        is_pair = "tuple" in str(kind)
        for value in (meta["low"], meta["high"]):
            if value is None:
                continue
            number = int(value) if "int" in str(kind) else float(value)
            given = config.ViewSpec(**{field.name: (number, number) if is_pair else number})
            taken, said = None, ""
            try:
                taken = recipes.resolve(given, None, chiral=False)
            except FgkdError as error:
                said = error.message
            if taken is None:
                assert f"the view recipe's {field.name} is " in said
            else:
                assert getattr(taken, field.name) == getattr(given, field.name)


@pytest.mark.parametrize("name", FIELDS)
def test_every_option_has_help_that_reads_well(name: str) -> None:
    text = FIELDS[name][1].field.metadata["help"]
    assert text.endswith(".")
    assert "  " not in text
    assert 8 <= len(text) <= 125
    assert text[0].isupper() or text.split()[0].strip(",:") in (
        *choices(*_of(name)),
        "auto",
        "timm",
        "torch.compile",
    )


def _of(name: str) -> tuple[type, str]:
    cls, leaf = FIELDS[name]
    return cls, leaf.field.name


def test_one_name_is_one_option_wherever_it_appears() -> None:
    """A name has one range and one set of choices in every command."""
    seen: dict[str, Any] = {}
    for _, leaf in FIELDS.values():
        field = leaf.field
        same = [field.metadata[name] for name in ("low", "high", "above", "choices")]
        assert seen.setdefault(field.name, same) == same, field.name


@pytest.mark.parametrize("cls", CONFIGS)
def test_defaults_are_in_range_and_of_their_type(cls: type) -> None:
    plain = config.to_dict(cls())
    assert config.build(cls, plain, "here") == cls()


@pytest.mark.parametrize("cls", CONFIGS)
def test_args_yaml_round_trip(cls: type, tmp_path: Path) -> None:
    """Every option at another value than its default comes back equal and of its type."""
    values = {name: _other(leaf) for name, leaf in config.leaves(cls).items()}
    options = config.build(cls, values, "here")
    args_file.save_args(tmp_path / "args.yaml", options)
    back = config.build(cls, args_file.load_yaml(tmp_path / "args.yaml"), "args.yaml")
    assert back == options
    for leaf in config.leaves(cls).values():
        field, old, new = leaf.field, leaf.of(options), leaf.of(back)
        assert type(old) is type(new)
        assert old != field.default or len(field.metadata["choices"]) == 1


def _other(leaf: Leaf) -> Any:
    field, kind, meta = leaf.field, leaf.kind, leaf.field.metadata
    if isinstance(kind, types.UnionType):
        kind = typing.get_args(kind)[0]
    if kind is bool:
        return not field.default
    if meta["choices"]:
        return next((c for c in meta["choices"] if c != field.default), field.default)
    if kind is str:
        return "näme: 'x' #1"
    if typing.get_origin(kind) is tuple:
        return ("a:b", "1e5") if typing.get_args(kind)[0] is str else (0.25, 0.5)
    if kind is int:
        return int(field.default or meta["low"] or 0) + 3
    low = meta["low"] if meta["low"] is not None else meta["above"]
    return (low or 0.0) + 3e-05


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("epochs", "ten", "'ten' is not an integer"),
        ("epochs", 2.5, "2.5 is not an integer"),
        ("epochs", True, "True is not an integer"),
        ("epochs", None, "None is not an integer"),
        ("epochs", 0, "0 is below 1"),
        ("lr", [1], "[1] is not a number"),
        ("lr", "fast", "'fast' is not a number"),
        ("lr", 0, "0.0 is not above 0"),
        ("lr", math.nan, "nan is not a finite number"),
        ("lr", "-inf", "-inf is not a finite number"),
        ("amp", "yes please", "'yes please' is not true or false"),
        ("amp", 1, "1 is not true or false"),
        ("model", 7, "7 is not text"),
        ("data", "icons", "'icons' is not a list"),
        ("data", [1], "1 is not text"),
        ("crop_scale", 0.5, "0.5 is not a list"),
        ("crop_scale", [0.5], "[0.5] has 1 values, not 2"),
        ("crop_scale", [0.5, 1.5], "1.5 is above 1"),
        ("crop_scale", [0.5, math.inf], "inf is not a finite number"),
        ("sched", "cosin", "'cosin' is not one of cosine, linear, step, constant"),
        ("hflip", {"p": 1}, "{'p': 1} is not a number"),
    ],
)
def test_wrong_values_are_refused_by_name(key: str, value: Any, expected: str) -> None:
    with pytest.raises(FgkdError) as caught:
        config.build(config.TrainTeacherConfig, {key: value}, "recipe.yaml")
    assert caught.value.message == f"recipe.yaml: {key}: {expected}"
    assert caught.value.hint


def test_values_are_converted_where_nothing_is_lost() -> None:
    built = config.build(
        config.TrainTeacherConfig,
        {"lr": "1e-3", "weight_decay": 1, "crop_scale": [0.5, 1], "data": ["icons"]},
        "here",
    )
    assert built.lr == 1e-3
    assert isinstance(built.weight_decay, float)
    assert built.crop_scale == (0.5, 1.0)
    assert built.data == ("icons",)


def test_unknown_keys_are_refused_with_the_nearest() -> None:
    with pytest.raises(FgkdError, match=r"unknown option 'epoch' in x\.yaml; did you mean epochs"):
        config.build(config.TrainTeacherConfig, {"epoch": 3}, "x.yaml")


def test_diff_names_what_changes_numbers() -> None:
    old = config.TrainTeacherConfig(lr=0.1, workers=2, output="a")
    new = config.TrainTeacherConfig(lr=0.2, workers=8, output="b", resume=True)
    assert list(map(str, config.diff(old, new))) == ["lr: 0.1 -> 0.2"]
    assert config.diff(old, old) == []
