"""Options: declared once, checked, loaded strictly, flat on disk and composed in code."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fgkd import config, losses
from fgkd.cache import encodings
from fgkd.cache.writer import BACKENDS
from fgkd.config import args_file, specs
from fgkd.config.schema import Leaf
from fgkd.data import DATASETS
from fgkd.errors import (
    Difference,
    FgkdError,
    MissingFile,
    OptionError,
    UnknownName,
    UnreadableFile,
)
from fgkd.models import export
from fgkd.training import optim, schedules
from fgkd.views import clean, recipes

COMPOSED = (config.TrainTeacherConfig, config.CacheLogitsConfig, config.TrainStudentConfig)
CONFIGS = (
    *(*COMPOSED, config.EvaluateConfig, config.InspectConfig),
    *(config.PredictConfig, config.ExportConfig),
)
FIELDS = {
    f"{c.__name__}.{name}": (c, leaf) for c in CONFIGS for name, leaf in config.leaves(c).items()
}


def is_text(leaf: Leaf) -> bool:
    """Whether an option's value is a text without which it has another meaning, or such texts."""
    is_list = leaf.kind == tuple[str, ...] and leaf.field.metadata["place"]
    return leaf.kind == str | None or bool(is_list)


def choices(cls: type, name: str) -> tuple[str, ...]:
    """The choices that an option declares."""
    found: tuple[str, ...] = FIELDS[f"{cls.__name__}.{name}"][1].field.metadata["choices"]
    return found


# ---- declarations --------------------------------------------------------------------------


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
    assert set(choices(config.EvaluateConfig, "tta")) == set(clean.TTA)
    assert set(choices(config.ExportConfig, "format")) == set(export.FORMATS)
    assert set(specs.DATASET_NAMES) == set(DATASETS)


def test_every_view_option_is_a_field_of_the_recipe() -> None:
    names = {f.name for f in dataclasses.fields(config.ViewSpec)} - {"aug_recipe"}
    assert names <= {f.name for f in dataclasses.fields(recipes.ViewRecipe)}


def test_the_recipe_accepts_or_refuses_view_options_at_the_ends_of_their_range() -> None:
    """The ranges of options and recipe may differ, but then the recipe names the field."""
    for field in dataclasses.fields(config.ViewSpec):
        meta, kind = field.metadata, config.leaves(config.ViewSpec)[field.name].kind
        is_pair = "tuple" in str(kind)
        for value in (meta["low"], meta["high"]):
            if value is None:
                continue
            number = int(value) if "int" in str(kind) else float(value)
            given = config.ViewSpec(**{field.name: (number, number) if is_pair else number})
            accepted, message = None, ""
            try:
                accepted = recipes.resolve(given, None, chiral=False)
            except FgkdError as error:
                message = error.message
            if accepted is None:
                assert field.name in message
            else:
                assert getattr(accepted, field.name) == getattr(given, field.name)


@pytest.mark.parametrize("name", FIELDS)
def test_every_option_has_help_that_reads_well(name: str) -> None:
    cls, leaf = FIELDS[name]
    text = leaf.field.metadata["help"]
    assert text.endswith(".")
    assert "  " not in text
    assert 8 <= len(text) <= 125
    first = text.split()[0].strip(",:")
    names = (*choices(cls, leaf.field.name), "auto", "timm", "torch.compile")
    assert text[0].isupper() or first in names


def test_an_option_has_the_same_range_and_choices_in_every_command() -> None:
    seen: dict[str, Any] = {}
    for _, leaf in FIELDS.values():
        field = leaf.field
        if field.name == "format":  # of shards, or of an exported file
            continue
        same = [field.metadata[name] for name in ("low", "high", "above", "choices")]
        assert seen.setdefault(field.name, same) == same, field.name


@pytest.mark.parametrize("cls", COMPOSED)
def test_each_option_is_in_exactly_one_spec(cls: type) -> None:
    kinds = typing.get_type_hints(cls)
    parts = {one.name: kinds[one.name] for one in dataclasses.fields(cls)}
    declared = [f.name for kind in parts.values() for f in dataclasses.fields(kind)]
    assert len(declared) == len(set(declared))
    found = config.leaves(cls)
    assert list(found) == declared
    for name, leaf in found.items():
        assert name in {f.name for f in dataclasses.fields(parts[leaf.spec])}


def test_two_specs_with_the_same_option_are_refused() -> None:
    @dataclasses.dataclass(frozen=True)
    class Twice:
        first: config.TaskLossSpec = config.TaskLossSpec()
        second: config.TaskLossSpec = config.TaskLossSpec()

    with pytest.raises(AssertionError, match="smoothing is in two specs"):
        config.leaves(Twice)


