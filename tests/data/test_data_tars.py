"""Tars as a data set: what WebDataset writes is read back; what strangers write is explained."""

from __future__ import annotations

import gc
import io
import shutil
import tarfile
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from helpers.datasets import (
    TAR_NAMES,
    TAR_SIZES,
    encode,
    open_error,
    pixels,
    write_cub,
    write_tars,
)
from helpers.hostile import FUZZ, explained, frugal
from helpers.runs import STUDENT, TEACHER, assert_same_run, fgkd, rows
from helpers.shard_server import serve
from hypothesis import given
from hypothesis import strategies as st

from fgkd.data import DATASETS, open_dataset
from fgkd.data.decoding import decode_rgb
from fgkd.errors import (
    DatasetError,
    DownloadError,
    FgkdError,
    MissingDataset,
    OptionError,
    UnreadableFile,
)

Members = list[tuple[str, bytes]]


def write_tar(path: Path, members: Members, format: int = tarfile.GNU_FORMAT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def read_plainly(urls: list[str]) -> list[dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # WebDataset leaves its files open
        found = list(webdataset.WebDataset(urls, shardshuffle=False))
        gc.collect()
    return found


PNG = encode(pixels(0, 0), "PNG")


@pytest.mark.parametrize("names", [True, False])
def test_what_webdataset_wrote(tmp_path: Path, names: bool) -> None:
    write_tars(tmp_path, names)
    dataset = DATASETS["webdataset"](tmp_path)
    assert dataset.classes == (list(TAR_NAMES) if names else ["0", "1", "2"])
    for split, per_class in TAR_SIZES.items():
        samples = dataset.splits[split]
        urls = [str(path) for path in sorted(tmp_path.glob(f"{split}-*.tar"))]
        assert len(urls) == -(-3 * per_class // 4)
        for i, plain in enumerate(read_plainly(urls)):
            kind = next(k for k in plain if k in ("png", "jpg", "webp"))
            tar = Path(plain["__url__"]).name
            assert samples.keys[i] == f"{tar}/{plain['__key__']}.{kind}"
            assert samples.labels[i] == int(plain["cls"])
            assert samples.read(i) == plain[kind]
            assert samples.size(i) == len(plain[kind])
            assert decode_rgb(samples.read(i), samples.keys[i]).shape == (30, 40, 3)
        assert i == len(samples) - 1
        assert samples.take(np.array([1])).read(0) == samples.read(1)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_kind_of_tar(tmp_path: Path, format: int) -> None:
    """Long names, names that are not ASCII, folders; stems end at their first dot."""
    long = "d" * 90 + "/" + "n" * 80
    stems = ["a", "./b", "é", long, "c"]
    members = [("x.y.jpg", b"no image of ours"), ("README", b""), ("c.CLS", b" 3\n")]
    members += [(f"{stem}.cls", b"7") for stem in stems[:-1]]
    members += [(f"{stem}.png", PNG + stem.encode()) for stem in stems[:-1]]
    members += [("c.JPEG", PNG + b"c")]
    write_tar(tmp_path / "train-0.tar", members, format)
    with tarfile.open(tmp_path / "train-0.tar", "a", format=format) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    dataset = DATASETS["webdataset"](tmp_path)
    assert dataset.classes == ["3", "7"]
    train = dataset.splits["train"]
    by_key = {key: train.read(i) for i, key in enumerate(train.keys)}
    assert by_key == {
        f"train-0.tar/{s}.{'jpeg' if s == 'c' else 'png'}": PNG + s.encode() for s in stems
    }
    labels = dict(zip(train.keys, train.labels.tolist(), strict=True))
    assert labels["train-0.tar/c.jpeg"] == 0
    assert set(labels.values()) == {0, 1}


def test_a_union_of_tars_and_files(tmp_path: Path) -> None:
    write_tars(tmp_path / "tars")
    write_cub(tmp_path / "cub")
    specs = [f"cub:{tmp_path}/cub", f"webdataset:{tmp_path}/tars"]
    both, alone = open_dataset(specs), [open_dataset([spec]) for spec in specs]
    for split, samples in both.splits.items():
        parts = [d.splits[split] for d in alone]
        want = [part.read(i) for part in parts for i in range(len(part))]
        assert [samples.read(i) for i in range(len(samples))] == want


# ---- tars of others ------------------------------------------------------------------------


def tar_of(path: Path, labels: list[str], kind: str = "cls", first: int = 0) -> None:
    """One image per label, with the label in a member of this kind."""
    members = []
    for i, label in enumerate(labels, start=first):
        text = f'{{"species": "{label}", "id": {i}}}' if kind == "json" else label
        members += [(f"{i:03d}.JPG", PNG + bytes([i])), (f"{i:03d}.{kind}", text.encode())]
    write_tar(path, members)


@pytest.mark.parametrize("kind", ["cls", "CLS", "txt", "json"])
def test_names_as_labels(kind: str, tmp_path: Path) -> None:
    tar_of(tmp_path / "train-0.tar", ["wren", "jay", "wren", "tit", "-1"], kind)
    query = "?label_key=species" if kind == "json" else ""
    dataset = open_dataset(f"webdataset:{tmp_path}{query}", 0.0)
    assert dataset.classes == ["jay", "tit", "wren"]
    train = dataset.splits["train"]
    assert train.labels.tolist() == [2, 0, 2, 1, -1]
    assert train.keys[0] == "train-0.tar/000.jpg"
    assert train.read(1) == PNG + bytes([1])


def test_a_numeric_key_of_the_json(tmp_path: Path) -> None:
    tar_of(tmp_path / "train-0.tar", ["a", "b"], "json")
    dataset = open_dataset(f"webdataset:{tmp_path}?label_key=id", 0.0)
    assert dataset.classes == ["0", "1"]
    error = open_error(f"webdataset:{tmp_path}?label_key=specie")
    assert "did you mean species" in error.message
    (tmp_path / "classes.txt").write_text("b\na\n")
    dataset = open_dataset(f"webdataset:{tmp_path}?label_key=species", 0.0)
    assert dataset.splits["train"].labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    "names",
    [
        ("train-0.tar", "val-0.tar", "test-0.tar"),
        ("birds_train_000.tar", "birds_valid_000.tar", "birds_testing_0.tar"),
        ("train/0.tar", "Validation/0.tar", "test/0.tar"),
    ],
)
def test_splits_by_the_names_of_tars(names: tuple[str, ...], tmp_path: Path) -> None:
    for i, name in enumerate((*names, "extra-0.tar")):
        tar_of(tmp_path / name, ["jay", "tit"], first=2 * i)
    dataset = open_dataset(f"webdataset:{tmp_path}")
    assert {s: x.read(0) for s, x in dataset.splits.items()} == {
        split: PNG + bytes([2 * i]) for i, split in enumerate(("train", "val", "test"))
    }
    assert any("extra-0.tar" in note for note in dataset.notes)


def test_patterns_of_braces_and_wildcards(tmp_path: Path) -> None:
    for i in range(4):
        tar_of(tmp_path / f"birds-{i:03d}.tar", ["jay", "tit", "jay"], first=3 * i)
    tar_of(tmp_path / "held" / "out.tar", ["tit", "jay"], first=20)
    whole = open_dataset(f"webdataset:{tmp_path}/birds-{{000..003}}.tar", 0.0)
    assert list(whole.splits) == ["train"]
    assert whole.splits["train"].keys[:2] == ["birds-000.tar/000.jpg", "birds-000.tar/001.jpg"]
    assert len(whole.splits["train"]) == 12
    query = f"?val={tmp_path}/birds-003.tar&test={tmp_path}/held/*.tar"
    some = open_dataset(f"webdataset:{tmp_path}/birds-00[0-2].tar{query}")
    assert {s: len(x) for s, x in some.splits.items()} == {"train": 9, "val": 3, "test": 2}
    assert some.splits["val"].keys[0] == "birds-003.tar/009.jpg"
    assert open_dataset(some.specs).splits["test"].keys == some.splits["test"].keys
    for pattern in (f"{tmp_path}/birds-{{003..004}}.tar", f"{tmp_path}/no*.tar", "{a"):
        assert isinstance(open_error(f"webdataset:{pattern}"), MissingDataset)


def test_tars_behind_a_url_are_downloaded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FGKD_HOME", str(tmp_path / "home"))
    for i in range(2):
        tar_of(tmp_path / "web" / f"birds-{i}.tar", ["jay", "tit"], first=2 * i)
    with serve(tmp_path / "web") as (url, requested):
        for _ in range(2):
            dataset = open_dataset(f"webdataset:{url}/birds-{{0..1}}.tar", 0.0)
            assert dataset.splits["train"].read(3) == PNG + bytes([3])
        assert requested == {"birds-0.tar": 1, "birds-1.tar": 1}
        with pytest.raises(DownloadError):
            open_dataset(f"webdataset:{url}/birds-7.tar")
        for where in (f"{url}/birds-*.tar", f"{url}/birds", f"{url}/birds/", url):
            with pytest.raises(OptionError) as error:  # a web server has no list of its files
                open_dataset(f"webdataset:{where}")
            assert error.value.value == where
            (suggested,) = error.value.suggestion
            assert suggested.startswith(f"webdataset:{where.partition('*')[0]}")
            assert suggested.endswith("{000..011}.tar")


# ---- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", PNG)], "sample 'a' has png; expected an image and a cls"),
        ([("a.cls", b"1")], "sample 'a' has cls; expected an image and a label"),
        ([("a.png", PNG), ("a.jpg", PNG), ("a.cls", b"1")], "expected an image and a label"),
        ([("a.png", PNG), ("a.cls", b"1"), ("a.cls", b"1")], "a.cls is there twice"),
        ([("a.png", PNG), ("a.cls", b"wren")], "has label wren, but classes.txt has 3 lines"),
        ([("a.png", PNG), ("a.cls", b"\xff")], "can't decode byte 0xff"),
        ([("a.png", PNG), ("a.cls", b"1" * 999)], "a.cls is 999 bytes long"),
        ([("a.png", PNG), ("a.json", b"{")], "a.json"),
        ([("a.png", PNG), ("a.json", b'{"kind": 1}')], "label_key"),
        ([("../a.png", PNG), ("../a.cls", b"1")], "unsafe file name"),
        ([("note.txt", PNG)], "without images"),
        ([("a.png", PNG), ("a.cls", b"3")], "has label 3, but classes.txt has 3 lines"),
    ],
)
def test_samples_that_are_refused(members: Members, message: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", members)
    (tmp_path / "classes.txt").write_text("\n".join(TAR_NAMES))
    error = open_error(f"webdataset:{tmp_path}")
    assert message in error.message
    assert str(tmp_path) in error.message


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, b"S"])
def test_links_and_special_files(kind: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    assert "a.png is a link or a special file" in open_error(f"webdataset:{tmp_path}").message


def test_no_tars_and_no_folder(tmp_path: Path) -> None:
    assert isinstance(open_error(f"webdataset:{tmp_path}"), DatasetError)
    (tmp_path / "train-0.tar").mkdir()
    assert "train-0.tar" in open_error(f"webdataset:{tmp_path}").message


@pytest.mark.parametrize("lines", ["", "a\n\nb\n", "a\na\nb\n", "a\nb\n", b"\xff\xfe"])
def test_class_names_that_are_refused(tmp_path: Path, lines: str | bytes) -> None:
    write_tars(tmp_path)
    data = lines if isinstance(lines, bytes) else lines.encode()
    (tmp_path / "classes.txt").write_bytes(data)
    assert "classes.txt" in open_error(f"webdataset:{tmp_path}").message


def test_a_truncated_tar_at_any_byte(tmp_path: Path) -> None:
    """However short: never fewer samples without a word."""
    write_tars(tmp_path)
    path = tmp_path / "train-000000.tar"
    data = path.read_bytes()
    end = len(data.rstrip(b"\0"))
    for size in [0, 1, 511, 512, 513, *range(1024, end + 1, 128)]:
        path.write_bytes(data[:size])
        assert str(path) in open_error(f"webdataset:{tmp_path}").message


def test_a_tar_that_shrinks_while_it_is_used(tmp_path: Path) -> None:
    write_tars(tmp_path)
    train = DATASETS["webdataset"](tmp_path).splits["train"]
    (tmp_path / "train-000000.tar").write_bytes(b"")
    with pytest.raises(UnreadableFile, match=r"train-000000.tar is truncated"):
        train.read(0)


@pytest.fixture(scope="module")
def plain_tar(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    root = tmp_path_factory.mktemp("plain")
    write_tars(root)
    return (root / "train-000000.tar").read_bytes()


@FUZZ
@given(data=st.data())
def test_fuzzed_tars(plain_tar: bytes, data: st.DataObject) -> None:
    """Bytes of headers changed, the checksum made to fit or not: an error or an answer."""
    changed = bytearray(plain_tar)
    for _ in range(data.draw(st.integers(1, 3))):
        header = 512 * data.draw(st.integers(0, 12))
        at = data.draw(st.sampled_from([0, 99, 124, 130, 135, 156, 257, 345, 500, 511]))
        piece = data.draw(st.binary(min_size=1, max_size=12))
        changed[header + at : header + at + len(piece)] = piece
        if data.draw(st.booleans()):
            block = changed[header : header + 512]
            total = sum(block[:148]) + 256 + sum(block[156:])
            changed[header + 148 : header + 156] = b"%06o\0 " % total
    with tempfile.TemporaryDirectory() as folder, frugal():
        path = Path(folder) / "train-0.tar"
        path.write_bytes(changed)
        try:
            train = DATASETS["webdataset"](Path(folder)).splits["train"]
            for i in range(len(train)):
                assert len(train.read(i)) == train.size(i)
        except FgkdError as error:
            explained(error, folder)


# ---- the stages ----------------------------------------------------------------------------


def test_teacher_cache_and_student(tmp_path: Path) -> None:
    """Tars in, both cache formats out; from tars alone to a student, when the source is gone."""
    write_tars(tmp_path / "tars")
    quick = ("--epochs", 2, "--batch-size", 5, "--workers", 0)
    spec = f"webdataset:{tmp_path / 'tars'}"
    fgkd("train-teacher", "--data", spec, *TEACHER, *quick, "--output", tmp_path / "teacher")
    for format in ("hdf5", "webdataset"):
        fgkd(
            *("cache-logits", "--teacher", tmp_path / "teacher", "--output", tmp_path / format),
            *("--views", 2, "--format", format, "--shard-size", 6, "--workers", 0),
        )
    train = ("train-student", *STUDENT, *quick)
    fgkd(*train, "--cache", tmp_path / "hdf5", "--output", tmp_path / "of-hdf5", "--workers", 2)
    fgkd("evaluate", tmp_path / "of-hdf5", "--json", tmp_path / "scores.json")
    fgkd("inspect", tmp_path / "hdf5", "--verify")
    shutil.rmtree(tmp_path / "tars")
    fgkd(*train, "--cache", tmp_path / "webdataset", "--output", tmp_path / "of-tars")
    assert_same_run(tmp_path / "of-tars", tmp_path / "of-hdf5")
    assert rows(tmp_path / "of-tars")[-1]["step"] == 6
