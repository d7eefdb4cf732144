"""scripts/study.py on a miniature: every arm is trained, scored and compared."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "study.py"


def test_a_small_study(tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two seeds, an epoch each; what is there already is not trained again."""
    spec = importlib.util.spec_from_file_location("study", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    command = ["--data", f"folder:{tiny_data}", "--output", str(tmp_path)]
    command += ["--epochs", "1", "--teacher-epochs", "1", "--seeds"]
    study.main([*command, "0"], standalone_mode=False)
    capsys.readouterr()
    study.main([*command, "0,1"], standalone_mode=False)
    again = capsys.readouterr().out
    found = json.loads((tmp_path / "study.json").read_text())
    arms = ("baseline", "offline", "live", "timm", "baseline-3x", "offline-3x")
    for arm in arms:
        assert len(found[arm]["top1_pct"]) == 2
        assert all(0 <= value <= 100 for value in found[arm]["agreement_pct"])
        assert f"{tmp_path / arm}-0 is finished" in again or arm == "timm"
    assert again.rstrip().endswith((tmp_path / "study.md").read_text().rstrip())
