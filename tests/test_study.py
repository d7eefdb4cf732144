"""scripts/study.py on a miniature: every arm is trained, scored and compared."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_a_small_study(tiny_data: Path, tmp_path: Path) -> None:
    """Two seeds, an epoch each; what is there already is not trained again."""
    command = [sys.executable, "scripts/study.py", "--data", f"folder:{tiny_data}"]
    command += ["--output", str(tmp_path), "--epochs", "1", "--teacher-epochs", "1"]
    done = subprocess.run([*command, "--seeds", "0"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    again = subprocess.run([*command, "--seeds", "0,1"], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    found = json.loads((tmp_path / "study.json").read_text())
    arms = ("control", "offline", "live", "timm", "control-3x", "offline-3x")
    for arm in arms:
        assert len(found[arm]["top1_pct"]) == 2
        assert all(0 <= value <= 100 for value in found[arm]["agreement_pct"])
        assert f"{tmp_path / arm}-0 is finished" in again.stdout or arm == "timm"
    assert again.stdout.rstrip().endswith((tmp_path / "study.md").read_text().rstrip())