def test_a_config_has_no_flat_attributes() -> None:
    """`config.epochs` would hide which part of the system an option belongs to."""
    options = config.TrainTeacherConfig()
    for name, leaf in config.leaves(config.TrainTeacherConfig).items():
        if name not in {one.name for one in dataclasses.fields(options)}:
            assert not hasattr(options, name)
        assert leaf.of(options) == leaf.field.default


# ---- flat and composed ---------------------------------------------------------------------


@pytest.mark.parametrize("cls", CONFIGS)
def test_defaults_are_in_range_and_of_their_type(cls: type) -> None:
    plain = config.to_dict(cls())
    assert config.build(cls, plain, "here") == cls()


@pytest.mark.parametrize("cls", CONFIGS)
def test_flat_values_reach_their_spec_and_come_back(cls: type) -> None:
    """Every option at another value than its default."""
    values = {name: _other(leaf) for name, leaf in config.leaves(cls).items()}
    options = config.build(cls, values, "here")
    flat = config.to_dict(options)
    assert list(flat) == list(config.leaves(cls))
    for name, leaf in config.leaves(cls).items():
        part = getattr(options, leaf.spec) if leaf.spec else options
        held = getattr(part, name)
        assert held == values[name]
        assert flat[name] == (list(held) if isinstance(held, tuple) else held)
    assert config.build(cls, flat, "here") == options


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
    """A value in range that is not the default."""
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


def test_replaced_changes_options_by_their_flat_names() -> None:
    old = config.TrainStudentConfig(run=config.RunSpec(output="a"))
    new = config.replaced(old, epochs=5, cache="runs/cache", crop_scale=[0.5, 1])
    assert (new.optim.epochs, new.targets.cache) == (5, "runs/cache")
    assert new.view.crop_scale == (0.5, 1.0)
    unchanged = config.to_dict(old) | {"epochs": 5, "cache": "runs/cache", "crop_scale": [0.5, 1.0]}
    assert config.to_dict(new) == unchanged
    assert old.optim.epochs == 30
    with pytest.raises(UnknownName) as unknown:
        config.replaced(old, epoch=5)
    assert unknown.value.option == "epoch"
    with pytest.raises(OptionError) as wrong:
        config.replaced(old, epochs=0)
    assert (wrong.value.option, wrong.value.value) == ("epochs", 0)


# ---- wrong values --------------------------------------------------------------------------


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
        ("data", {"icons": 1}, "{'icons': 1} is not text or a list of texts"),
        ("data", [1], "1 is not text"),
        ("crop_scale", 0.5, "0.5 is not a list"),
        ("crop_scale", "0.5", "'0.5' is not a list"),
        ("crop_scale", [0.5], "[0.5] has 1 values, not 2"),
        ("crop_scale", [0.5, 1.5], "1.5 is above 1"),
        ("crop_scale", [0.5, math.inf], "inf is not a finite number"),
        ("sched", "cosin", "'cosin' is not one of cosine, linear, step, constant"),
        ("hflip", {"p": 1}, "{'p': 1} is not a number"),
    ],
)
@pytest.mark.parametrize("where", [Path("recipe.yaml"), "train_teacher()"])
def test_a_wrong_value_is_refused_with_its_option(
    key: str, value: Any, expected: str, where: str | Path
) -> None:
    with pytest.raises(OptionError) as caught:
        config.build(config.TrainTeacherConfig, {key: value}, where)
    error = caught.value
    assert error.message == f"{where}: {key}: {expected}"
    assert (error.option, error.value) == (key, value)
    assert error.path == (where if isinstance(where, Path) else None)


def test_values_are_converted_where_nothing_is_lost() -> None:
    built = config.build(
        config.TrainTeacherConfig,
        {"lr": "1e-3", "weight_decay": 1, "crop_scale": [0.5, 1], "data": ["icons"]},
        "here",
    )
    assert built.optim.lr == 1e-3
    assert isinstance(built.optim.weight_decay, float)
    assert built.view.crop_scale == (0.5, 1.0)
    assert built.data.data == ("icons",)


