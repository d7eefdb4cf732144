"""scripts/examples: each is short, and does what it says when run as a user would run it."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import timm
import torch
import torchvision
import yaml

import fgkd
from stages.cli import fgkd as fgkd_command

FOLDER = Path(__file__).parents[1] / "scripts" / "examples"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py"))
TRAINING = [name for name in SCRIPTS if not name.startswith(("capture_", "tour"))]


def run(name: str, folder: Path, *args: object) -> str:
    """What a script prints; it is run in an empty folder."""
    command = [sys.executable, str(FOLDER / name), *map(str, args)]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return found.stdout + found.stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_is_short(name: str) -> None:
    assert len((FOLDER / name).read_text().splitlines()) < 60


PACKAGES = {"lightning_module.py": "lightning", "hugging_face_trainer.py": "accelerate"}


@pytest.mark.parametrize("name", TRAINING)
def test_the_student_learns_from_the_cache(name: str, tiny_cache: Path, tmp_path: Path) -> None:
    if (package := PACKAGES.get(name)) and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    said = run(name, tmp_path, tiny_cache, 4)
    losses = [float(found) for found in re.findall(r"\bloss'?:? '?(\d+\.\d+)", said)]
    assert len(losses) >= 4, said
    assert losses[3] < 0.9 * losses[0], losses


def test_what_timm_pieces_saves_is_a_teacher_for_the_next(tiny_cache: Path, tmp_path: Path) -> None:
    run("timm_pieces.py", tmp_path, tiny_cache, 1)
    net = timm.create_model(f"local-dir:{tmp_path / 'student'}", pretrained=True).eval()
    assert net.num_classes == len(fgkd.open_cache(tiny_cache).classes)


def test_the_tour_ends_with_a_report(tiny_data: Path, tmp_path: Path) -> None:
    said = run("tour.py", tmp_path, f"folder:{tiny_data}", tmp_path / "tour", "--quick")
    assert f"look at {tmp_path}/tour/report/index.html" in said
    assert (tmp_path / "tour" / "report" / "index.html").is_file()
    for name in ("teacher", "baseline", "student"):
        assert f"{tmp_path}/tour/{name} " in said


def test_capture_writes_the_models_own_logits(tiny_data: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = torchvision.models.mobilenet_v3_small(num_classes=8).eval()
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    data = f"folder:{tiny_data}"
    said = run("capture_torchvision.py", tmp_path, data, "weights.pth", tmp_path / "cache")
    assert "4 views" in said
    views = fgkd.CachedViews(tmp_path / "cache")
    views.set_epoch(3)
    item = views[7]
    mean, std = (
        torch.tensor(x).view(3, 1, 1) for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    with torch.no_grad():
        wanted = net(((item["image"] / 255 - mean) / std)[None])[0]
    torch.testing.assert_close(item["teacher_logits"], wanted, atol=2e-3, rtol=2e-3)  # float16


def commands_of(text: str) -> list[list[str]]:
    """The arguments of each fgkd command in a script of a cluster."""
    text = text.replace("\\\n", " ").replace("$((first + 8))", "8").replace("$first", "0")
    found = re.findall(r"(?:exec fgkd|-m fgkd\.stages) (.+)", text)
    return [shlex.split(line) for line in found]


@pytest.mark.parametrize("name", ["slurm.sbatch", "kubernetes.yaml"])
def test_the_command_of_a_cluster_parses(name: str) -> None:
    """With the file's own syntax: bash's, and a Job's arguments."""
    text = (FOLDER / "cluster" / name).read_text()
    if name.endswith(".yaml"):
        job = yaml.safe_load(text)
        assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
        (container,) = job["spec"]["template"]["spec"]["containers"]
        (script,) = container["args"]
    else:
        assert text.startswith("#!")
        script = text
    subprocess.run(["bash", "-n", "-c", script], check=True)
    ((command, *args),) = commands_of(script)
    context = fgkd_command.commands[command].make_context(
        command, args, parent=click.Context(fgkd_command)
    )
    assert context.params
