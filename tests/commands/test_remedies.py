"""Every library error crosses processes with its facts, and has a remedy that works when followed.

The library's messages and docstrings name options by their plain name; only remedies know flags.
"""

from __future__ import annotations

import ast
import dataclasses
import errno
import pickle
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from fgkd import config, errors
from fgkd.config.schema import Leaf
from fgkd.errors import Difference, FgkdError
from stages import cli, remedies

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "train-teacher": config.TrainTeacherConfig,
    "cache-logits": config.CacheLogitsConfig,
    "train-student": config.TrainStudentConfig,
    "evaluate": config.EvaluateConfig,
    "inspect": config.InspectConfig,
}
PARAMS = [param for command in cli.fgkd.commands.values() for param in command.params]
FLAGS = {flag for param in PARAMS for flag in (*param.opts, *param.secondary_opts)}
ODD = "d's data"  # a name that plain quotes do not make one word of
SAMPLES: dict[str, Any] = {
    **{"option": "epochs", "value": 3, "cache": "runs/cache", "there": 2, "reason": "because"},
    **{"known": ("one", "two"), "package": "fsspec", "install": "fgkd[remote]", "path": Path("x")},
    **{"errno": errno.ENOSPC, "found": "run", "subject": "data", "stage": "train-teacher"},
    **{"differences": (Difference("seed", 0, 1, " (2 entries differ)"),), "key": "a/1.png"},
    **{"view": 1, "libraries": (Difference("torch", "1", "2"),), "old": 2, "new": 3, "step": 4},
    **{
        "url": "https://example.org/x",
        "model": "deit",
        "device": "cuda",
        "tracker": "mlflow",
        "rank": 1,
        "stored": (1.0, 2.0),
        "paths": ("a b.jpg",),
        "format": "onnx",
        "dataset": "folder",
        "limit": 256,
        "hard_limit": 4096,
        "others": ("pt2",),
        "box": (1, 2, 0, 0),
        "fields": ("seed",),
    },
    **{"difference": 0.5, "host": "node-1", "pid": 12, "how": "was killed", "count": 2},
    **{"status": 404, "offline": False},
}


def subclasses(cls: type[FgkdError]) -> Iterator[type[FgkdError]]:
    """All types below one, each once."""
    for one in cls.__subclasses__():
        yield one
        yield from subclasses(one)


TYPES = sorted({FgkdError, *subclasses(FgkdError)}, key=lambda cls: cls.__name__)


def example(cls: type[FgkdError], **given: Any) -> FgkdError:
    """An error of a type, with all its attributes set to something of their kind."""
    names = {field.name for field in dataclasses.fields(cls)} - {"message"}
    own = {errors.TooFewViews: {"option": "views"}, errors.OtherLibrary: {"suggestion": "x:y"}}.get(
        cls, {}
    )
    return cls("what happened", **{n: SAMPLES[n] for n in names & set(SAMPLES)} | own | given)


def parses(argv: list[str]) -> None:
    """Let click parse a command without running it. Raises: UsageError."""
    assert argv[0] == "fgkd"
    command = cli.fgkd.commands[argv[1]]
    command.make_context(argv[1], argv[2:], parent=click.Context(cli.fgkd))


def runs(line: str) -> None:
    """Run a line of shell, which must succeed."""
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.returncode == 0, (line, done.stderr)


# ---- every type ----------------------------------------------------------------------------


@pytest.mark.parametrize("cls", TYPES, ids=lambda cls: cls.__name__)
def test_an_error_pickles_with_its_attributes(cls: type[FgkdError]) -> None:
    error = example(cls)
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is cls
    assert vars(back) == vars(error)
    assert str(back) == "what happened"
    names = {field.name for field in dataclasses.fields(cls)}
    assert names <= set(vars(back))


@pytest.mark.parametrize("cls", TYPES, ids=lambda cls: cls.__name__)
def test_every_type_has_a_remedy_with_flags_that_exist(cls: type[FgkdError]) -> None:
    error = example(cls)
    line = remedies.remedy(error)
    if cls is FgkdError:
        assert line == ""
        return
    assert line.strip()
    assert "\n" not in line
    assert remedies.explain(error) == f"what happened\nTry: {line}"
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", line)) <= FLAGS
    if line.startswith("fgkd "):
        parses(shlex.split(line, comments=True))


def test_a_subclass_without_its_own_remedy_has_that_of_its_base() -> None:
    class Special(errors.DeviceError):
        pass

    assert remedies.remedy(Special("x", device="cuda")) == "--device cpu"


# ---- options -------------------------------------------------------------------------------


