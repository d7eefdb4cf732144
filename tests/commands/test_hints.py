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

from fgkd import files
from fgkd.commands import evaluate
from fgkd.config import EvaluateConfig, args_file
from fgkd.data import DATASETS, open_dataset, with_boxes
from fgkd.data.decoding import decode_rgb
from fgkd.errors import (
    DatasetError,
    MissingFile,
    OptionError,
    OutputExists,
    UnreadableFile,
    UnreadableImage,
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
        (
            ("train-teacher", "--data", "icons", "--model", "m", "--json", "x"),
            "--json",
            "--dry-run",
        ),
        (("train-student", "--model", "m", "--json", "x"), "--json has no effect", "--dry-run"),
        (("cache-logits", "--json", "x"), "--json has no effect", "--dry-run"),
        ((*BASELINE, "--kd-loss", "kl"), "--kd-loss has no effect", "leave --kd-loss out"),
        ((*BASELINE, "--temperature", 1), "--temperature has no effect", "leave --temperature out"),
        (
            (*BASELINE, "--distill-loss-weight", 2),
            "--distill-loss-weight has no",
            "leave --distill-loss-weight out",
        ),
        (
            (*BASELINE, "--logit-standardization"),
            "--logit-standardization has no",
            "leave --logit-standardization out",
        ),
        (
            (*BASELINE, "--dtype", "float64"),
            "--dtype has no effect without a live",
            "leave --dtype out",
        ),
        (
            (*FROM_CACHE, "--dtype", "float32"),
            "--dtype has no effect without a live",
            "leave --dtype out",
        ),
        (
            (*FROM_CACHE, "--shard-size", 9),
            "--shard-size has no effect with --cache",
            "leave --shard-size out",
        ),
        ((*FROM_CACHE, "--shard-buffer", 9), "--shard-buffer has no effect", "--order shard"),
        (("inspect", "c", "--teacher", "t"), "teacher has no effect", "verify as well"),
        (("inspect", "c", "--samples", 3), "samples has no effect", "leave --samples out"),
        (("inspect", "c", "--device", "cpu"), "device has no effect", "leave --device out"),
        (("inspect", "c", "--seed", 3), "seed has no effect", "leave --seed out"),
        (("inspect", "c", "--data", "icons"), "data has no effect", "leave --data out"),
        (
            ("inspect", "c", "--verify", "--teacher-model", "resnet18"),
            "teacher_model has no effect",
            "leave --teacher-model out",
        ),
        (
            ("inspect", "c", "--verify", "--teacher-model-kwargs", "a=1"),
            "teacher_model_kwargs has no effect",
            "leave --teacher-model-kwargs out",
        ),
    ],
)
def test_an_option_without_effect_is_refused(
    fails: Fails, command: tuple[object, ...], what: str, hint: str
) -> None:
    said = fails(*command)
    assert what in said
    assert hint in said


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
