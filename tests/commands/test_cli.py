"""The command line: quick help, usage errors, and where the value of an option comes from."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.failures import Fails, run_command

from fgkd import config
from fgkd.config import args_file
from fgkd.errors import OptionError, UnknownName, UnreadableFile
from stages import cli
from stages.help import EVERYDAY, GROUPS, group_of

COMMANDS = (
    *("train-teacher", "cache-logits", "train-student", "evaluate"),
    *("inspect", "predict", "export"),
)
HEAVY = ("torch", "timm", "torchvision", "webdataset", "numpy", "h5py", "PIL", "yaml")
CONFIGS = {
    "train-teacher": config.TrainTeacherConfig,
    "cache-logits": config.CacheLogitsConfig,
    "train-student": config.TrainStudentConfig,
    "evaluate": config.EvaluateConfig,
    "inspect": config.InspectConfig,
    "predict": config.PredictConfig,
    "export": config.ExportConfig,
}


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The configs that commands are called with; no command does its work."""
    calls: list[Any] = []
    for name in COMMANDS:
        command = cli.fgkd.commands[name]
        function = name.replace("-", "_")
        module = "inspect_cache" if name == "inspect" else function  # the standard one is `inspect`
        stage = f"stages.{module}.{function}"
        monkeypatch.setattr(stage, lambda *args: calls.append(args if args[1:] else args[0]))
        assert command.callback
    return calls


@pytest.mark.parametrize("argv", [[], *([name] for name in COMMANDS)])
def test_help_imports_nothing_heavy_and_is_quick(argv: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COUNTED, *argv, "--help"], capture_output=True, text=True
    )
    calls, heavy = done.stderr.splitlines()
    assert (done.returncode, heavy) == (0, "[]")
    assert int(calls) < 100_000  # of Python functions; 72,000 take 0.3 s on a slow core