def sample(leaf: Leaf) -> Any:
    """A value that an option accepts."""
    meta, kind = leaf.field.metadata, str(leaf.kind)
    if "bool" in kind:
        return True
    if meta["choices"]:
        return meta["choices"][-1]
    if "tuple" in kind:
        return (0.5, 1.0) if "float" in kind else (ODD, "icons")
    if "int" in kind or "float" in kind:
        number = max(meta["low"] or 0, 0.5 if "float" in kind else 10)
        return number if meta["high"] is None else min(number, meta["high"])
    return ODD


def options() -> list[Any]:
    """(command, option) of all commands."""
    return [
        pytest.param(command, leaf, id=f"{command} {name}")
        for command, cls in COMMANDS.items()
        for name, leaf in config.leaves(cls).items()
    ]


@pytest.mark.parametrize(("command", "leaf"), options())
def test_the_suggested_value_of_an_option_parses(command: str, leaf: Leaf) -> None:
    name, value = leaf.field.name, sample(leaf)
    line = remedies.remedy(errors.OptionError("x", option=name, suggestion=value))
    context = cli.fgkd.commands[command].make_context(command, shlex.split(line))
    assert context.params[name] == value
    assert context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ({"option": "min_lr", "suggestion": 0}, "--min-lr 0"),
        ({"option": "crop_scale", "suggestion": (0.5, 1)}, "--crop-scale 0.5 1"),
        ({"option": "hflip"}, "leave --hflip out"),
        ({"option": "hflip", "advice": "another cache"}, "leave --hflip out, or another cache"),
        ({"option": "amp", "suggestion": True}, "--amp"),
        ({"option": "deterministic", "suggestion": False}, "--no-deterministic"),
        ({"option": "compile", "suggestion": "off"}, "--compile off"),
        ({"option": "grad_checkpointing", "suggestion": False}, "leave --grad-checkpointing out"),
        ({"option": "RUN", "suggestion": "fgkd evaluate runs/s"}, "fgkd evaluate runs/s"),
        ({"option": "data", "suggestion": "cub:my data"}, "--data 'cub:my data'"),
    ],
)
def test_remedies_of_options(facts: dict[str, Any], line: str) -> None:
    assert remedies.remedy(errors.OptionError("x", **facts)) == line


def test_an_option_of_a_file_is_corrected_there(tmp_path: Path) -> None:
    """By the line that gives it, however its name is spelled."""
    path = tmp_path / ODD
    path.write_text("epochs: 3\nbatch-size: 0\n")
    for option in ("batch_size", "epochs"):
        for cls in (errors.OptionError, errors.UnknownName):
            line = remedies.remedy(cls("x", option=option, path=path))
            assert shlex.split(line, comments=True)[-1] == str(path)
            runs(line)


@pytest.mark.parametrize(
    ("value", "known", "shown"),
    [
        ("cosin", ("linear", "cosine", "step"), "one of cosine"),
        ("zzz", ("linear", "cosine"), "one of linear, cosine"),
        ("zzz", [f"a{n}" for n in range(99)], "one of a0, a1, a2, a3, a4, a5, a6, a7, ..."),
        ("zzz", (), "--help"),
    ],
)
def test_unknown_names_list_the_near_ones_or_the_first(value: str, known: Any, shown: str) -> None:
    error = errors.UnknownName("x", option="sched", value=value, known=known)
    assert remedies.remedy(error) == shown


# ---- files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "folder", "absent", "below an absent folder"])
def test_commands_that_look_at_a_path_succeed(kind: str, tmp_path: Path) -> None:
    path = tmp_path / ODD
    if kind == "file":
        path.write_text("1 x\n")
    elif kind == "folder":
        path.mkdir()
    elif kind.startswith("below"):
        path = path / "b" / "c.txt"
    lines = [
        errors.FileError("x", path=path),
        errors.MissingFile("x", path=path),
        errors.UnreadableFile("x", path=path),
        errors.WriteError("x", path=path / "y", errno=errno.ENOSPC),
        errors.WriteError("x", path=path, errno=errno.EEXIST),
        errors.WeightsError("x", path=path),
        errors.CheckpointError("x", path=path),
        errors.DatasetError("x", path=path),
    ]
    if kind == "file":
        lines.append(errors.DatasetError("x", path=path, line=1))
        lines.append(errors.DatasetError("x", path=path, pattern="^1 "))
        lines.append(errors.DataMismatch("x", subject="image_store", path=path))
    for error in lines:
        runs(remedies.remedy(error))


def test_a_pattern_is_looked_for_in_all_lists_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / ODD).mkdir()
    (tmp_path / ODD / "a.txt").write_text("7 x\n")
    runs(remedies.remedy(errors.DatasetError("x", path=tmp_path / ODD, pattern="^7 ")))


@pytest.mark.parametrize("subject", ["data", "classes", "teacher", "cache", "image_store", "other"])
def test_every_subject_of_a_mismatch_has_a_remedy(subject: str) -> None:
    assert remedies.remedy(errors.DataMismatch("x", subject=subject))


