"""What a command costs before and after its work: whole commands of one step each."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
from bench_common import ROOT, Plan, Row, interleave, photo

TEACHER = "depths=[1,1,1,1],dims=[8,8,8,8],patch_size=2"
STUDENT = "patch_size=8,embed_dim=24,depth=1,num_heads=2"
LIMIT = "import timm alone"


def rows(plan: Plan) -> list[Row]:
    """Seconds from the shell's prompt to the next one, beside the import that none can avoid."""
    images, out = plan.folder / "few", plan.folder / "started"
    for i in range(32):
        path = images / f"train/{i % 2}/{i:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo(i, 48, 48))
    teacher, cache, student = out / "teacher", out / "cache", out / "student"
    small = ("--img-size", 32, "--epochs", 1, "--batch-size", 32, "--workers", 0, "--overwrite")
    stages: dict[str, tuple[object, ...]] = {
        "train-teacher": (
            *("--data", f"folder:{images}", "--model", "convnext_atto", "--output", teacher),
            *("--model-kwargs", TEACHER, *small),
        ),
        "cache-logits": (
            *("--teacher", teacher, "--output", cache, "--views", 1, "--workers", 0, "--overwrite"),
        ),
        "train-student": (
            *("--cache", cache, "--model", "deit_tiny_distilled_patch16_224", "--output", student),
            *("--model-kwargs", STUDENT, *small),
        ),
        "evaluate": (student, "--split", "val", "--workers", 0),
        "inspect": (cache,),
        "--help": (),
    }
    measures = {LIMIT: called("-c", "import timm")}
    for name, arguments in stages.items():
        measures[name] = called("-m", "stages", name, *arguments)
        measures[name]()  # what the next one needs
    took = interleave(measures, plan.pick(5, 1))
    limit = float(np.median(took[LIMIT]))
    found = []
    for name in stages:
        low, middle, high = np.percentile(took[name], [25, 50, 75]).tolist()
        bar = 0.3 if name == "--help" else None
        note = "" if bar else f"one batch, start to exit; {LIMIT} and exit: {limit:.2f} s"
        found.append(Row(f"fgkd {name}, s", "", middle, bar, True, (low, high), note))
    return found


def called(*arguments: object) -> Callable[[], float]:
    """Seconds of a Python process with these arguments."""
    command = [sys.executable, *map(str, arguments)]

    def measure() -> float:
        clock = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}:\n{done.stderr[-2000:]}")
        return time.perf_counter() - clock

    return measure
