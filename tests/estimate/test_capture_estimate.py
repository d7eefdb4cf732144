"""`cache-logits --dry-run`: what it foretells is what is then written, and it writes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.failures import exit_code
from helpers.runs import fgkd, tree

from fgkd.config.specs import ENCODING_NAMES, FORMAT_NAMES

TOPK = ("--top-k", 3, "--temperatures", "1,2")


def capture(cache: Path, output: Path, *more: object) -> tuple[object, ...]:
    """The capture of a cache into another folder."""
    return ("cache-logits", "-c", cache / "args.yaml", "--output", output, *more)


def plan(tmp_path: Path, *command: object) -> dict[str, Any]:
    """The report of a dry run, which tells of all encodings; topk of 3 of the 8 classes."""
    path = tmp_path / "plan.json"
    fgkd(*command, *TOPK, "--dry-run", "--json", path)
    report: dict[str, Any] = json.loads(path.read_text())
    return report


def shard_bytes(cache: Path) -> int:
    return sum(path.stat().st_size for path in (cache / "shards").iterdir())


@pytest.mark.parametrize("mix", [(), ("--mixup", 0.2)], ids=["plain", "mixed"])
@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_bytes_of_every_encoding(
    name: str, mix: tuple[object, ...], tiny_cache: Path, tmp_path: Path
) -> None:
    """Within 2 %, whichever encoding the dry run was asked for."""
    output = tmp_path / "cache"
    command = capture(tiny_cache, output, "--format", name, *mix)
    report = plan(tmp_path, *command)
    assert not output.exists()
    assert list(report["encodings"]) == list(ENCODING_NAMES)
    for encoding in ENCODING_NAMES:
        topk = TOPK if encoding.startswith("topk") else ()
        fgkd(*command, "--encoding", encoding, *topk, "--overwrite")
        assert report["encodings"][encoding]["bytes"] == pytest.approx(
            shard_bytes(output), rel=0.02
        )
    assert plan(tmp_path, *command, "--encoding", encoding)["encodings"] == report["encodings"]


def test_the_report(tiny_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its keys and what they mean; the text says the same."""
    report = plan(tmp_path, *capture(tiny_cache, tmp_path / "a/b/cache"))
    out = capsys.readouterr().out
    assert not (tmp_path / "a").exists()  # no folder, no identity.json
    assert set(report) == {
        *("samples", "views", "encodings", "images_per_s", "hours", "free_bytes"),
        *("memory_bytes", "flops_per_view", "image_store_bytes"),
    }
    assert (report["samples"], report["views"]) == (97, 2)
    for of_one in report["encodings"].values():
        assert of_one["bytes_per_view"] == of_one["bytes"] / (97 * 2)
    assert report["images_per_s"] > 0
    assert 0 < report["hours"] < 0.1
    assert report["free_bytes"] > 0
    assert "dry run: 194 targets to write, nothing was written" in out
    assert f"at {tmp_path}" in out
    assert "<- chosen" in next(line for line in out.splitlines() if "  dense32 " in line)


def test_a_cache_that_is_there_is_not_touched(tiny_cache: Path, tmp_path: Path) -> None:
    """A plan to grow it counts what is missing; of a complete one, there is nothing left."""
    cache = tmp_path / "cache"
    fgkd(*capture(tiny_cache, cache))
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    files = tree(cache)
    grown = plan(tmp_path, *capture(tiny_cache, cache, "--views", 5))
    done = plan(tmp_path, *capture(tiny_cache, cache))
    part = plan(tmp_path, *capture(tiny_cache, cache, "--shard-range", "1:2"))
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before
    assert tree(cache) == files
    for report in (done, part):
        assert (report["hours"], report["images_per_s"]) == (0, 0)
        assert report["encodings"]["dense32"]["bytes"] == pytest.approx(
            shard_bytes(cache), rel=0.02
        )
    assert grown["views"] == 5
    fgkd(*capture(tiny_cache, cache, "--views", 5))
    assert grown["encodings"]["dense32"]["bytes"] == pytest.approx(shard_bytes(cache), rel=0.02)


def test_what_a_capture_refuses_a_plan_refuses(tiny_cache: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    fgkd(*capture(tiny_cache, cache))
    assert exit_code(*capture(tiny_cache, cache, "--seed", 5, "--dry-run")) == 1
    assert exit_code(*capture(tiny_cache, cache, "--shard-range", "4:9", "--dry-run")) == 1


def test_what_the_teacher_takes(tiny_cache: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    """Its weights, in the number type of the cache, and more with the batch; FLOPs do not."""
    state = torch.load(tiny_teacher / "checkpoints/best.pt", weights_only=True)["model"]
    model = sum(t.numel() for t in state.values()) + 6  # the mean and std of the pixels
    one, two, single = (
        plan(tmp_path, *capture(tiny_cache, tmp_path / "c", *more))
        for more in (("--batch-size", 8), ("--batch-size", 16), ("--dtype", "float32"))
    )
    assert two["memory_bytes"] - 8 * model == 2 * (one["memory_bytes"] - 8 * model) > 0
    assert one["flops_per_view"] == two["flops_per_view"] == single["flops_per_view"] > 0
    assert single["memory_bytes"] > 4 * model


@pytest.mark.parametrize("mix", [(), ("--mixup", 0.2)], ids=["plain", "mixed"])
def test_before_there_is_a_teacher(
    mix: tuple[object, ...], tiny_data: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    """The bytes by the formulas are those that are planned with one, but for keys and headers."""
    data = ("--data", f"folder:{tiny_data}", "--views", 200, *mix)
    topk = ("--top-k", 3, "--temperatures", "1,2", "--encoding", "topk")
    command = ("cache-logits", *data, *topk, "--output", tmp_path / "c")
    absent = plan(tmp_path, *command, "--teacher", tmp_path / "absent")
    there = plan(tmp_path, *capture(tiny_cache, tmp_path / "c", "--views", 200, *mix))
    assert set(absent) == set(there)
    assert absent["hours"] is absent["memory_bytes"] is None
    for name, planned in there["encodings"].items():
        assert absent["encodings"][name]["bytes"] == pytest.approx(planned["bytes"], rel=0.1)
        assert absent["encodings"][name]["bytes"] < planned["bytes"]
    assert not (tmp_path / "c").exists()
