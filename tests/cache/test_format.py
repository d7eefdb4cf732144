"""A cache read as FORMAT.md describes it, with h5py, tarfile, json and NumPy and without fgkd."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import tarfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xxhash

from fgkd.cache import samples_file
from fgkd.cache.identity import (
    DatasetIdentity,
    EncodingIdentity,
    Identity,
    TeacherIdentity,
    ViewIdentity,
)
from fgkd.cache.samples import HASH_TYPE, SampleTable
from fgkd.cache.writer import Writer
from fgkd.data.keys import Keys
from fgkd.views.recipes import ViewRecipe

CLASSES, VIEWS, SAMPLES = 12, 3, 7


def make_cache(folder: Path, format: str, encoding: EncodingIdentity, mixes: bool) -> np.ndarray:
    """Write a cache of random logits with our writer; returns them as [view, row, class]."""
    zeros, sizes = np.zeros(SAMPLES, np.int64), np.full(SAMPLES, 3)
    hashes = np.array(["00" * 16, *[""] * (SAMPLES - 1)], HASH_TYPE)
    keys = [f"class.{i % 3}/ümg.{i}.png" for i in range(SAMPLES)]
    boxes = np.arange(1.0, 1 + 4 * SAMPLES).reshape(SAMPLES, 4) if mixes else None
    labels = np.arange(SAMPLES) % 3 - (np.arange(SAMPLES) == 4) * 2
    train = SampleTable(Keys.of(keys), labels, zeros, sizes, hashes, boxes)
    val = SampleTable(Keys.of(f"val/{key}" for key in keys), labels, zeros, sizes, hashes)
    tables = {"train": train, "val": val}
    recipe = ViewRecipe(mixup=float(mixes), bbox_crop=mixes)
    identity = Identity(
        format=format,
        encoding=encoding,
        shard_size=3,
        dtype="float32",
        teachers=(TeacherIdentity("made up", "00" * 32, 8, (0.5,) * 3, (0.5,) * 3),),
        ensemble=None,
        views=ViewIdentity(recipe, seed=5, img_size=8),
        dataset=DatasetIdentity("x", tuple(f"c{i}" for i in range(CLASSES)), ("x",), False, 0.1),
        samples_sha256=samples_file.fingerprint(tables),
    )
    logits = np.random.RandomState(0).randn(VIEWS, SAMPLES, CLASSES).astype(np.float32) * 4
    writer = Writer(folder, identity, tables, VIEWS, lambda s, row: f"{s}{row:03d}".encode())
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


def read_samples(path: Path, split: str) -> dict[str, Any]:
    """The columns of a split, by the page."""
    with h5py.File(path) as file:
        columns: dict[str, Any] = {name: array[:] for name, array in file[split].items()}
    text, ends = columns["keys"].tobytes(), columns.pop("key_offsets")
    columns["keys"] = [text[a:b].decode() for a, b in itertools.pairwise(ends)]
    return columns


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
        said = json.loads(members[f"{row:08d}.json"])
        assert (said["key"], said["label"]) == (key, label)
        assert said.get("box") in (None, [4.0 * row + i for i in range(1, 5)])
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
    if encoding["name"] == "topk8":
        at = encoding["temperatures"].index(t)
        rest = np.exp(-np.expm1((arrays["tail_gaps"][..., at] + 0.5) / 40) / t)
        kept = np.exp(-np.expm1((arrays["gaps"] + 0.5) / 40) / t)
        kept = np.concatenate([np.ones_like(kept[..., :1]), kept], axis=-1)
        out = np.repeat(rest[..., None], CLASSES, axis=-1)
        np.put_along_axis(out, arrays["indices"].astype(int), kept, -1)
        return out / out.sum(-1, keepdims=True)
    if encoding["name"] == "int8":
        logits = arrays["codes"] * arrays["scale"][..., None] + arrays["low"][..., None]
    else:
        logits = arrays["logits"]
    p = np.exp(logits.astype(np.float64) / t)
    return p / p.sum(-1, keepdims=True)


ENCODINGS = [
    *map(EncodingIdentity, ("dense", "dense32", "int8")),
    EncodingIdentity("topk", 5, (1.0, 2.0)),
    EncodingIdentity("topk8", 5, (1.0, 2.0)),
]


def samples_sha256(path: Path) -> str:
    """As FORMAT.md says, by h5py alone."""
    content = b""
    with h5py.File(path) as file:
        for split in ("train", "val"):
            for name in sorted(file[split]):
                column = file[split][name][...]
                shape = ",".join(str(n) for n in column.shape)
                content += f"{split}/{name} {column.dtype.str} {shape}\n".encode()
                content += column.tobytes()
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("mixes", [False, True])
@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda e: e.name)
@pytest.mark.parametrize("format", ["hdf5", "webdataset"])
def test_the_page_suffices(
    tmp_path: Path, format: str, encoding: EncodingIdentity, mixes: bool
) -> None:
    logits = make_cache(tmp_path, format, encoding, mixes)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    canonical = json.dumps(
        manifest["identity"], sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    assert hashlib.sha256(canonical.encode()).hexdigest() == manifest["identity_sha256"]
    described, samples = manifest["identity"], tmp_path / "samples.h5"
    assert described["format_version"] == 3
    assert described == json.loads((tmp_path / "identity.json").read_text())
    assert samples_sha256(samples) == described["samples_sha256"]
    train = read_samples(samples, "train")
    keys = train["keys"]
    assert keys[2] == "class.2/ümg.2.png"
    assert train["labels"].tolist() == [0, 1, 2, 0, -1, 2, 0]
    assert train["sizes"].tolist() == [3] * SAMPLES
    assert train["domains"].tolist() == [0] * SAMPLES
    assert train["hashes"].tolist() == [b"0" * 32, *[b""] * (SAMPLES - 1)]
    assert ("boxes" in train) == mixes
    assert not mixes or train["boxes"][1].tolist() == [5, 6, 7, 8]
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
            got = decode(described["encoding"], arrays, t)
            np.testing.assert_allclose(got.sum(-1), 1, rtol=1e-5)
            if not encoding.top_k:
                np.testing.assert_allclose(
                    got, true, atol=2e-2 if encoding.name == "int8" else 1e-3
                )
            else:
                kept = arrays["indices"].astype(int)
                np.testing.assert_allclose(
                    *(np.take_along_axis(p, kept, -1) for p in (got, true)),
                    atol=1e-3 if encoding.name == "topk" else 1e-2,
                )
    assert sorted(seen) == list(range(SAMPLES))
    _, val_keys, val = read_shard(tmp_path / manifest["val"]["name"])
    assert val_keys == read_samples(samples, "val")["keys"]
    np.testing.assert_array_equal(val["logits"][0], logits[0])


def test_digest_by_the_page() -> None:
    from fgkd.views.transforms import pixel_digest

    image = np.arange(32 * 30 * 3, dtype=np.uint8).reshape(32, 30, 3)
    assert pixel_digest(image) == xxhash.xxh3_64(image.tobytes(), seed=32 * 2**32 + 30).intdigest()
    assert xxhash.xxh3_64_intdigest(b"") == 0x2D06800538D394C2  # as XXH3 is published