COUNTED = f"""
import sys
calls = 0
def count(frame, event, argument):
    global calls
    calls += event == "call"
sys.setprofile(count)
from stages.cli import main
try:
    main(sys.argv[1:])
finally:
    sys.setprofile(None)
    print(calls, [name for name in {HEAVY} if name in sys.modules], sep="\\n", file=sys.stderr)
"""


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example_first_and_every_option(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run_command(capsys, name, "--help")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("Usage: ")
    assert lines[4].startswith(f"    fgkd {name} ")  # below one line that says what it does
    all_of_it = "--help-all" if name in EVERYDAY else "--help"
    code, out, _ = run_command(capsys, name, all_of_it)
    assert code == 0
    flags = re.findall(r"^  (?:-c, )?(--[a-z-]+)", out, re.M)
    assert set(flags) >= {"--" + f.replace("_", "-") for f in config.leaves(CONFIGS[name])}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_screen(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """--help, and the page of each group: 60 lines of 80 columns, which show all options."""
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = run_command(capsys, name, "--help")
    pages, found = [out], set[str]()
    if name in EVERYDAY:
        for group in GROUPS:
            code, page, err = run_command(capsys, name, "--help-all", group.lower())
            assert code == 0 or f"{name} has the groups" in err
            pages += [page] if code == 0 else []
    for page in pages:
        assert len(page.splitlines()) <= 60
        assert max(map(len, page.splitlines())) <= 80
        found |= set(re.findall(r"^  (--[a-z-]+)", page, re.M))
    assert found >= {"--" + f.replace("_", "-") for f in config.leaves(CONFIGS[name])}
    _, again, _ = run_command(capsys, name, "--help")
    assert again == out


def test_everyday_options_are_options() -> None:
    for name, everyday in EVERYDAY.items():
        assert everyday <= set(config.leaves(CONFIGS[name])), name
    for cls in CONFIGS.values():
        for leaf in config.leaves(cls).values():
            assert leaf.spec in ("", "architecture") or group_of(leaf), leaf.field.name


def test_help_of_all_shows_the_commands_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_command(capsys, "--help")
    lines = [line.split()[1] for line in out.splitlines() if line.startswith("    fgkd ")]
    listed = [line.split()[0] for line in out.partition("Commands:\n")[2].splitlines()]
    assert (code, listed) == (0, [*COMMANDS, "recipes"])
    assert lines == list(COMMANDS[:4])  # from data to a table of results
    assert max(map(len, out.splitlines())) <= 80


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_command(capsys, "--version")
    assert code == 0
    assert out.startswith("fgkd 0.")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["train-teachr"], "No such command 'train-teachr'"),
        (["train-teacher", "--epoch", "3"], "No such option"),
        (["train-teacher", "--epochs", "ten"], "'ten' is not a valid integer"),
        (["train-teacher", "--epochs", "0"], "0 is below 1"),
        (["train-teacher", "--epochs"], "requires an argument"),
        (["train-teacher", "--crop-scale", "0.5"], "requires 2 arguments"),
        (["train-teacher", "--crop-scale", "0.5", "1.5"], "1.5 is above 1"),
        (["train-teacher", "--sched", "cosin"], "'cosin' is not one of"),
        (["train-teacher", "extra"], "unexpected extra argument"),
        (["train-teacher", "-c", "/no/such.yaml"], "does not exist"),
        (["evaluate", "--split", "dev", "run"], "'dev' is not one of"),
    ],
)
def test_usage_errors_exit_2(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run_command(capsys, *argv)
    assert (code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err


def _floats() -> list[tuple[str, str, Any]]:
    found = []
    for command, cls in CONFIGS.items():
        for name, leaf in config.leaves(cls).items():
            kind = leaf.kind
            if "float" in str(kind):
                found.append((command, name, kind))
    return found


@pytest.mark.parametrize(("command", "name", "kind"), _floats())
def test_float_options_refuse_nan_and_inf(
    command: str, name: str, kind: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = 2 if kind == tuple[float, float] or "tuple[float, float]" in str(kind) else 1
    for value, yaml in (("nan", ".nan"), ("inf", ".inf"), ("-inf", "-.inf")):
        code, _, err = run_command(capsys, command, f"--{name.replace('_', '-')}", *[value] * given)
        assert code == 2
        assert f"{value} is not a finite number" in err
        (tmp_path / "c.yaml").write_text(
            f"{name}: [{yaml}, {yaml}]\n" if "tuple" in str(kind) else f"{name}: {yaml}\n"
        )
        code, _, err = run_command(capsys, command, "-c", str(tmp_path / "c.yaml"))
        assert code == 1
        assert f"c.yaml: {name}: {value} is not a finite number" in err


def test_command_line_over_file_over_default(tmp_path: Path, received: list[Any]) -> None:
    (tmp_path / "a.yaml").write_text(
        "lr: 1e-3\nepochs: 7\nbatch-size: 16\ndata: icons\ncrop_scale: [0.5, 1]\n"
        "model_ema: true\nchannels_last: false\noutput: elsewhere\n"
    )
    argv = ["train-teacher", "--epochs", "9", "-c", str(tmp_path / "a.yaml"), "--output", "o"]
    cli.fgkd.main([*argv, "--no-model-ema"], standalone_mode=False)
    (options,) = received
    optim, run = options.optim, options.run
    assert (optim.epochs, optim.lr, optim.batch_size) == (9, 1e-3, 16)
    assert (options.data.data, options.view.crop_scale) == (("icons",), (0.5, 1.0))
    assert (optim.model_ema, run.channels_last) == (False, False)
    assert (run.output, options.loss.smoothing) == ("o", 0.1)


@pytest.mark.parametrize("swapped", [False, True])
def test_resume_takes_the_runs_own_options(
    tmp_path: Path, received: list[Any], swapped: bool
) -> None:
    """The command line and a -c file override them, in whichever order they are given."""
    own = teacher(epochs=3, lr=0.5, model="m", output="old", hflip=0.25)
    args_file.save_args(tmp_path / "args.yaml", own)
    (tmp_path / "c.yaml").write_text("lr: 0.25\n")
    parts = ["--output", str(tmp_path)], ["-c", str(tmp_path / "c.yaml")], ["--resume"]
    flat = [word for part in (reversed(parts) if swapped else parts) for word in part]
    cli.fgkd.main(["train-teacher", *flat, "--model", "n"], standalone_mode=False)
    expected = config.replaced(own, lr=0.25, model="n", output=str(tmp_path), resume=True)
    assert received == [expected]


def test_without_resume_the_folder_is_not_read(tmp_path: Path, received: list[Any]) -> None:
    (tmp_path / "args.yaml").write_text("epochs: 3\n")
    cli.fgkd.main(["train-teacher", "--output", str(tmp_path)], standalone_mode=False)
    assert received[0].optim.epochs == 30


def teacher(**values: Any) -> config.TrainTeacherConfig:
    """The config of a train-teacher command."""
    return config.build(config.TrainTeacherConfig, values, "the test")


@pytest.mark.parametrize(
    ("text", "kind", "facts"),
    [
        ("epoch: 3\n", UnknownName, {"option": "epoch", "value": 3}),
        ("epochs: ten\n", OptionError, {"option": "epochs", "value": "ten"}),
        ("batch-size: 0\n", OptionError, {"option": "batch_size", "value": 0}),
        ("lr: [1]\n", OptionError, {"option": "lr", "value": [1]}),
        ("- lr\n", UnreadableFile, {}),
        ("lr: [1\n", UnreadableFile, {}),
        ("a: !!python/object/apply:os.system ['touch pwned']\n", UnreadableFile, {}),
    ],
)
def test_an_option_file_that_is_wrong(
    text: str,
    kind: type,
    facts: dict[str, Any],
    tmp_path: Path,
    fails: Fails,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error names the file, and the remedy shows the line."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my c.yaml"
    path.write_text(text)
    failure = fails("train-teacher", "-c", path)
    assert type(failure.error) is kind
    assert failure.error.path == path
    assert {name: getattr(failure.error, name) for name in facts} == facts
    assert str(path) in failure
    assert str(path) in failure.remedy_argv
    shown = subprocess.run(["bash", "-c", failure.remedy], capture_output=True, text=True)
    assert shown.returncode == 0
    assert text.strip() in shown.stdout
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # and no `pwned`


# ---- old names -----------------------------------------------------------------------------

SEED = "notice: aug_recipe: 'seed' is now called 'randaug'; the old name will be removed\n"


@pytest.mark.parametrize("source", ["command line", "file", "resume"])
@pytest.mark.parametrize("command", ["train-teacher", "cache-logits", "train-student"])
def test_an_old_value_is_taken_with_one_notice(
    command: str,
    source: str,
    tmp_path: Path,
    received: list[Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = {
        "command line": ["--aug-recipe", "seed"],
        "file": ["-c", str(tmp_path / "args.yaml")],
        "resume": ["--output", str(tmp_path), "--resume"],
    }[source]
    if source == "resume" and command == "cache-logits":
        args = ["-c", str(tmp_path / "args.yaml"), "--output", str(tmp_path)]  # how it continues
    (tmp_path / "args.yaml").write_text("aug_recipe: seed\nworkers: 0\n")
    code, out, err = run_command(capsys, command, *args)
    assert (code, out, err) == (0, "", SEED)
    assert received[0].view.aug_recipe == "randaug"
    assert (tmp_path / "args.yaml").read_text() == "aug_recipe: seed\nworkers: 0\n"


def test_a_notice_comes_from_rank_0_alone(
    received: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert run_command(capsys, "train-teacher", "--aug-recipe", "seed") == (0, "", "")
    assert received[0].view.aug_recipe == "randaug"


def test_help_shows_present_names_alone(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run_command(capsys, "train-teacher", "--help")
    assert "[none|light|randaug]" in out
    code, _, err = run_command(capsys, "train-teacher", "--aug-recipe", "sed")
    assert code == 2
    assert "'none', 'light', 'randaug'" in err


@pytest.mark.parametrize("ending", ["yaml", "yml"])
def test_a_recipe_is_found_by_its_old_name(
    ending: str, tmp_path: Path, received: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """`-c X-control.yaml` takes X-baseline.yaml, with a notice, where the former does not exist."""
    old, new = tmp_path / f"icons-control.{ending}", tmp_path / f"icons-baseline.{ending}"
    new.write_text("epochs: 7\n")
    code, out, err = run_command(capsys, "train-student", "-c", str(old))
    assert (code, out) == (0, "")
    assert err == f"notice: {old} is now called {new}; the old name will be removed\n"
    assert received[-1].optim.epochs == 7
    old.write_text("epochs: 8\n")
    assert run_command(capsys, "train-student", "-c", str(old)) == (0, "", "")
    assert received[-1].optim.epochs == 8


@pytest.mark.parametrize("name", ["a-control.yaml", "control/a.yaml", "a-control.txt"])
def test_a_file_that_exists_under_neither_name(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "baseline").mkdir()
    (tmp_path / "baseline" / "a.yaml").touch()
    code, out, err = run_command(capsys, "train-student", "-c", str(tmp_path / name))
    assert (code, out) == (2, "")
    assert f"'{tmp_path / name}' does not exist" in err


def test_python_m_stages_is_fgkd() -> None:
    argv = [sys.executable, "-m", "stages", "evaluate", "--split", "dev"]
    root = Path(__file__).parents[2]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=root, env={**os.environ})
    assert done.returncode == 2
    assert "fgkd evaluate" in done.stderr
