"""The speed table of scripts/README.md: python scripts/bench.py [--json FILE].

Every ratio is of measurements taken in turn, and its spread is their quartiles. --quick runs it all
in seconds and measures nothing worth reading. --device cuda measures what a GPU decides, in
bfloat16: training and compute-bound capture.
"""

from __future__ import annotations

import argparse
import json
import os
import pkgutil
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import bench_cache
import bench_capture
import bench_growth
import bench_input
import bench_scale
import bench_start
import bench_train
import torch
from bench_common import Plan, Row

PARTS: dict[str, Any] = {
    "input": bench_input.rows,
    "train": bench_train.rows,
    "compute": bench_capture.compute_bound,
    "capture": bench_capture.rows,
    "cache": bench_cache.rows,
    "growth": bench_growth.rows,
    "scale": bench_scale.rows,
    "start": bench_start.rows,
}
ON_CUDA = ("train", "compute")


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures are of."""
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {
        "cpu": cpu[0].partition(": ")[2] if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load": os.getloadavg(),
    }


def line(row: Row) -> str:
    """What is measured; below it value, quartiles, bar and verdict."""
    value = "-" if row.value is None else f"{row.value:,.4g}"
    spread = f"[{row.spread[0]:,.4g}..{row.spread[1]:,.4g}]" if row.spread else ""
    bar = "" if row.bar is None else f"{'<=' if row.at_most else '>='} {row.bar:,.4g}"
    verdict = {True: "holds", False: "FAILS", None: ""}[row.holds]
    first = f"{row.what}  |  {row.against}"
    return f"{first}\n    {value:>12} {spread:<22} {bar:<14} {verdict:<6} {row.note}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="write the rows to this file")
    parser.add_argument("--quick", action="store_true", help="a smoke test of a few seconds")
    parser.add_argument("--only", choices=PARTS, action="append", help="one part of the table")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--workers", type=int, help="2, or beside a GPU the cores less two")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    workers = options.workers or (2 if options.device.type == "cpu" else (os.cpu_count() or 4) - 2)
    if options.child:
        folder, name, *args = options.child
        plan = Plan(Path(folder), False, options.device, workers)
        print(json.dumps(pkgutil.resolve_name(name)(plan, *args)))
        return
    began, facts, rows = time.monotonic(), machine(options.device), []
    with tempfile.TemporaryDirectory(prefix="fgkd-bench-") as folder:
        plan = Plan(Path(folder), options.quick, options.device, workers)
        for name in options.only or (PARTS if options.device.type == "cpu" else ON_CUDA):
            for row in PARTS[name](plan):
                print(line(row), flush=True)
                rows.append(row)
    failing = [row.what for row in rows if row.holds is False]
    print(f"\n{len(rows)} rows in {time.monotonic() - began:.0f} s, {len(failing)} below the bar")
    if options.json:
        report = {"machine": facts, "quick": options.quick, "rows": [r.to_dict() for r in rows]}
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
