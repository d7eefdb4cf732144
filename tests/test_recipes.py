"""Every recipe is planned by its own first line, on miniatures of its data, without weights."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import timm
from helpers.datasets import write_cub, write_dogs, write_foodx
from helpers.failures import Fails, run_command
from helpers.runs import fgkd

from fgkd import config
from fgkd.config.args_file import load_yaml
from fgkd.errors import OptionError, UnreadableFile
from fgkd.estimate import training
from stages import recipe_files

FOLDER = Path(__file__).parent.parent / "stages" / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))
CONFIGS = {
    "train-teacher": config.TrainTeacherConfig,
    "cache-logits": config.CacheLogitsConfig,
    "train-student": config.TrainStudentConfig,
}


SMALL = {
    "convnext": "depths=[1,1,2,1],dims=[8,8,16,16]",
    "deit": "depth=2,embed_dim=48,num_heads=3",
}


def first_of_its_kind(path: Path) -> bool:
    """Whether no recipe before it has this architecture at this size."""

    def kind(other: Path) -> tuple[str, int]:
        values = load_yaml(other)
        return str(values.get("model", "")).partition(".")[0], values.get("img_size", 384)

    return kind(path) not in [kind(other) for other in RECIPES[: RECIPES.index(path)]]


def words(path: Path) -> list[str]:
    """The command of a recipe's first line, from the command's name on."""
    return shlex.split(path.read_text().splitlines()[0])[2:]


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Miniatures of the recipes' data."""
    base = tmp_path_factory.mktemp("data")
    writers = {"cub": write_cub, "dogs": write_dogs, "foodx": write_foodx}
    for name, write in writers.items():
        write(base / name, 8, 2)
    return {name: base / name for name in writers}


def data_of(path: Path, roots: dict[str, Path]) -> list[str]:
    """`--data` of the data in a recipe's name, in the miniatures."""
    parts = path.name.replace("foodx251", "foodx").split("-")
    named = [name for name in roots if name in parts[:2]] if parts[0] != "icons" else []
    specs = [f"{name}:{roots[name]}" for name in named] or ["icons"]
    return [word for spec in specs for word in ("--data", spec)]


