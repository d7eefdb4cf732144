"""The next command to type after one that finished.

What needs torch is imported where it is used: `inspect` does without.
"""

from __future__ import annotations

from pathlib import Path

from fgkd.config import args_file
from fgkd.errors import FgkdError, quoted
from fgkd.files import as_typed, is_url

STUDENT_MODEL = "deit_tiny_distilled_patch16_224"


def after_teacher(run: Path) -> str:
    """To write the teacher's logits."""
    cache = quoted(unused(beside(run, f"{run.absolute().name}-cache")))
    return f"fgkd cache-logits --teacher {quoted(run)} --views 8 --output {cache}"


def after_cache(cache: Path | str) -> str:
    """To train a student from a folder or a URL."""
    place = Path("cache" if is_url(str(cache)) else cache)
    run = quoted(unused(beside(place, "student")))
    return f"fgkd train-student --cache {quoted(cache)} --model {STUDENT_MODEL} --output {run}"


def after_student(run: Path, splits: tuple[str, ...]) -> str:
    """To compare the run with its teacher, and with the baseline (or student) beside it."""
    from fgkd.commands.evaluate import role_of

    split = next(one for one in ("test", "val", "train") if one in splits)
    other = partner(run)
    pair = [run] if other is None else [other, run]
    if other is not None and role_of(run, "train-student") == "baseline":
        pair.reverse()  # the baseline comes first
    names = [*(one for student in pair for one in teachers(student)), *pair]
    runs = " ".join(quoted(as_typed(one)) for one in dict.fromkeys(names))
    return f"fgkd evaluate {runs} --split {split} --report {quoted(beside(run, 'report'))}"


def after_evaluation(run: Path, role: str) -> str:
    """To use the model."""
    if role == "teacher":
        return after_teacher(run)
    return f"fgkd export {quoted(run)} --format pt2"


def after_export(run: str) -> str:
    """To see what the model says."""
    return f"fgkd predict {quoted(run)} --help"


def after_prediction(run: str) -> str:
    """To use the model elsewhere."""
    return f"fgkd export {quoted(run)} --format pt2"


def teachers(run: Path) -> list[Path]:
    """The run folders of a student's teachers, where they are on this machine."""
    from fgkd.training import run_folder

    parents = run_folder.read(run).parents
    found = [parents.teacher] if parents.teacher else []
    args = Path(parents.cache or "") / "args.yaml"
    if parents.cache and args.is_file():
        try:
            held = args_file.load_yaml(args).get("teacher")
        except FgkdError:  # it says what would be convenient, no more
            held = None
        found = [one for one in held if isinstance(one, str)] if isinstance(held, list) else []
    return [Path(one) for one in found if (Path(one) / "run.json").is_file()]


def partner(run: Path) -> Path | None:
    """Of a student, the first baseline in a folder beside it; of a baseline, the first student."""
    from fgkd.commands.evaluate import role_of
    from fgkd.training import run_folder

    facts, role = run_folder.read(run), role_of(run, "train-student")
    try:
        folders = sorted(one for one in run.absolute().parent.iterdir() if (one / "model").is_dir())
    except OSError:
        return None
    for path in folders:
        try:
            other = run_folder.read(path)
            alike = other.stage == facts.stage and other.data == facts.data
            if alike and {role, role_of(path, other.stage)} == {"student", "baseline"}:
                return path
        except FgkdError:  # another's folder, or a damaged one
            continue
    return None


def beside(path: Path, name: str) -> Path:
    """A path of this name in the same folder as another."""
    return as_typed(path.absolute().parent / name)


def unused(path: Path) -> Path:
    """The path, or with a number from 2 if it is taken."""
    found, number = path, 1
    while found.exists():
        number += 1
        found = path.with_name(f"{path.name}-{number}")
    return found