@pytest.mark.parametrize(
    ("name", "value", "plain"),
    [
        ("epochs", np.int64(3), 3),
        ("epochs", torch.tensor(3), 3),
        ("lr", np.float64(0.5), 0.5),
        ("lr", np.float32(0.5), 0.5),
        ("crop_scale", np.array([0.5, 1]), [0.5, 1.0]),
        ("amp", np.bool_(True), True),
        ("model", np.str_("resnet18"), "resnet18"),
        ("data", np.array(["icons"]), ["icons"]),
        ("device", torch.device("cuda:1"), "cuda:1"),
        ("amp_dtype", torch.float16, "float16"),
        ("compile", np.bool_(True), "on"),
        ("model_kwargs", {}, []),
        ("model_kwargs", {"depth": np.int64(6), "dims": np.array([8, 9])}, ["depth=6,dims=[8, 9]"]),
        (
            "model_kwargs",
            {"depths": [1, 2], "act_layer": "relu"},
            ["depths=[1, 2],act_layer='relu'"],
        ),
    ],
)
def test_values_of_numpy_and_torch_and_dicts(name: str, value: Any, plain: Any) -> None:
    built = config.build(config.TrainTeacherConfig, {name: value}, "train_teacher()")
    found = config.to_dict(built)[name]
    assert found == plain
    assert type(found) is type(plain)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", np.array([1, 2])),
        ("epochs", np.float32(1.5)),
        ("epochs", np.bool_(True)),
        ("lr", np.array([0.5])),
        ("data", {"icons": 1}),
        ("model", torch.nn.Sequential(*(torch.nn.Linear(1, 1) for _ in range(50)))),
        ("model_kwargs", {"norm_layer": torch.nn.LayerNorm}),
        ("model_kwargs", {"a b": 1}),
        ("model_kwargs", {3: 1}),
        ("opt_kwargs", {"eps": math.inf}),
    ],
)
def test_other_objects_are_refused_in_a_line(name: str, value: Any) -> None:
    with pytest.raises(OptionError) as caught:
        config.build(config.TrainTeacherConfig, {name: value}, "train_teacher()")
    assert caught.value.option == name
    assert len(caught.value.message) < 200
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("name", ["data", "model_kwargs"])
def test_a_single_text_is_a_list_of_one(name: str) -> None:
    """`train_teacher(data="icons")` need not write a list."""
    built = config.build(config.TrainTeacherConfig, {name: "icons"}, "here")
    assert config.to_dict(built)[name] == ["icons"]


@pytest.mark.parametrize("where", [Path("x.yaml"), "train_teacher()"])
def test_an_unknown_option_is_refused_with_near_names(where: str | Path) -> None:
    with pytest.raises(UnknownName) as caught:
        config.build(config.TrainTeacherConfig, {"epoch": 3}, where)
    error = caught.value
    assert (error.option, error.value) == ("epoch", 3)
    assert error.path == (where if isinstance(where, Path) else None)
    assert list(error.known) == list(config.leaves(config.TrainTeacherConfig))
    assert str(where) in error.message
    assert "did you mean epochs" in error.message


@pytest.mark.parametrize("cls", CONFIGS)
def test_parts_of_a_config_are_not_options(cls: type) -> None:
    for part in {leaf.spec for leaf in config.leaves(cls).values()} - {*config.leaves(cls), ""}:
        with pytest.raises(UnknownName):
            config.build(cls, {part: {}}, "here")


# ---- old names -----------------------------------------------------------------------------


@pytest.mark.parametrize("cls", COMPOSED)
def test_the_old_name_of_a_value_is_accepted_with_a_warning(cls: type) -> None:
    with pytest.warns(FutureWarning, match="aug_recipe: 'seed' is now called 'randaug'") as caught:
        built = config.build(cls, {"aug_recipe": "seed"}, "here")
    assert len(caught) == 1
    assert caught[0].filename == __file__  # at the call, not inside fgkd
    assert config.to_dict(built)["aug_recipe"] == "randaug"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert config.build(cls, {"aug_recipe": "randaug"}, "here") == built
        assert config.replaced(built, seed=1)


def test_old_names_are_no_names_of_today() -> None:
    for _, leaf in FIELDS.values():
        for old, new in leaf.field.metadata["renamed"].items():
            assert old not in leaf.field.metadata["choices"]
            assert new in leaf.field.metadata["choices"]


# ---- differences and files -----------------------------------------------------------------


def test_diff_lists_the_options_that_change_results() -> None:
    def teacher(**values: Any) -> config.TrainTeacherConfig:
        return config.build(config.TrainTeacherConfig, values, "here")

    old = teacher(lr=0.1, workers=2, output="a")
    new = teacher(lr=0.2, workers=8, output="b", resume=True)
    assert config.diff(old, new) == [Difference("lr", 0.1, 0.2)]
    assert config.diff(old, old) == []


