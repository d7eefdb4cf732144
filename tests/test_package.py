"""The wheel: what it installs, under which names, and that the installed command works."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what pip installs, built from a copy of the checkout."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("fgkd", "stages"):
        skipped = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=skipped)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", out, source], check=True)
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(out / "site")
    return out / "site"


def files(folder: Path, *but: str) -> set[str]:
    """Files below a folder, by relative path."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(p) for p in paths if "__pycache__" not in p.parts and p.suffix not in but}


def test_all_of_the_library_and_nothing_else_is_installed(site: Path) -> None:
    library, commands = files(ROOT / "fgkd"), files(ROOT / "stages")
    installed = {path for path in files(site) if not path.startswith("fgkd-")}
    wanted = {f"fgkd/{path}" for path in library} | {f"fgkd/stages/{path}" for path in commands}
    documents = {path for path in wanted if path.endswith(".md")}
    assert installed <= wanted
    assert wanted - documents <= installed
    assert "fgkd/py.typed" in installed


def test_the_installed_command_runs(site: Path, tmp_path: Path) -> None:
    code = (
        "import fgkd, fgkd.stages.cli as cli, importlib.util\n"
        f"assert fgkd.__file__.startswith({str(site)!r}), fgkd.__file__\n"
        "assert importlib.util.find_spec('stages') is None\n"
        "cli.main(['inspect', 'nowhere'])"
    )
    env = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert found.returncode == 1, found.stderr
    assert "error: " in found.stderr
    assert "Traceback" not in found.stderr


def test_requirements_pin_every_dependency_and_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [one for extra in project["optional-dependencies"].values() for one in extra]
    pinned = (ROOT / "requirements.txt").read_text().lower()
    for one in [*project["dependencies"], *extras]:
        assert f"\n{one.partition('>=')[0].lower()}==" in f"\n{pinned}", one