@pytest.mark.usefixtures("icons_home")
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_planned(
    path: Path, roots: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its model is built at its size, its schedule falls, and a step is counted; none is taken.

    Whole for one recipe of each architecture and size; the others with few narrow layers.
    """
    monkeypatch.setattr(training, "flops_per_s", lambda device: 1.0)
    (tmp_path / "stages").symlink_to(FOLDER.parent)
    monkeypatch.chdir(tmp_path)
    given = [w for a, w in zip(["", *words(path)], words(path), strict=False) if a == "--data"]
    command = [w for w in words(path) if w != "--data" and w not in given]
    command += [*data_of(path, roots), "--dry-run", "--json", str(tmp_path / "plan.json")]
    assert [spec.split(":")[0] for spec in given] in (
        [],
        [word.split(":")[0] for word in data_of(path, roots)[1::2]],
    )
    large = not path.stem.startswith("icons")
    if large and not first_of_its_kind(path) and command[0] != "cache-logits":
        large, model = False, str(load_yaml(path)["model"])
        command += ["--model-kwargs", next(v for k, v in SMALL.items() if model.startswith(k))]
    fgkd(*command)
    assert not Path("runs").exists()
    report: dict[str, Any] = json.loads((tmp_path / "plan.json").read_text())
    if command[0] == "cache-logits":
        assert report["encodings"]["dense"]["bytes"] > 0
        return
    memory = report["memory_bytes"]
    assert report["parameters"] > (8e7 if large else 1e4)
    assert memory["optimizer"] == 2 * memory["gradients"]  # all of them AdamW
    assert memory["activations"] > (2**30 if large else 2**20)
    assert memory["total"] < 24 * 2**30  # each fits a GPU of 24 GiB
    assert report["flops_per_step"] > (1e12 if large else 1e8)
    assert report["images_per_s"] is None


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_says_each_thing_once(path: Path) -> None:
    """Strictly loaded, no option at its default unless it is the point, timm knows the weights."""
    values = load_yaml(path)
    built = config.build(CONFIGS[words(path)[0]], values, str(path))
    if values.get("pretrained"):
        assert values["model"] in timm.list_pretrained()
    if "min_lr" in values:
        assert built.optim.min_lr < built.optim.lr
    if "layer_decay_style" in values:
        assert built.model.model.startswith("convnext")


def test_no_recipe_is_another() -> None:
    """Two files of one command differ in an option, or in the data on their first line."""
    said = [
        (words(p)[0], json.dumps(load_yaml(p), sort_keys=True), str(data_named(p))) for p in RECIPES
    ]
    assert len(set(said)) == len(said) >= 16


def data_named(path: Path) -> list[str]:
    return [
        w.split(":")[0] for a, w in zip(words(path), words(path)[1:], strict=False) if a == "--data"
    ]


def test_controls_differ_from_their_students_in_distillation_alone() -> None:
    """Or, of the two-stage one, in the epochs."""
    own = {"distillation", "kd_loss", "temperature", "distill_loss_weight", "task_loss_weight"}
    own |= {"views", "aug_recipe"}  # those of the cache
    for student, baseline, more in (
        ("cub-dogs-kd-hard", "cub-dogs-finetuned", set()),
        ("cub-dogs-kd-hard", "cub-dogs-kd-soft", set()),
        ("cub-dogs-kd-hard-finetuned", "cub-dogs-extra", set()),
        ("cub-dogs-finetuned", "cub-dogs-baseline", {"epochs"}),
        ("foodx251-kd", "foodx251-baseline", set()),
        ("icons-student", "icons-baseline", {"data"}),
        ("icons-long-student", "icons-long-baseline", {"data"}),
    ):
        a, b = (load_yaml(FOLDER / f"{name}.yaml") for name in (student, baseline))
        differ = {key for key in {*a, *b} if a.get(key) != b.get(key)}
        assert differ <= own | more, (student, baseline)


def test_the_page_of_recipes_names_every_file() -> None:
    page = (FOLDER / "README.md").read_text()
    assert [path.name for path in RECIPES if f"`{path.stem}`" not in page] == []


def test_a_recipe_begins_with_its_command_and_the_summary_of_the_page() -> None:
    page = (FOLDER / "README.md").read_text()
    for recipe in recipe_files.all_recipes():
        assert recipe.command.startswith("fgkd ")
        assert f"| `{recipe.name}` | {recipe.summary} |".lower() in page.lower()
        assert len(recipe.summary) < 50


def test_recipes_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    fgkd("recipes")
    listed = capsys.readouterr().out
    assert max(map(len, listed.splitlines())) <= 80
    for path in RECIPES:
        assert len(re.findall(rf"^  {path.stem}  ", listed, re.M)) == 1
    fgkd("recipes", "icons-student")
    assert capsys.readouterr().out == (FOLDER / "icons-student.yaml").read_text()
    code, _, err = run_command(capsys, "recipes", "icons-studnt")
    assert code == 2
    assert "icons-student" in err


def test_a_recipe_is_found_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In any folder; a file of that name in the folder wins; a near name is suggested."""
    seen: list[config.TrainStudentConfig] = []
    monkeypatch.setattr("stages.train_student.train_student", seen.append)
    monkeypatch.chdir(tmp_path)
    fgkd("train-student", "-c", "icons-student")
    fgkd("train-student", "-c", str(FOLDER / "icons-student.yaml"))
    assert seen[0] == seen[1] != config.TrainStudentConfig()
    (tmp_path / "icons-student").write_text("epochs: 3\n")
    fgkd("train-student", "-c", "icons-student")
    assert seen[2].optim.epochs == 3
    code, _, err = run_command(capsys, "train-student", "-c", "icons-studnt")
    assert code == 2
    assert "icons-student" in err


def test_a_file_extends_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own options come over those of the file it extends, and the command line over both."""
    seen: list[config.TrainStudentConfig] = []
    monkeypatch.setattr("stages.train_student.train_student", seen.append)
    (tmp_path / "mine.yaml").write_text("extends: icons-student\nepochs: 5\nlr: 0.5\n")
    (tmp_path / "more.yaml").write_text("extends: mine\nlr: 0.25\n")
    fgkd("train-student", "-c", tmp_path / "more.yaml", "--batch-size", 9)
    optim, student = seen[0].optim, load_yaml(FOLDER / "icons-student.yaml")
    assert (optim.epochs, optim.lr, optim.batch_size) == (5, 0.25, 9)
    assert seen[0].model.model == student["model"]


def test_files_that_cannot_be_extended(tmp_path: Path, fails: Fails) -> None:
    """Missing, circular, and with a wrong option, which is named with its own file."""
    (tmp_path / "a.yaml").write_text("extends: b\n")
    said = fails("train-student", "-c", tmp_path / "a.yaml")
    assert isinstance(said.error, UnreadableFile)
    assert "'b'" in said
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    assert isinstance(fails("train-student", "-c", tmp_path / "a.yaml").error, UnreadableFile)
    (tmp_path / "b.yaml").write_text("epochs: many\n")
    said = fails("train-student", "-c", tmp_path / "a.yaml")
    assert isinstance(said.error, OptionError)
    assert said.error.path == tmp_path / "b.yaml"