# ---- caches --------------------------------------------------------------------------------


def cache_errors(cache: object) -> list[errors.CacheError | errors.TooFewViews]:
    """Errors whose remedy writes a part of the cache."""
    return [
        errors.IncompleteCache("x", cache=cache),
        errors.FormatVersionMismatch("x", cache=cache, old=2, new=3),
        errors.DamagedShard("x", cache=cache, path=f"{cache}/shards/a.h5", reason="cut"),
        errors.TooFewViews("x", value=9, cache=cache, there=2),
    ]


@pytest.mark.parametrize("has_args", [True, False])
def test_a_cache_is_written_by_a_command_that_parses(has_args: bool, tmp_path: Path) -> None:
    """By its own options or, without them, by those of the command that began it."""
    cache = tmp_path / ODD
    cache.mkdir()
    if has_args:
        (cache / "args.yaml").write_text("teacher: [runs/t]\n")
    for error in cache_errors(cache):
        argv = shlex.split(remedies.remedy(error), comments=True)
        argv = argv[argv.index("fgkd") :]
        parses(argv)
        assert argv[argv.index("--output") + 1] == str(cache)
        assert ("-c" in argv) == has_args


@pytest.mark.parametrize("url", ["https://example.org/cache", "s3://bucket/cache"])
def test_no_remedy_writes_to_a_url(url: str) -> None:
    for error in cache_errors(url):
        line = remedies.remedy(error)
        assert line
        assert url not in line
    found = remedies.remedy(errors.DownloadError("x", url=f"{url}/a", reason="404"))
    assert found.startswith("curl ") == url.startswith("https")


@pytest.mark.parametrize(
    ("model", "flag"),
    [
        ("timm:resnet18", "--teacher-model"),
        ("hf-hub:a/b", "--teacher-model"),
        ("resnet18", "--initial-checkpoint"),
    ],
)
def test_a_hub_out_of_reach(model: str, flag: str) -> None:
    """A teacher is given as a file, and a model that is trained begins from one."""
    assert flag in remedies.remedy(errors.HubError("x", model=model))


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ({"found": "cache"}, "fgkd inspect x"),
        ({"found": "run", "cache": "/my caches/one"}, "fgkd inspect '/my caches/one'   # "),
        ({"found": "run"}, "fgkd cache-logits --teacher x --output CACHE   # "),
    ],
)
def test_a_folder_of_the_wrong_kind(facts: dict[str, Any], line: str) -> None:
    found = remedies.remedy(errors.WrongKind("x", path="x", **facts))
    assert found.startswith(line)
    parses(shlex.split(found, comments=True))


# ---- the library's texts -------------------------------------------------------------------


def sources(*patterns: str) -> list[Path]:
    """Source files of some patterns."""
    return [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]


def texts(path: Path) -> Iterator[tuple[int, str, bool]]:
    """(line, text, whether it is a docstring) of every string constant."""
    tree = ast.parse(path.read_text())
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    bodies = [node.body[0] for node in ast.walk(tree) if isinstance(node, kinds) and node.body]
    docs = {id(first.value) for first in bodies if isinstance(first, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value, id(node) in docs


def test_the_library_names_no_flag_and_no_command() -> None:
    """But for titles of banners, the commands that functions of fgkd.commands stand for, and a
    report's recipes, which are commands that were typed.
    """
    found = []
    for path in set(sources("fgkd/**/*.py")) - {ROOT / "fgkd/report/verdict.py"}:
        is_command = "fgkd/commands/" in path.as_posix()
        for line, text, _ in texts(path):
            flag = re.search(r"(?<![\w-])--[a-z]", text)
            command = re.search(r"fgkd (train|cache|evaluate|inspect|predict|export)", text)
            is_git = text == "--verify" and path.name == "run_folder.py"
            if (flag and not is_git) or (command and not is_command):
                found.append(f"{path.relative_to(ROOT)}:{line}: {text}")
    assert found == []


def test_every_error_that_is_raised_has_a_type_of_its_own() -> None:
    found = []
    for path in sources("fgkd/**/*.py", "stages/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "FgkdError":
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []


def test_every_option_that_an_error_names_exists() -> None:
    """Where it is a literal, as `OptionError(message, option="min_lr")`."""
    known = {name for cls in COMMANDS.values() for name in config.leaves(cls)} | {"RUN", "CACHE"}
    found = {}
    for path in sources("fgkd/**/*.py", "stages/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in vars(errors):
                for keyword in node.keywords:
                    if keyword.arg == "option" and isinstance(keyword.value, ast.Constant):
                        found[keyword.value.value] = f"{path.relative_to(ROOT)}:{node.lineno}"
    assert found
    assert {name: where for name, where in found.items() if name not in known} == {}
