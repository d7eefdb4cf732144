"""Images that splits share or that train names twice: all found, few bytes read, and said."""

from __future__ import annotations

import itertools
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers.datasets import TAR_SIZES, tar_sample, write_folder, write_tars
from helpers.runs import TEACHER, fgkd
from hypothesis import given, settings
from hypothesis import strategies as st

from fgkd.data import DATASETS, Dataset, Samples, duplicates, open_dataset


def copy(root: Path, source: str, target: str) -> None:
    shutil.copy(root / source, root / target)


@pytest.fixture
def leaky(tmp_path: Path) -> Path:
    """Two test images and a validation image are in train; one of train has two labels."""
    root = tmp_path / "leaky"
    write_folder(root)
    copy(root, "train/class 0/im.0.png", "test/class 0/copied.png")
    copy(root, "train/class 1/im.1.JPG", "test/class 2/renamed.png")
    copy(root, "train/class 2/im.0.png", "val/class 2/copied.png")
    copy(root, "train/class 2/im.1.JPG", "train/class 0/moved.jpg")
    copy(root, "train/class 2/im.3.JPG", "train/class 2/again.jpg")  # harmless
    return root


TEST_LINE = (
    "warning: 2 of test's images are in train too, byte for byte: "
    "test/class 0/copied.png = train/class 0/im.0.png, "
    "test/class 2/renamed.png = train/class 1/im.1.JPG"
)
LABEL_LINE = (
    "warning: 1 of train's images are there under two labels: "
    "train/class 0/moved.jpg (class 0) = train/class 2/im.1.JPG (class 2)"
)


def test_found_and_named(leaky: Path) -> None:
    lines = duplicates.warnings(DATASETS["folder"](leaky))
    assert lines == [
        "warning: 1 of val's images are in train too, byte for byte: "
        "val/class 2/copied.png = train/class 2/im.0.png",
        TEST_LINE,
        LABEL_LINE,
    ]


def test_nothing_to_say(tmp_path: Path) -> None:
    write_folder(tmp_path)
    assert duplicates.warnings(DATASETS["folder"](tmp_path)) == []


def test_many_are_counted_and_few_named(tmp_path: Path) -> None:
    write_folder(tmp_path, train=5)
    for number in range(5):
        suffix = "JPG" if number % 2 else "png"
        copy(tmp_path, f"train/class 1/im.{number}.{suffix}", f"test/class 1/x{number}.jpg")
    (line,) = duplicates.warnings(DATASETS["folder"](tmp_path))
    assert line.startswith("warning: 5 of test's images are in train too")
    assert line.count(" = ") == duplicates.NAMED
    assert line.endswith(", ...")


def test_inside_tars(tmp_path: Path) -> None:
    import webdataset

    write_tars(tmp_path)
    first = 1000 * list(TAR_SIZES).index("test")
    with webdataset.ShardWriter(f"{tmp_path}/train-9%05d.tar", verbose=0) as writer:
        writer.write(tar_sample(0, first))  # the first test image
    (line,) = duplicates.warnings(DATASETS["webdataset"](tmp_path))
    assert "warning: 1 of test's images are in train too" in line
    assert f"test-000000.tar/birds/0_{first:04d}.png = train-900000.tar/" in line


def test_files_that_cannot_be_read_are_left_to_those_who_need_them(leaky: Path) -> None:
    dataset = DATASETS["folder"](leaky)
    (leaky / "test/class 0/copied.png").unlink()
    (leaky / "val/class 2/copied.png").write_bytes(b"")
    lines = duplicates.warnings(dataset)
    assert "1 of test's images" in lines[0]
    assert lines[1:] == [LABEL_LINE]


def test_most_files_are_not_read(leaky: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file with a size of its own, nothing; only what is shared is read whole."""
    read: list[str] = []
    whole = Samples.read
    monkeypatch.setattr(
        Samples, "read", lambda self, i: read.append(self.keys[i]) or whole(self, i)
    )
    dataset = DATASETS["folder"](leaky)
    duplicates.warnings(dataset)
    assert len(read) == 8
    assert sum(map(len, dataset.splits.values())) == 29


def test_several_files_are_asked_at_once(leaky: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first look of every thread waits for that of all others."""
    meeting = threading.Barrier(duplicates.THREADS, timeout=30)
    met, size = threading.local(), Samples.size

    def wait(samples: Samples, i: int) -> int:
        if not hasattr(met, "here"):
            met.here = meeting.wait()
        return size(samples, i)

    monkeypatch.setattr(Samples, "size", wait)
    assert len(duplicates.find(DATASETS["folder"](leaky))) == 4


# Bytes of one length whose middles or ends alone may differ, and of others.
CONTENTS = [
    bytes(400),
    b"x" + bytes(399),
    bytes(200) + b"y" + bytes(199),
    bytes(399) + b"z",
    b"a",
    b"",
]


@settings(max_examples=60, deadline=None)
@given(
    splits=st.dictionaries(
        st.sampled_from(["train", "val", "test"]),
        st.lists(st.tuples(st.integers(0, 5), st.integers(-1, 2)), min_size=1, max_size=8),
        min_size=1,
    )
)
def test_all_are_found(
    splits: dict[str, list[tuple[int, int]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Against every pair compared whole."""
    folder = tmp_path_factory.mktemp("files")
    rows, made = [], {}
    for split, files in splits.items():
        paths = [f"{folder}/{split}{i}" for i in range(len(files))]
        for i, (path, (content, label)) in enumerate(zip(paths, files, strict=True)):
            Path(path).write_bytes(CONTENTS[content])
            rows.append((split, i, content, label))
        labels = np.array([label for _, label in files])
        made[split] = Samples(paths, labels, np.zeros(len(files), np.int64), paths)
    dataset = Dataset("made", ["a", "b", "c"], ["made"], made)
    groups = duplicates.find(dataset)
    together = {frozenset(pair) for group in groups for pair in itertools.combinations(group, 2)}
    for a, b in itertools.combinations(rows, 2):
        labelled = a[0] == b[0] == "train" and min(a[3], b[3]) >= 0
        if a[2] == b[2] and (a[0] != b[0] or (labelled and a[3] != b[3])):
            assert frozenset((a[:2], b[:2])) in together
        if a[2] != b[2]:
            assert frozenset((a[:2], b[:2])) not in together


def test_the_stages_say_so(leaky: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In both banners, and once under the table of two runs on the same data."""
    run = tmp_path / "run"
    fgkd(
        *("train-teacher", "--data", f"folder:{leaky}", *TEACHER, "--output", run),
        *("--epochs", 1, "--batch-size", 8, "--workers", 0),
    )
    said = capsys.readouterr().out
    assert f"\n           {TEST_LINE}\n" in said
    assert LABEL_LINE in said
    fgkd(
        *("cache-logits", "--teacher", run, "--output", tmp_path / "cache", "--views", 1),
        *("--workers", 0),
    )
    assert f"\n           {TEST_LINE}\n" in capsys.readouterr().out
    fgkd("evaluate", run, run)
    said = capsys.readouterr().out
    assert said.count(TEST_LINE) == 1
    assert f"\n{LABEL_LINE}\n" in said
    assert open_dataset([f"folder:{leaky}"]).notes == []