@pytest.mark.parametrize("content", [b"- lr\n", b"lr: [1\n", b"\xff\xfe\x00", b"text"])
def test_a_file_that_is_no_mapping_is_unreadable(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(UnreadableFile) as caught:
        args_file.load_yaml(path)
    assert caught.value.path == path
    assert str(path) in caught.value.message


def test_a_file_that_is_absent_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(MissingFile) as missing:
        args_file.load_yaml(tmp_path / "no.yaml")
    assert missing.value.path == tmp_path / "no.yaml"
    with pytest.raises(UnreadableFile) as folder:
        args_file.load_yaml(tmp_path)
    assert folder.value.path == tmp_path


def test_names_in_a_file_may_have_dashes_and_an_empty_file_is_empty(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("batch-size: 16\n")
    (tmp_path / "b.yaml").write_text("# nothing\n")
    assert args_file.load_yaml(tmp_path / "a.yaml") == {"batch_size": 16}
    assert args_file.load_yaml(tmp_path / "b.yaml") == {}


# ---- paths ---------------------------------------------------------------------------------

PLACES = {name: leaf.field.metadata["place"] for name, (_, leaf) in FIELDS.items()}


@pytest.mark.parametrize("name", [name for name, place in PLACES.items() if place == "path"])
def test_a_path_is_no_url(name: str) -> None:
    """A folder called `s3:` on this disk is never what `--output s3://bucket/run` means."""
    cls, leaf = FIELDS[name]
    url = "s3://bucket/name.csv"
    with pytest.raises(OptionError) as error:
        config.build(cls, {leaf.field.name: url}, "here")
    assert (error.value.option, error.value.value) == (leaf.field.name, url)


@pytest.mark.parametrize("name", [name for name, place in PLACES.items() if place])
def test_a_path_may_begin_with_the_home_folder(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a YAML file, in Python and in --output=~/x, where no shell expands it."""
    monkeypatch.setenv("HOME", "/home/me")
    cls, leaf = FIELDS[name]
    found = leaf.of(config.build(cls, {leaf.field.name: "~/a/~b.csv"}, "here"))
    wanted = "/home/me/a/~b.csv"
    assert found == ((wanted,) if isinstance(found, tuple) else wanted)


@pytest.mark.parametrize("text", ["r\udcfc", "a\0b"])
@pytest.mark.parametrize("name", [name for name, (_, leaf) in FIELDS.items() if is_text(leaf)])
def test_a_text_is_utf_8(name: str, text: str) -> None:
    """Run folders and caches record it, as UTF-8; a file name may be any bytes."""
    cls, leaf = FIELDS[name]
    with pytest.raises(OptionError) as error:
        config.build(cls, {leaf.field.name: text}, "here")
    assert (error.value.option, error.value.value) == (leaf.field.name, text)


@pytest.mark.parametrize("name", [name for name, place in PLACES.items() if place])
def test_a_path_is_utf_8_in_a_folder_that_is_not(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r\udcfc").mkdir()
    monkeypatch.chdir(tmp_path / "r\udcfc")
    cls, leaf = FIELDS[name]
    with pytest.raises(OptionError) as error:
        config.build(cls, {leaf.field.name: "a"}, "here")
    assert (error.value.option, error.value.value) == (leaf.field.name, "a")
    assert leaf.of(config.build(cls, {leaf.field.name: "/a"}, "here")) in ("/a", ("/a",))


@pytest.mark.parametrize("name", [name for name, (_, leaf) in FIELDS.items() if is_text(leaf)])
def test_an_empty_text_is_no_value(name: str) -> None:
    """`--initial-checkpoint "$UNSET"` must not train from random weights."""
    cls, leaf = FIELDS[name]
    given = ("runs/a", "") if leaf.kind == tuple[str, ...] else ""
    with pytest.raises(OptionError) as error:
        config.build(cls, {leaf.field.name: given}, "here")
    assert (error.value.option, error.value.value) == (leaf.field.name, given)


def test_every_option_that_names_a_file_or_folder_is_a_path() -> None:
    said = {
        name
        for name, (_, leaf) in FIELDS.items()
        if leaf.field.metadata["help"].startswith(("Fold", "File", "CSV file"))
    }
    others = {name for name in FIELDS if name.endswith((".cache", ".teacher", "checkpoint"))}
    assert {name for name, place in PLACES.items() if place} == said | others
    assert {place for name, place in PLACES.items() if name in said} == {"path"}
    assert all(PLACES[name] == "source" for name in others if not name.endswith("checkpoint"))
