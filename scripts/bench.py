"""The speed table of README, as ratios in one run: python scripts/bench.py [--json FILE].

Every ratio is of measurements taken in turn, and its spread is their quartiles. --quick runs it all
in seconds and measures nothing worth reading.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import bench_cache
import bench_capture
import bench_growth
import bench_input
import bench_start
import bench_train
import torch
from bench_common import Plan, Row

PARTS: dict[str, Any] = {
    "input": bench_input.rows,
    "train": bench_train.rows,
    "capture": bench_capture.rows,
    "cache": bench_cache.rows,
    "growth": bench_growth.rows,
    "start": bench_start.rows,
}
CHILDREN = {
    "epoch": bench_train.peak_memory,
    "compute": bench_capture.measure_compute,
    "capture": bench_capture.peak_memory,
    "memory": bench_growth.peak_memory,
}


def machine() -> dict[str, Any]:
    """What the figures are of."""
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {
        "cpu": cpu[0].partition(": ")[2] if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load": os.getloadavg(),
    }


def table(rows: list[Row]) -> str:
    """One line a row: value, quartiles, bar, verdict."""
    out = []
    for row in rows:
        value = "-" if row.value is None else f"{row.value:,.4g}"
        spread = f"[{row.spread[0]:,.4g}..{row.spread[1]:,.4g}]" if row.spread else ""
        bar = "" if row.bar is None else f"{'<=' if row.at_most else '>='} {row.bar:,.4g}"
        verdict = {True: "holds", False: "FAILS", None: ""}[row.holds]
        out.append(f"{row.what}  |  {row.against}")
        out.append(f"    {value:>12} {spread:<22} {bar:<14} {verdict:<6} {row.note}")
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="write the rows to this file")
    parser.add_argument("--quick", action="store_true", help="a smoke test of a few seconds")
    parser.add_argument("--only", choices=PARTS, action="append", help="one part of the table")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(CHILDREN[options.child[0]](*options.child[1:])))
        return
    began, facts, rows = time.monotonic(), machine(), []
    with tempfile.TemporaryDirectory(prefix="fgkd-bench-") as folder:
        for name in options.only or PARTS:
            found = PARTS[name](Plan(Path(folder), options.quick))
            print(table(found), flush=True)
            rows += found
    failing = [row.what for row in rows if row.holds is False]
    print(f"\n{len(rows)} rows in {time.monotonic() - began:.0f} s, {len(failing)} below the bar")
    if options.json:
        report = {"machine": facts, "quick": options.quick, "rows": [r.to_dict() for r in rows]}
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
