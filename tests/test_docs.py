"""The pages say what is: their commands parse, their files exist, their recipes load."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click
import pytest
from PIL import Image

from stages.cli import fgkd

ROOT = Path(__file__).parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), *ROOT.glob("[fs]*/*/*.md")])
}
README = PAGES["README.md"]
BLOCKS = [b for text in PAGES.values() for b in re.findall(r"```bash\n(.*?)```", text, re.S)]
SNIPPETS = {
    f"{name}:{number}": code
    for name, text in PAGES.items()
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", text, re.S))
}
LINES = [
    line
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip() and not line.startswith("#")
]
COMMANDS = [line for line in LINES if re.search(r"(^|srun )fgkd | -m stages ", line)]
RECIPES = sorted((ROOT / "stages" / "recipes").glob("*.yaml"))


def parse(line: str) -> None:
    """Let click parse a command line without running it; raises UsageError when it is wrong."""
    line = line.replace("$((first + 8))", "8").replace("$first", "0")
    words = shlex.split(line, comments=True)
    start = words.index("fgkd") if "fgkd" in words[:2] else words.index("stages")
    name, *args = words[start + 1 :]
    command = fgkd.commands[name]
    command.make_context(name, args, parent=click.Context(fgkd))


def test_readme_shows_both_scripts_first() -> None:
    first = README.partition("```bash\n")[2]
    assert first.startswith("bash scripts/quickstart.sh")
    assert "bash scripts/test.sh" in first.partition("```")[0]
    for line in LINES:
        if line.startswith("bash "):
            assert (ROOT / line.split()[1]).is_file(), line


def test_readme_has_commands_of_every_kind() -> None:
    shown = {line.split()[1] for line in COMMANDS if line.startswith("fgkd ")}
    assert {"train-teacher", "cache-logits", "train-student", "evaluate"} <= shown


@pytest.mark.parametrize("line", COMMANDS)
def test_readme_command_parses(line: str) -> None:
    parse(line)


def test_the_front_page_fits_two_screens() -> None:
    lines = README.splitlines()
    assert len(lines) <= 155
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


@pytest.mark.parametrize("name", ["study", "study-emoji", "study-emoji-all"])
def test_the_studys_figures_are_those_of_its_rows(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import study_figures

    rows = json.loads((ROOT / "scripts" / f"{name}.json").read_text())
    page = PAGES["scripts/README.md"]
    quoted = page.partition(f"<!-- {name} -->\n")[2].partition(f"<!-- /{name} -->")[0]
    assert quoted.strip() == study_figures.tables(rows).strip()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipe_is_the_file_of_its_first_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    first = path.read_text().splitlines()[0]
    assert first.startswith("# fgkd "), f"{path.name} must begin with its command"
    assert f"-c {path.stem} " in first
    parse(first.removeprefix("# "))


def test_quickstart_uses_existing_recipes() -> None:
    script = (ROOT / "scripts" / "quickstart.sh").read_text()
    names = re.findall(r" -c ([\w.-]+)", script)
    assert len(names) == 4
    for name in names:
        assert (ROOT / "stages" / "recipes" / f"{name}.yaml").is_file()


@pytest.mark.parametrize("page", PAGES)
def test_named_files_and_links_exist(page: str) -> None:
    text = PAGES[page]
    for name in re.findall(r"`((?:fgkd|stages|tests|scripts)/[\w./-]*\w/?)`", text):
        assert (ROOT / name).exists(), name
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (ROOT / page).parent.joinpath(link).exists(), link


@pytest.mark.parametrize("name", SNIPPETS)
@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_python_of_the_pages_runs(
    name: str,
    tiny_teacher: Path,
    tiny_cache: Path,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a folder with small versions of what the text speaks of."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "teacher").symlink_to(tiny_teacher)
    (tmp_path / "runs" / "cache").symlink_to(tiny_cache)
    Image.new("RGB", (40, 50)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    code = SNIPPETS[name].replace("/data/birds", str(tiny_data))
    exec(compile(code, name, "exec"), {"__name__": "snippet"})


def test_control_and_student_recipes_differ_in_distillation_alone() -> None:
    from fgkd.config.args_file import load_yaml

    student = load_yaml(ROOT / "stages/recipes/icons-student.yaml")
    baseline = load_yaml(ROOT / "stages/recipes/icons-baseline.yaml")
    losses = {"kd_loss", "temperature", "distill_loss_weight", "task_loss_weight"}
    source = {"data", "distillation", "aug_recipe"}
    for key in (set(student) | set(baseline)) - losses - source:
        assert student[key] == baseline[key], key


def test_flags_for_users_of_other_programs_exist() -> None:
    """Those in the right column; and in the left one where the names are the same."""
    section = PAGES["stages/README.md"].partition("## From DeiT")[2].partition("## ")[0]
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]
    known = {flag for command in fgkd.commands.values() for p in command.params for flag in p.opts}
    named = {flag for row in rows for flag in re.findall(r"--[a-z-]+", row[1])}
    same = {
        flag for row in rows if "same names" in row[1] for flag in re.findall(r"--[a-z-]+", row[0])
    }
    assert len(rows) > 8
    assert len(same) > 8
    assert named | same <= known


def test_no_path_of_one_machine() -> None:
    """Neither the writer's home nor the folder of this checkout."""
    pages = [ROOT / name for name in PAGES]
    for path in [*ROOT.glob("scripts/*.*"), *pages, *RECIPES]:
        text = path.read_text()
        assert f"{Path.home()}/" not in text, path
        assert str(ROOT) not in text, path
