"""`inspect --verify`: what holds passes, and every kind of damage or forgery is found."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers.failures import copy_data, exit_code, first_image
from helpers.runs import fgkd, tree

from fgkd import files
from fgkd.cache import encodings
from fgkd.distillation import verify
from fgkd.evaluation import inference

ENCODINGS = ("dense", "dense32", "int8", "topk", "topk8")


@pytest.fixture(scope="module")
def caches(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One cache of each encoding, of a float32 teacher, whose answers move with the batch."""
    root = tmp_path_factory.mktemp("caches")
    for name in ENCODINGS:
        options: tuple[object, ...] = ("--dtype", "float32", "--encoding", name, "--mixup", 0.5)
        options += ("--top-k", 3) if name.startswith("topk") else ()
        command = ("cache-logits", "-c", tiny_cache / "args.yaml", "--output", root / name)
        fgkd(*command, *options, "--shard-size", 50, "--batch-size", 32)
    return {name: root / name for name in ENCODINGS}


@pytest.fixture
def says(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run `inspect --verify`; its exit code and what it said."""

    def run(*args: object) -> tuple[int, str]:
        capsys.readouterr()
        code = exit_code("inspect", "--verify", *args)
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out + err

    return run


Says = Callable[..., tuple[int, str]]


def vouch(cache: Path, path: Path) -> None:
    """Make the manifest vouch for a file as it is now."""
    held = json.loads((cache / "manifest.json").read_text())
    for row in [*held["shards"], held["val"]]:
        if cache / row["name"] == path:
            row |= {"bytes": path.stat().st_size, "sha256": files.sha256(path)}
    files.write_json(cache / "manifest.json", held)


@pytest.mark.parametrize("name", ENCODINGS)
def test_the_true_teacher_passes(
    name: str, says: Says, caches: dict[str, Path], tiny_teacher: Path
) -> None:
    code, said = says("--teacher", tiny_teacher, caches[name])
    assert (code, said.count("verified: "), said.count("FAILED")) == (0, 1, 0), said
    assert "checked the sha256 of 3 shards" in said
    assert "rendered 128 views again: 0 differences" in said
    assert said.count("differ by") == 3  # two views, and the validation images


@pytest.mark.parametrize("val_dtype", ["bfloat16", "float32"])
def test_a_teacher_in_bfloat16_passes(
    val_dtype: str,
    says: Says,
    tiny_cache: Path,
    tiny_teacher: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where val is in float32, as older caches have it; a wrong target fails."""
    cache = tmp_path / "cache"
    if val_dtype == "float32":
        ask = inference.evaluate
        plain = {"amp_dtype": None, "compiled": None}
        monkeypatch.setattr(inference, "evaluate", lambda *args, **how: ask(*args, **how | plain))
    command = ("cache-logits", "-c", tiny_cache / "args.yaml", "--output", cache)
    fgkd(*command, "--dtype", "bfloat16", "--shard-size", 50, "--batch-size", 32)
    monkeypatch.undo()
    code, said = says("--teacher", tiny_teacher, cache)
    assert (code, said.count("verified: ")) == (0, 1), said
    shard = min((cache / "shards").iterdir())
    with h5py.File(shard, "a") as file:
        add("logits", 0.5)(file)
    vouch(cache, shard)
    assert says("--teacher", tiny_teacher, cache)[0] == 1


def test_a_cache_that_travelled_alone(
    says: Says, tiny_cache: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    """WebDataset shards hold the images: shards and teacher are enough, without the data."""
    cache = tmp_path / "cache"
    command = ("cache-logits", "-c", tiny_cache / "args.yaml", "--output", cache)
    fgkd(*command, "--format", "webdataset")
    (cache / "args.yaml").unlink()
    code, said = says("--teacher", tiny_teacher, cache)
    assert (code, said.count("verified: "), said.count("differ by")) == (0, 1, 3), said


@pytest.mark.parametrize("name", ["hdf5", "webdataset"])
@pytest.mark.parametrize("at", [0.1, 0.6, None])
def test_a_damaged_shard_is_named_and_its_remedy_rewrites_it_alone(
    name: str, at: float | None, says: Says, tiny_cache: Path, tmp_path: Path
) -> None:
    """One bit, or (at None) the end of the file; exit code 1, and 0 once the remedy was run."""
    cache = tmp_path / "cache"
    command = ("cache-logits", "-c", tiny_cache / "args.yaml", "--output", cache)
    fgkd(*command, "--format", name)
    before = tree(cache)
    shard = sorted((cache / "shards").iterdir())[3]
    raw = bytearray(shard.read_bytes())
    if at is None:
        del raw[-100:]
    else:
        raw[int(at * len(raw))] ^= 16
    shard.write_bytes(raw)
    code, said = says(cache)
    assert code == 1
    assert said.count("FAILED") == 1
    assert f"FAILED  shard {shard} is damaged: " in said
    assert "verified" not in said
    remedy = said.partition("Try: ")[2].splitlines()[0].partition("#")[0]
    remove, rewrite = remedy.split("&&")
    assert shlex.split(remove) == ["rm", "-f", str(shard)]
    times = {path: path.stat().st_mtime_ns for path in cache.glob("*/*") if path != shard}
    shard.unlink()
    fgkd(*shlex.split(rewrite)[1:])
    after = tree(cache)
    for file in before:
        if file.startswith(("shards/", "val/", "manifest")):
            assert after[file] == before[file], file
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert says(cache)[0] == 0


def add(name: str, by: float) -> Callable[[h5py.File], None]:
    """A forgery that adds to an array, at one class or row of each sample."""

    def change(file: h5py.File) -> None:
        array = file[name][:]
        array[..., 0] = (array[..., 0].astype(np.float64) + by).astype(array.dtype)
        file[name][:] = array

    return change


def other_classes(file: h5py.File) -> None:
    """What is kept is said to be of other classes."""
    file["indices"][:] = np.roll(file["indices"][:], 1, axis=-1)


def no_number(file: h5py.File) -> None:
    values = file["values"][:]
    values[..., -1] = np.nan
    file["values"][:] = values


FORGERIES: list[tuple[str, Callable[[h5py.File], None]]] = [
    ("dense", add("logits", 0.5)),
    ("dense32", add("logits", 0.01)),
    ("int8", add("low", 0.5)),
    ("int8", add("codes", 40)),
    ("topk", add("values", 0.5)),
    ("topk", add("log_tail", 0.5)),
    ("topk", other_classes),
    ("topk", no_number),
    ("topk8", add("gaps", 8)),
    ("topk8", add("tail_gaps", -8)),
    ("topk8", other_classes),
]


@pytest.mark.parametrize(("name", "forge"), FORGERIES)
def test_a_forgery_that_the_manifest_vouches_for(
    name: str,
    forge: Callable[[h5py.File], None],
    says: Says,
    caches: dict[str, Path],
    tiny_teacher: Path,
    tmp_path: Path,
) -> None:
    """Hashes and pixels agree; only the teacher knows."""
    cache = copy_data(caches[name], tmp_path / "cache")
    shard = sorted((cache / "shards").iterdir())[0]
    with h5py.File(shard, "a") as file:
        forge(file)
    vouch(cache, shard)
    assert says(cache)[0] == 0
    code, said = says("--teacher", tiny_teacher, cache)
    assert code == 1
    assert "FAILED  stored targets differ from the teacher's by" in said


def test_forged_validation_logits(
    says: Says, caches: dict[str, Path], tiny_teacher: Path, tmp_path: Path
) -> None:
    cache = copy_data(caches["int8"], tmp_path / "cache")
    with h5py.File(cache / "val/clean.h5", "a") as file:
        file["logits"][:] = np.roll(file["logits"][:], 1, axis=1)
    vouch(cache, cache / "val/clean.h5")
    assert says(cache)[0] == 0
    code, said = says("--teacher", tiny_teacher, cache)
    assert code == 1
    assert "FAILED  stored clean logits of val differ from the teacher's by" in said


def test_pixels(
    says: Says, tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another decoder would give other digests: each sample and view is named."""
    from fgkd.views import transforms

    real = transforms.render

    def shifted(*args: Any, **kwargs: Any) -> np.ndarray:
        return real(*args, **kwargs) ^ 1

    monkeypatch.setattr(transforms, "render", shifted)
    code, said = says("--samples", 3, tiny_cache)
    assert code == 1
    assert said.count("are not those the teacher saw") == 3 * 2


def test_data_that_moved(says: Says, tiny_cache: Path, tiny_data: Path, tmp_path: Path) -> None:
    """--data says where it lies now; without it, the error says how."""
    cache = copy_data(tiny_cache, tmp_path / "cache")
    data = copy_data(tiny_data, tmp_path / "data")
    assert says("--data", f"folder:{data}", cache)[0] == 0
    first_image(data).unlink()
    code, said = says("--data", f"folder:{data}", cache)
    assert (code, "FAILED" in said) == (1, True)
    (cache / "args.yaml").unlink()
    code, said = says(cache)
    assert code == 1
    assert str(cache / "args.yaml") in said


def test_several_caches(says: Says, caches: dict[str, Path], tmp_path: Path) -> None:
    """All are reported; one that fails decides the exit code."""
    broken = copy_data(caches["dense"], tmp_path / "broken")
    next((broken / "shards").iterdir()).unlink()
    report = tmp_path / "report.json"
    code, said = says(broken, caches["int8"], "--json", report)
    assert (code, said.count("verified: "), said.count("FAILED")) == (1, 1, 1)
    problems = [one["problems"] for one in json.loads(report.read_text())]
    assert (len(problems[0]), problems[1]) == (1, [])
    assert "it is missing" in problems[0][0]


def test_topk8_that_keeps_other_classes_than_the_top(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored is true of its classes, gaps and tail, but they are not the largest."""
    codec = encodings.Codec("topk8", 30, 3, (1.0,))
    logits = np.random.default_rng(0).normal(0, 2, (8, 30)).astype(np.float32)
    labels = logits.argmax(1)[:, None]
    true = codec.encode(logits, labels)
    assert verify._furthest_gap(codec, logits, true) <= 0.5 / encodings.CELLS + 1e-9

    def lesser(codec: encodings.Codec, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return np.sort(np.argsort(-logits, axis=-1)[..., [0, 10, 11, 12]], axis=-1)

    monkeypatch.setattr(encodings, "kept_classes", lesser)
    assert verify._furthest_gap(codec, logits, codec.encode(logits, labels)) > 0.1
