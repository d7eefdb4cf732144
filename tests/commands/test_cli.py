"""The command line: quick help, usage errors, and which of several sources an option is from."""

from __future__ import annotations

import dataclasses
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fgkd import config
from stages import cli

COMMANDS = ("train-teacher", "cache-logits", "train-student", "evaluate", "inspect")
HEAVY = ("torch", "timm", "torchvision", "webdataset", "numpy", "h5py", "PIL", "yaml")
CONFIGS = {
    "train-teacher": config.TrainTeacherConfig,
    "cache-logits": config.CacheLogitsConfig,
    "train-student": config.TrainStudentConfig,
    "evaluate": config.EvaluateConfig,
    "inspect": config.InspectConfig,
}


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    code = 0
    try:
        cli.main(list(argv))
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a stage would be called with; no stage runs."""
    calls: list[Any] = []
    for name, command in cli.fgkd.commands.items():
        function = name.replace("-", "_")
        module = "inspect_cache" if name == "inspect" else function  # the standard one is `inspect`
        stage = f"stages.{module}.{function}"
        monkeypatch.setattr(stage, lambda *args: calls.append(args if args[1:] else args[0]))
        assert command.callback
    return calls


@pytest.mark.parametrize("argv", [[], *([name] for name in COMMANDS)])
def test_help_imports_nothing_heavy_and_answers_at_once(argv: list[str]) -> None:
    code = (
        "import sys\nfrom stages.cli import main\ntry: main(sys.argv[1:])\n"
        f"finally: print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code, *argv, "--help"], capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    # Its own seconds, so that a busy machine does not decide.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example_first_and_every_option(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, name, "--help")
    assert code == 0
    lines, options = out.splitlines(), out.index("Options:")
    assert lines[0].startswith("Usage: ")
    assert lines[4].startswith(f"    fgkd {name} ")  # below one line that says what it does
    flags = ["--" + f.replace("_", "-") for f in config.leaves(CONFIGS[name])]
    assert [flag for flag in flags if flag not in out[options:]] == []
    assert max(map(len, out.splitlines())) <= 100


def test_help_of_all_shows_the_commands_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    lines = [line.split()[1] for line in out.splitlines() if line.startswith("    fgkd ")]
    listed = [line.split()[0] for line in out.partition("Commands:\n")[2].splitlines()]
    assert (code, listed) == (0, list(COMMANDS))
    assert lines == list(COMMANDS[:-1])  # the way from data to a table; a cache may be inspected


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--version")
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
    code, out, err = run(capsys, *argv)
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
        code, _, err = run(capsys, command, f"--{name.replace('_', '-')}", *[value] * given)
        assert code == 2
        assert f"{value} is not a finite number" in err
        (tmp_path / "c.yaml").write_text(
            f"{name}: [{yaml}, {yaml}]\n" if "tuple" in str(kind) else f"{name}: {yaml}\n"
        )
        code, _, err = run(capsys, command, "-c", str(tmp_path / "c.yaml"))
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
    assert (options.epochs, options.lr, options.batch_size) == (9, 1e-3, 16)
    assert (options.data, options.crop_scale) == (("icons",), (0.5, 1.0))
    assert (options.model_ema, options.channels_last) == (False, False)
    assert (options.output, options.smoothing) == ("o", 0.1)


@pytest.mark.parametrize("swapped", [False, True])
def test_resume_takes_the_runs_own_options(
    tmp_path: Path, received: list[Any], swapped: bool
) -> None:
    """Under the command line and under a -c file, whichever order they are given in."""
    own = config.TrainTeacherConfig(epochs=3, lr=0.5, model="m", output="old", hflip=0.25)
    (tmp_path / "args.yaml").write_text(_yaml(own))
    (tmp_path / "c.yaml").write_text("lr: 0.25\n")
    parts = ["--output", str(tmp_path)], ["-c", str(tmp_path / "c.yaml")], ["--resume"]
    flat = [word for part in (reversed(parts) if swapped else parts) for word in part]
    cli.fgkd.main(["train-teacher", *flat, "--model", "n"], standalone_mode=False)
    expected = dataclasses.replace(own, lr=0.25, model="n", output=str(tmp_path), resume=True)
    assert received == [expected]


def test_without_resume_the_folder_is_not_read(tmp_path: Path, received: list[Any]) -> None:
    (tmp_path / "args.yaml").write_text("epochs: 3\n")
    cli.fgkd.main(["train-teacher", "--output", str(tmp_path)], standalone_mode=False)
    assert received[0].epochs == 30


def _yaml(options: Any) -> str:
    import yaml

    return yaml.safe_dump(config.to_dict(options))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch: 3\n", "unknown option 'epoch' in {path}; did you mean epochs"),
        ("epochs: ten\n", "{path}: epochs: 'ten' is not an integer"),
        ("lr: [1]\n", "{path}: lr: [1] is not a number"),
        ("- lr\n", "{path} holds a list, not `option: value` lines"),
        ("lr: [1\n", "{path} is not YAML"),
        ("a: !!python/object/apply:os.system ['touch pwned']\n", "{path} is not YAML"),
    ],
)
def test_bad_option_files(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    code, _, err = run(capsys, "train-teacher", "-c", str(path))
    assert code == 1
    assert err.startswith("error: " + said.format(path=path))
    assert "\nTry: " in err
    assert not Path("pwned").exists()


def test_python_m_stages_is_fgkd() -> None:
    argv = [sys.executable, "-m", "stages", "evaluate", "--split", "dev"]
    root = Path(__file__).parents[2]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=root, env={**os.environ})
    assert done.returncode == 2
    assert "fgkd evaluate" in done.stderr
