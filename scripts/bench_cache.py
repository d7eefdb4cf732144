"""Targets a second and bytes per view, against other ways to store them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from bench_common import Plan, Row, interleave, ratio, samples_of, write_cache

from fgkd.cache.reader import Reader
from fgkd.loading.epoch_targets import EpochTargets, Need

CLASSES, VIEWS, BATCH, TOP = 320, 8, 256, 100  # cache-logits' own default is 8 views


def per_sample_files(folder: Path, num: int) -> Callable[[np.ndarray], None]:
    """torchdistill's way: one torch.save a sample."""
    folder.mkdir()
    for i in range(num):
        torch.save({"logits": torch.randn(CLASSES)}, folder / f"{i}.pt")

    def read(rows: np.ndarray) -> None:
        torch.stack([torch.load(folder / f"{i}.pt", weights_only=True)["logits"] for i in rows])

    return read


def image_files(folder: Path, num: int) -> Callable[[np.ndarray], None]:
    """FKD's way: a file per image with the crops, flips and top-5 soft labels of all its views."""
    folder.mkdir()
    for i in range(num):
        views = [torch.rand(VIEWS, 4), torch.rand(VIEWS) < 0.5, torch.rand(VIEWS, 2, 5).half()]
        torch.save(views, folder / f"{i}.tar")

    def read(rows: np.ndarray) -> None:
        for i in rows:
            _, _, soft = torch.load(folder / f"{i}.tar", weights_only=True)
            index, value = soft[0].float()
            dense = torch.full((CLASSES,), 1e-4)
            dense[index.long()] = value

    return read


def sparse_records(path: Path, num: int) -> Callable[[np.ndarray], None]:
    """TinyViT's way: one binary file of records, each a seed and top-k pairs."""
    kind = np.dtype([("seed", "<i4"), ("index", "<i2", TOP), ("value", "<f2", TOP)])
    draw = np.random.default_rng(0)
    records = np.zeros(num, kind)
    records["index"] = draw.integers(0, CLASSES, (num, TOP))
    records["value"] = draw.random((num, TOP))
    path.write_bytes(records.tobytes())

    def read(rows: np.ndarray) -> None:
        dense = []
        with open(path, "rb") as file:
            for i in rows.tolist():
                file.seek(i * kind.itemsize)
                record = np.frombuffer(file.read(kind.itemsize), kind)[0]
                rest = (1.0 - float(record["value"].sum())) / (CLASSES - TOP)
                logits = torch.full((CLASSES,), rest)
                logits[torch.from_numpy(record["index"].astype(np.int64))] = torch.from_numpy(
                    record["value"].astype(np.float32)
                )
                dense.append(logits)
        torch.stack(dense)

    return read


def rows(plan: Plan) -> list[Row]:
    """The cache's lines of the table, and the rivals' figures for comparison."""
    num, few = plan.pick(100_000, 300), plan.pick(4096, 64)
    samples = samples_of(plan.folder / "photos/tiny", num, 4, 48, 48)
    cache = write_cache(plan.folder / "dense", samples, VIEWS, CLASSES, 32, digests=False)
    reader = Reader(cache)
    order = np.random.default_rng(0).permutation(num)

    def ours() -> float:
        """An epoch's targets: read from the shards, then batches of float32 tensors."""
        clock = time.perf_counter()
        batches = [order[start : start + BATCH] for start in range(0, num, BATCH)]
        with contextlib.closing(EpochTargets(reader)) as targets:
            targets.plan(Need(step, 1, rows_B) for step, rows_B in enumerate(batches))
            for step, rows_B in enumerate(batches):
                logits_BK = reader.codec.decode({"logits": targets.of(step, rows_B)["logits"]})
                torch.from_numpy(logits_BK)
        return (time.perf_counter() - clock) / num

    def timed(read: Callable[[np.ndarray], None]) -> Callable[[], float]:
        shuffled = np.random.default_rng(1).permutation(few)

        def measure() -> float:
            clock = time.perf_counter()
            for start in range(0, few, BATCH):
                read(shuffled[start : start + BATCH])
            return (time.perf_counter() - clock) / few

        return measure

    measures = {
        "ours": ours,
        "a torch.save file per sample (torchdistill)": timed(
            per_sample_files(plan.folder / "samples", few)
        ),
        "a file per image with all views (FKD)": timed(image_files(plan.folder / "images", few)),
        "seeds and top-100 records (TinyViT)": timed(
            sparse_records(plan.folder / "records.bin", few)
        ),
    }
    found = interleave(measures, plan.pick(5, 1))
    own = 1 / found["ours"]
    quartiles = (float(np.percentile(own, 25)), float(np.percentile(own, 75)))
    bytes_a_view = reader.num_bytes / num / VIEWS
    out = [
        Row(
            *("cache read, targets per second", "320 classes dense", float(np.median(own)), 1e6),
            *(False, quartiles, "a view and float32 batches, in one thread, files in memory"),
        ),
        Row(
            *("cache size, bytes per view", "2C + 16", bytes_a_view, 2 * CLASSES + 16, True),
            note=f"{VIEWS} views per sample; keys and labels included",
        ),
    ]
    sizes = {
        "torchdistill": sum(f.stat().st_size for f in os.scandir(plan.folder / "samples")) / few,
        "FKD": sum(f.stat().st_size for f in os.scandir(plan.folder / "images")) / few / VIEWS,
        "TinyViT": (plan.folder / "records.bin").stat().st_size / few,
    }
    for name in list(measures)[1:]:
        value, spread = ratio(found[name], found["ours"])
        size = next(size for short, size in sizes.items() if short in name)
        note = f"{1 / np.median(found[name]):,.0f} targets/s, {size:,.0f} bytes per view"
        out.append(Row("cache read, times as fast as", name, value, None, False, spread, note))
    return out
