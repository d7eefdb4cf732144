"""What is said to a stranger: lines that can be pasted, and no option that is silently ignored."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from helpers.datasets import open_error, write_cub
from helpers.errors import expected
from helpers.failures import Fails
from helpers.runs import fgkd

from fgkd import config, files
from fgkd.commands import evaluate
from fgkd.config import EvaluateConfig, args_file
from fgkd.data import DATASETS, open_dataset, with_boxes
from fgkd.data.decoding import decode_rgb
from fgkd.errors import (
    DatasetError,
    MissingFile,
    MissingOption,
    OptionError,
    OutputExists,
    UnreadableFile,
    UnreadableImage,
    UnusedOption,
    WriteError,
    WrongKind,
    quoted,
)
from fgkd.report import page
from fgkd.training import run_folder
from fgkd.views import recipes
from fgkd.views.recipes import ViewRecipe
from stages.remedies import explain, remedy


@pytest.mark.parametrize("name", ["plain", "with space", "d's", "Größe", "a;b"])
def test_a_path_is_one_word_of_a_shell(name: str) -> None:
    assert shlex.split(f"ls {quoted(Path(name))}/x") == ["ls", f"{name}/x"]


def test_a_hint_quotes_its_path(tmp_path: Path) -> None:
    with pytest.raises(MissingFile) as error:
        args_file.load_yaml(tmp_path / "my runs" / "args.yaml")
    found = shlex.split(explain(error.value).partition("Try: ")[2])
    assert found == ["ls", "-la", str(tmp_path)]  # the innermost folder that is there


BASELINE = ("train-student", "--model", "m", "--distillation", "none", "--data", "icons")
FROM_CACHE = ("train-student", "--model", "m", "--cache", "c")
TEACHER = ("train-teacher", "--model", "test_convnext", "--data", "icons", "--output", "no")
ODD = "d's data"  # a folder that plain quotes do not make one word of


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "icons"])
def test_a_hint_on_data_quotes_its_folder(name: str, tmp_path: Path) -> None:
    root = tmp_path / ODD
    root.mkdir()
    hint = remedy(open_error(f"{name}:{root}"))
    assert any(word.startswith(str(root)) for word in shlex.split(hint)), hint


def test_hints_on_files_of_data_quote_them(tmp_path: Path) -> None:
    """An unreadable and an undecodable image, a list with a line that is none, and an icon set."""
    write_cub(tmp_path / ODD)
    dataset = open_dataset([f"cub:{tmp_path / ODD}"])
    path = Path(dataset.splits["train"].paths[0])
    path.write_bytes(b"no image")
    with pytest.raises(UnreadableImage) as undecodable:
        decode_rgb(path.read_bytes(), str(path))
    assert shlex.split(remedy(undecodable.value), comments=True) == ["file", str(path)]
    path.unlink()
    with pytest.raises(UnreadableFile) as gone:
        dataset.splits["train"].read(0)
    assert shlex.split(remedy(gone.value))[:2] == ["ls", "-la"]
    boxes = tmp_path / ODD / "bounding_boxes.txt"
    boxes.write_text(boxes.read_text().replace("1 ", "1 x ", 1))
    with pytest.raises(DatasetError) as listed:
        with_boxes(dataset)
    assert shlex.split(remedy(listed.value)) == ["grep", "-n", "^1 ", str(boxes)]
    icons = remedy(open_error(f"icons:{tmp_path / ODD}"))
    assert shlex.split(icons) == ["--data", f"icons:{tmp_path / ODD / 'icons'}"]


@pytest.mark.parametrize(
    ("command", "what", "hint"),
    [
        (("evaluate",), "RUN is required", "Try: fgkd evaluate runs/student"),
        (("inspect",), "CACHE is required", "Try: fgkd inspect runs/cache"),
        (("train-teacher",), "data is required", "Try: --data icons"),
    ],
)
def test_what_is_required_is_asked_for(
    fails: Fails, command: tuple[object, ...], what: str, hint: str
) -> None:
    said = fails(*command)
    assert what in said
    assert hint in said


@pytest.mark.parametrize(
    ("command", "option", "way"),
    [
        ((*TEACHER, "--json", "x"), "json", "--dry-run"),
        ((*FROM_CACHE, "--json", "x"), "json", "--dry-run"),
        (("cache-logits", "--json", "x"), "json", "--dry-run"),
        ((*BASELINE, "--kd-loss", "kl"), "kd_loss", None),
        ((*FROM_CACHE, "--dtype", "float32"), "dtype", None),
        ((*FROM_CACHE, "--shard-size", 9), "shard_size", None),
        ((*FROM_CACHE, "--shard-buffer", 9), "shard_buffer", "--order shard"),
        ((*TEACHER, "--amp-dtype", "float16"), "amp_dtype", "--amp"),
        ((*TEACHER, "--decay-rate", 0.5), "decay_rate", "--sched step"),
        (("cache-logits", "--teacher", "t", "--top-k", 3), "top_k", "--encoding topk8"),
        ((*TEACHER, "--momentum", 0.5), "momentum", None),
        ((*TEACHER, "--val-fraction", 0.2), "val_fraction", None),
        ((*BASELINE, "--val-fraction", 0.2), "val_fraction", None),
        (
            ("cache-logits", "--data", "icons", "--dry-run", "--val-fraction", 0.2),
            "val_fraction",
            None,
        ),
        ((*TEACHER, "--rand-aug-magnitude", 5), "rand_aug_magnitude", None),
        ((*TEACHER, "--rand-aug-std", 1), "rand_aug_std", None),
        ((*TEACHER, "--erasing-mode", "const"), "erasing_mode", None),
        ((*TEACHER, "--mix-prob", 0.5), "mix_prob", None),
        ((*TEACHER, "--mixup", 0.2, "--switch-prob", 0.5), "switch_prob", None),
        ((*TEACHER, "--hflip", 0.5), "hflip", None),
        (("inspect", "c", "--teacher", "t"), "teacher", "verify as well"),
        (("inspect", "c", "--samples", 3), "samples", None),
        (("inspect", "c", "--device", "cpu"), "device", None),
        (("inspect", "c", "--seed", 3), "seed", None),
        (("inspect", "c", "--data", "icons"), "data", None),
        (("inspect", "c", "--verify", "--teacher-model", "resnet18"), "teacher_model", None),
        (
            ("inspect", "c", "--verify", "--teacher-model-kwargs", "a=1"),
            "teacher_model_kwargs",
            None,
        ),
    ],
)
def test_an_option_without_effect_is_refused(
    fails: Fails, command: tuple[object, ...], option: str, way: str | None
) -> None:
    said = fails(*command)
    assert isinstance(said.error, UnusedOption)
    assert said.error.option == option
    assert f"Try: leave --{option.replace('_', '-')} out" in said
    assert way is None or f", or {way}" in said


@pytest.mark.parametrize("option", ["amp_dtype", "decay_rate"])
def test_an_option_typed_at_its_default_is_refused_and_one_of_a_file_is_not(
    fails: Fails, tmp_path: Path, option: str
) -> None:
    value = config.leaves(config.TrainTeacherConfig)[option].field.default
    (tmp_path / "a.yaml").write_text(f"{option}: {value}\n")
    flag = "--" + option.replace("_", "-")
    assert isinstance(fails(*TEACHER, flag, value).error, UnusedOption)
    said = fails("train-teacher", "-c", tmp_path / "a.yaml", "--data", "icons")
    assert isinstance(said.error, MissingOption)  # of the model


def test_options_of_a_file_may_be_those_of_another_run(fails: Fails, tmp_path: Path) -> None:
    """`-c STUDENT/args.yaml --distillation none` is its baseline: the file is not refused."""
    (tmp_path / "student.yaml").write_text("temperature: 2\nshard_size: 9\ndtype: float64\n")
    for command in (BASELINE[:-1], FROM_CACHE[:-1]):
        said = fails(*command, tmp_path / "no", "-c", tmp_path / "student.yaml")
        assert "has no effect" not in said
        assert str(tmp_path / "no") in said


@pytest.mark.parametrize("name", ["", "file/results.json"])
def test_a_json_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "file").touch()
    with expected(OptionError, option="json", value=str(tmp_path / name)):
        evaluate.check(EvaluateConfig(json=str(tmp_path / name)), ["r"])


def test_a_link_to_a_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    with expected(WriteError, path=tmp_path / "link"):
        files.write_text(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink()
    assert not list(tmp_path.glob("*.partial"))


def test_a_cache_given_as_a_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "identity.json").touch()
    with expected(WrongKind, found="cache"):
        run_folder.read(tmp_path)


@pytest.mark.parametrize(
    ("parents", "hint"),
    [
        ({"cache": "/my caches/one"}, "fgkd inspect '/my caches/one'   #"),
        ({"teacher": "t"}, "fgkd cache-logits --teacher "),
        ({}, "fgkd cache-logits --teacher "),
    ],
)
def test_a_run_given_as_a_cache_is_named_with_its_cache(
    fails: Fails, tmp_path: Path, parents: dict[str, str], hint: str
) -> None:
    facts = {"stage": "train-student", "data": ["icons"], "val_fraction": 0.1, "parents": parents}
    facts |= {"views": {"recipe": ViewRecipe().to_dict(), "seed": 0, "img_size": 32}}
    (tmp_path / "run.json").write_text(json.dumps(facts))
    student = ("train-student", "--cache", tmp_path, "--model", "m", "--output", tmp_path / "x")
    for command in (("inspect", tmp_path), student):
        said = fails(*command)
        assert isinstance(said.error, WrongKind)
        assert said.remedy.startswith(hint)


def test_a_cache_folder_in_the_way_is_not_to_be_resumed(tmp_path: Path) -> None:
    (tmp_path / "args.yaml").touch()
    with pytest.raises(OutputExists) as error:
        files.claim_folder(tmp_path, overwrite=False, may_continue=False, resume=False)
    assert remedy(error.value).startswith("--overwrite to rename it to")


def test_a_page_into_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with expected(OptionError, option="report"):
        page.claim(tmp_path / "x", "report")


def test_the_hint_of_a_range_is_two_words_as_click_takes_them() -> None:
    with pytest.raises(OptionError) as error:
        recipes.recipe_from("light", {"crop_scale": (0.9, 0.1)}, chiral=False)
    assert len(remedy(error.value).split()) == 3


@pytest.mark.parametrize(
    ("command", "first"), [("train-student", "--cache"), ("cache-logits", "--teacher")]
)
def test_help_begins_with_what_is_a_commands_own(
    capsys: pytest.CaptureFixture[str], command: str, first: str
) -> None:
    fgkd(command, "--help")
    options = capsys.readouterr().out.partition("  Next:")[2]
    assert options.index(f"  {first} ") < options.index("  --data ")
