"""scripts/recode_cache.py: a cache in another encoding is what cache-logits would have written."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from helpers.caches import encoding_of, open_writer, publish, tree, val_logits, write_cache
from helpers.runs import fgkd

from fgkd import open_cache

SCRIPTS = Path(__file__).parent.parent / "scripts"
TRUNCATED = ("--top-k", "2", "--temperatures", "1,2")
Recode = Callable[..., Result]


@pytest.fixture
def recode(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recode]:
    """The script with these arguments."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    main = importlib.import_module("recode_cache").main
    yield lambda *given: CliRunner().invoke(main, [str(one) for one in given])
    sys.modules.pop("recode_cache", None)


@pytest.mark.parametrize("format", ["hdf5", "webdataset"])
@pytest.mark.parametrize("name", ["dense", "int8", "topk8"])
def test_equal_bytes(name: str, format: str, recode: Recode, tmp_path: Path) -> None:
    """From float32 logits, in both formats."""
    source = write_cache(tmp_path / "source", format=format, encoding=encoding_of("dense32"))
    direct = write_cache(tmp_path / "direct", format=format, encoding=encoding_of(name))
    how = TRUNCATED if name == "topk8" else ()
    done = recode(source, tmp_path / "recoded", "--encoding", name, *how)
    assert done.exit_code == 0, done.output
    assert tree(tmp_path / "recoded") == tree(direct)


def test_images_that_could_not_be_read(recode: Recode, tmp_path: Path) -> None:
    """They are left out of the new cache too, and what a killed run had written is kept."""
    left_out, sources = "train/é 5.jpg", {}
    for name in ("dense32", "topk8"):
        writer = open_writer(tmp_path / name, 3, encoding=encoding_of(name))
        for job in writer.jobs():
            of_block = [writer.samples["train"].keys[row] for row in writer.block_rows[job.block]]
            publish(writer, job, [left_out] if left_out in of_block else [])
        writer.publish_val(val_logits(), [])
        writer.finish()
        sources[name] = open_cache(tmp_path / name)
    out, how = tmp_path / "recoded", ("--encoding", "topk8", *TRUNCATED)
    assert recode(tmp_path / "dense32", out, *how).exit_code == 0
    first = sorted((out / "shards").iterdir())[0]
    (out / "manifest.json").unlink()
    first.unlink()
    assert recode(tmp_path / "dense32", out, *how).exit_code == 0
    found = open_cache(out)
    assert found.unreadable_keys == {left_out}
    rows = [i for i, key in enumerate(found.samples["train"].keys) if key != left_out]
    for view in range(3):
        a, b = (one.arrays_of_view(view) for one in (found, sources["topk8"]))
        assert all((a[name][rows] == b[name][rows]).all() for name in b)
        row = found.samples["train"].keys.index(left_out)
        assert not found.arrays_of_view(view)["digests"][row]


def test_mixed_views_of_a_teacher(recode: Recode, tiny_teacher: Path, tmp_path: Path) -> None:
    """Shards are those that cache-logits writes, and a student finds the data by its options."""
    make = ("cache-logits", "--teacher", tiny_teacher, "--views", 2, "--workers", 0)
    make += ("--mixup", 0.5, "--output")
    fgkd(*make, tmp_path / "dense32", "--encoding", "dense32")
    fgkd(*make, tmp_path / "direct", "--encoding", "topk8", *TRUNCATED)
    how = ("--encoding", "topk8", *TRUNCATED)
    assert recode(tmp_path / "dense32", tmp_path / "recoded", *how).exit_code == 0
    assert tree(tmp_path / "recoded") == tree(tmp_path / "direct")
    fgkd("cache-logits", "-c", tmp_path / "recoded/args.yaml", "--output", tmp_path / "recoded")


def test_refusals(recode: Recode, tmp_path: Path) -> None:
    write_cache(tmp_path / "topk8", encoding=encoding_of("topk8"))
    write_cache(tmp_path / "dense")
    done = recode(tmp_path / "topk8", tmp_path / "out", "--encoding", "int8")
    assert (done.exit_code, "topk8" in done.output) == (1, True)
    done = recode(tmp_path / "none", tmp_path / "out", "--encoding", "int8")
    assert (done.exit_code, str(tmp_path / "none") in done.output) == (1, True)
    done = recode(tmp_path / "dense", tmp_path / "topk8", "--encoding", "int8")
    assert (done.exit_code, "topk8" in done.output) == (1, True)
    for given, fact in (
        (("int8", "--top-k", 2), "int8"),
        (("int8", "--temperatures", "1"), "int8"),
        (("topk", "--temperatures", "1,x"), "'1,x'"),
        (("topk", "--temperatures", "0"), "'0'"),
        (("topk", "--temperatures", "nan"), "'nan'"),
        (("topk", "--top-k", 0), "0"),
        (("none",), "'none'"),
    ):
        done = recode(tmp_path / "dense", tmp_path / "out", "--encoding", *given)
        assert (done.exit_code, fact in done.output) == (2, True)
    assert not (tmp_path / "out").exists()
