"""A cache read by `fgkd/cache/FORMAT.md` alone: h5py, tarfile, json and NumPy, no code of ours."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xxhash

from fgkd.cache.writer import Writer

CLASSES, VIEWS, SAMPLES = 12, 3, 7


def make_cache(folder: Path, format: str, encoding: dict[str, Any], mixes: bool) -> np.ndarray:
    """Write a cache of random logits with our writer; returns them as [view, row, class]."""
    keys = [f"class.{i % 3}/img.{i}.png" for i in range(SAMPLES)]
    column = {
        "keys": keys,
        "labels": [i % 3 for i in range(SAMPLES)],
        "domains": [0] * SAMPLES,
        "sizes": [3] * SAMPLES,
        "hashes": ["00"] * SAMPLES,
    }
    identity = {
        "format_version": 2,
        "format": format,
        "encoding": encoding,
        "shard_size": 3,
        "views": {"recipe": {"mixup": float(mixes), "cutmix": 0.0}, "seed": 5, "img_size": 8},
        "dataset": {"classes": [f"c{i}" for i in range(CLASSES)], "domains": ["x"]},
        "train": column,
        "val": {**column, "keys": [f"val/{key}" for key in keys]},
    }
    logits = np.random.RandomState(0).randn(VIEWS, SAMPLES, CLASSES).astype(np.float32) * 4
    writer = Writer(folder, identity, VIEWS, lambda split, row: f"{split}{row:03d}".encode())
    writer.begin()
    for job in writer.jobs():
        rows = writer.block_rows[job.block]
        shape = (len(rows), VIEWS)
        partners, lams = np.broadcast_to(rows[:, None], shape), np.full(shape, 0.75, np.float32)
        mixing = (partners, lams, np.ones((*shape, 4), np.int16)) if mixes else ()
        digests = np.broadcast_to(rows[:, None].astype(np.uint64) + np.uint64(7), shape)
        captured = writer.captured(job)
        logits_BVC = logits[:, rows].swapaxes(0, 1)
        captured.put(np.arange(len(rows)), range(VIEWS), logits_BVC, digests, *mixing)
        writer.publish(captured)
    writer.publish_val(logits[0], [])
    assert writer.finish() is not None
    return logits


def read_shard(path: Path) -> tuple[dict[str, Any], list[str], dict[str, np.ndarray]]:
    """(header, keys, arrays) of a shard, by the page."""
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            arrays = {name: file[name][:] for name in file if name not in ("keys", "labels")}
            keys = [key.decode() for key in file["keys"][:]]
            return json.loads(file.attrs["header"]), keys, arrays
    with tarfile.open(path) as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    facts = json.loads(members["__header__"])
    names = {name.split(".", 1)[1] for name in members if name.endswith(".npy")}
    arrays = {
        name.removesuffix(".npy"): np.stack(
            [np.load(io.BytesIO(members[f"{row:08d}.{name}"])) for row in facts["rows"]], axis=1
        )
        for name in names
    }
    for row, key, label in zip(facts["rows"], facts["keys"], facts["labels"], strict=True):
        assert members[f"{row:08d}.cls"] == str(label).encode()
        assert json.loads(members[f"{row:08d}.json"])["key"] == key
        assert members[f"{row:08d}.png"] in (f"train{row:03d}".encode(), f"val{row:03d}".encode())
    return facts["header"], facts["keys"], arrays


def decode(encoding: dict[str, Any], arrays: dict[str, np.ndarray], t: float) -> np.ndarray:
    """Probabilities at temperature t, by the page."""
    if encoding["name"] == "topk":
        kept = np.exp(arrays["values"].astype(np.float64) / t)
        tail = np.exp(arrays["log_tail"][..., encoding["temperatures"].index(t)].astype(np.float64))
        z = kept.sum(-1) + tail
        rest = CLASSES - kept.shape[-1]
        out = np.repeat((tail / z / rest)[..., None], CLASSES, axis=-1)
        np.put_along_axis(out, arrays["indices"].astype(int), kept / z[..., None], -1)
        return out
    if encoding["name"] == "int8":
        logits = arrays["codes"] * arrays["scale"][..., None] + arrays["low"][..., None]
    else:
        logits = arrays["logits"]
    p = np.exp(logits.astype(np.float64) / t)
    return p / p.sum(-1, keepdims=True)


ENCODINGS = [
    {"name": "dense", "top_k": 0, "temperatures": []},
    {"name": "dense32", "top_k": 0, "temperatures": []},
    {"name": "int8", "top_k": 0, "temperatures": []},
    {"name": "topk", "top_k": 5, "temperatures": [1.0, 2.0]},
]


@pytest.mark.parametrize("mixes", [False, True])
@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda e: e["name"])
@pytest.mark.parametrize("format", ["hdf5", "webdataset"])
def test_page_suffices(tmp_path: Path, format: str, encoding: dict[str, Any], mixes: bool) -> None:
    logits = make_cache(tmp_path, format, encoding, mixes)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    canonical = json.dumps(
        manifest["identity"], sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    assert hashlib.sha256(canonical.encode()).hexdigest() == manifest["identity_sha256"]
    keys = manifest["identity"]["train"]["keys"]
    seen = []
    for row in manifest["shards"]:
        path = tmp_path / row["name"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == row["sha256"]
        assert path.stat().st_size == row["bytes"]
        header, shard_keys, arrays = read_shard(path)
        assert header["identity_sha256"] == manifest["identity_sha256"]
        at = [keys.index(key) for key in shard_keys]
        seen += at
        assert (arrays["digests"] == np.array(at) + 7).all()
        assert ("lams" in arrays) == mixes
        for t in (1.0, 2.0):
            true = np.exp(logits[row["start"] : row["stop"], at].astype(np.float64) / t)
            true /= true.sum(-1, keepdims=True)
            got = decode(encoding, arrays, t)
            np.testing.assert_allclose(got.sum(-1), 1, rtol=1e-5)
            if encoding["name"] != "topk":
                np.testing.assert_allclose(
                    got, true, atol=2e-2 if encoding["name"] == "int8" else 1e-3
                )
            else:
                kept = arrays["indices"].astype(int)
                np.testing.assert_allclose(
                    np.take_along_axis(got, kept, -1), np.take_along_axis(true, kept, -1), atol=1e-3
                )
    assert sorted(seen) == list(range(SAMPLES))
    _, val_keys, val = read_shard(tmp_path / manifest["val"]["name"])
    assert val_keys == manifest["identity"]["val"]["keys"]
    np.testing.assert_array_equal(val["logits"][0], logits[0])


def test_digest_by_the_page() -> None:
    from fgkd.views.transforms import pixel_digest

    image = np.arange(32 * 30 * 3, dtype=np.uint8).reshape(32, 30, 3)
    assert pixel_digest(image) == xxhash.xxh3_64(image.tobytes(), seed=32 * 2**32 + 30).intdigest()
    assert xxhash.xxh3_64_intdigest(b"") == 0x2D06800538D394C2  # as XXH3 is published
