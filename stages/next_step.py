"""The command that follows a finished one, whole: from images to a report in four."""

from __future__ import annotations

from pathlib import Path

from fgkd.commands.evaluate import role_of
from fgkd.config import args_file
from fgkd.errors import FgkdError, quoted
from fgkd.training import run_folder

STUDENT_MODEL = "deit_tiny_distilled_patch16_224"


def after_teacher(run: Path) -> str:
    """To write the teacher's logits."""
    cache = unused(run.with_name(f"{run.name}-cache"))
    return f"fgkd cache-logits --teacher {quoted(run)} --views 8 --output {quoted(cache)}"


def after_cache(cache: Path) -> str:
    """To train a student."""
    run = unused(cache.with_name("student"))
    return (
        f"fgkd train-student --cache {quoted(cache)} --model {STUDENT_MODEL} --output {quoted(run)}"
    )


def after_student(run: Path, splits: tuple[str, ...]) -> str:
    """To compare the run with its teacher, and with the baseline (or student) beside it."""
    split = next(one for one in ("test", "val", "train") if one in splits)
    runs = [*teachers(run), *partners(run), run]
    if role_of(run, "train-student") == "baseline":
        runs = [*(one for other in partners(run) for one in teachers(other)), run, *partners(run)]
    names = " ".join(quoted(shown(one)) for one in dict.fromkeys(runs))
    report = quoted(shown(run.with_name("report")))
    return f"fgkd evaluate {names} --split {split} --report {report}"


def after_evaluation(run: Path, role: str) -> str:
    """To use the model."""
    if role == "teacher":
        return after_teacher(run)
    return f"fgkd export {quoted(run)} --format pt2"


def teachers(run: Path) -> list[Path]:
    """The run folders of a student's teachers, where they are on this machine."""
    parents = run_folder.read(run).parents
    found = [parents.teacher] if parents.teacher else []
    args = Path(parents.cache or "") / "args.yaml"
    if parents.cache and args.is_file():
        found = args_file.load_yaml(args).get("teacher", [])
    return [Path(one) for one in found if (Path(one) / "run.json").is_file()]


def partners(run: Path) -> list[Path]:
    """Of a student, the baseline in the folder beside it; of a baseline, the student."""
    facts, role = run_folder.read(run), role_of(run, "train-student")
    for path in sorted(one for one in run.parent.iterdir() if (one / "model").is_dir()):
        try:
            other = run_folder.read(path)
        except FgkdError:
            continue
        alike = other.stage == facts.stage and other.data == facts.data
        if alike and {role, role_of(path, other.stage)} == {"student", "baseline"}:
            return [path]
    return []


def shown(path: Path) -> Path:
    """The path as one would type it here: relative where it lies below the current folder."""
    whole = path.absolute()
    return whole.relative_to(Path.cwd()) if whole.is_relative_to(Path.cwd()) else path


def unused(path: Path) -> Path:
    """The path, or with a number from 2 if it is taken."""
    found, number = path, 1
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}-{number}")
    return found
