"""The speed table: every line of it is measured and has its shape; the figures are not judged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SECTION_6 = (
    *("student step from the cache", "student epoch from the cache", "input pipeline"),
    *("cache-logits, compute-bound", "cache read", "memory of stage two", "time of 10x samples"),
)


def test_a_quick_run_has_a_row_for_every_line_of_the_table(tmp_path: Path) -> None:
    """With a bar where the table has one, and a verdict where there is a bar."""
    report = tmp_path / "bench.json"
    command = [sys.executable, str(ROOT / "scripts/bench.py"), "--quick", "--json", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())
    assert found["machine"]["cores"] >= 1
    for line in SECTION_6:
        rows = [row for row in found["rows"] if row["what"].startswith(line)]
        assert any(row["bar"] is not None for row in rows), line
        assert all(row["what"] in done.stdout for row in rows)
    for row in found["rows"]:
        if row["bar"] is None:
            assert row["holds"] is None
        elif row["value"] is None:
            assert row["holds"] is False
        else:
            below = row["value"] <= row["bar"]
            assert row["holds"] == (below if row["at_most"] else row["value"] >= row["bar"])
        if row["spread"]:
            assert row["spread"][0] <= row["value"] <= row["spread"][1]
