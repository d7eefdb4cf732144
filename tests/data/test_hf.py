"""`hf:` datasets: what the `datasets` library writes and reads, in each of its forms."""

from __future__ import annotations

import pickle
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from helpers.datasets import TAR_NAMES, encode, open_error, pixels, write_folder, write_hf
from helpers.runs import STUDENT, TEACHER, fgkd
from pyarrow import parquet

import fgkd as library
from fgkd.data import open_dataset
from fgkd.errors import DatasetError, MissingDataset, OptionError

COUNTS = {"train": 15, "val": 6, "test": 6}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    write_hf(tmp_path / "saved")
    return tmp_path / "saved"


def plain(folder: Path) -> dict[str, list[tuple[bytes, int]]]:
    """Encoded images and labels of each split, as the library itself gives them."""
    found = {}
    for split, part in datasets.load_from_disk(str(folder)).items():
        raw = part.cast_column("image", datasets.Image(decode=False))
        name = {"validation": "val"}.get(split, split)
        found[name] = [(row["image"]["bytes"], row["label"]) for row in raw]
    return found


def assert_same(spec: str, wanted: dict[str, list[tuple[bytes, int]]]) -> None:
    dataset = open_dataset(spec)
    assert dataset.classes == list(TAR_NAMES)
    assert set(dataset.splits) == set(wanted)
    for split, rows in wanted.items():
        samples = pickle.loads(pickle.dumps(dataset.splits[split]))  # as for a worker
        assert [samples.read(i) for i in range(len(samples))] == [data for data, _ in rows]
        assert samples.labels.tolist() == [label for _, label in rows]
        assert samples.size(0) == len(rows[0][0])


def test_save_to_disk(saved: Path) -> None:
    wanted = plain(saved)
    assert {split: len(rows) for split, rows in wanted.items()} == COUNTS
    assert_same(f"hf:{saved}", wanted)
    assert open_dataset(f"hf:{saved}").splits["val"].keys[:2] == [
        "validation/0.png",
        "validation/1.png",
    ]


def test_save_to_disk_in_several_files_after_a_shuffle(saved: Path, tmp_path: Path) -> None:
    parts = datasets.load_from_disk(str(saved)).shuffle(seed=1)
    parts.save_to_disk(tmp_path / "more", num_shards={"train": 3, "validation": 1, "test": 2})
    assert_same(f"hf:{tmp_path / 'more'}", plain(tmp_path / "more"))


def test_parquet_files_and_a_folder_of_them(saved: Path, tmp_path: Path) -> None:
    wanted = plain(saved)
    for split, part in datasets.load_from_disk(str(saved)).items():
        part.to_parquet(tmp_path / "p" / f"{split}-00000-of-00001.parquet")
    assert_same(f"hf:{tmp_path / 'p'}", wanted)
    dataset = open_dataset(f"hf:{tmp_path / 'p' / 'train-00000-of-00001.parquet'}", 0.2)
    assert {split: len(samples) for split, samples in dataset.splits.items()} == {
        "train": 12,
        "val": 3,
    }


def test_an_image_folder_keeps_its_files(tmp_path: Path) -> None:
    write_folder(tmp_path / "f")
    ours, theirs = (open_dataset(f"{name}:{tmp_path / 'f'}") for name in ("folder", "hf"))
    assert theirs.classes == ours.classes
    for split, samples in ours.splits.items():
        keys = theirs.splits[split].keys
        assert sorted(keys) == samples.keys
        assert theirs.splits[split].read(0) == (tmp_path / "f" / keys[0]).read_bytes()


def saved_columns(folder: Path, features: dict[str, object], **columns: list[object]) -> str:
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    table.save_to_disk(folder)
    return f"hf:{folder}"


def test_columns_of_other_names_and_types(tmp_path: Path) -> None:
    images = [{"bytes": encode(pixels(0, i), "PNG"), "path": None} for i in range(4)]
    features = {"photo": datasets.Image(), "note": datasets.Value("string")}
    features |= {"species": datasets.Value("string"), "n": datasets.Value("int64")}
    spec = saved_columns(
        *(tmp_path / "a", features),
        photo=images,
        note=list("wxyz"),
        species=["jay", "tit", None, "jay"],
        n=[10, 9, 10, -1],
    )
    dataset = open_dataset(spec, 0.0)
    assert (dataset.classes, dataset.splits["train"].labels.tolist()) == (
        ["jay", "tit"],
        [0, 1, -1, 0],
    )
    assert dataset.splits["train"].keys[0] == "train/00000000"
    numbers = open_dataset(f"{spec}?label_column=n", 0.0)
    assert numbers.classes == ["9", "10"]
    assert numbers.splits["train"].labels.tolist() == [1, 0, 1, -1]
    assert isinstance(error := open_error(f"{spec}?label_column=m"), OptionError)
    assert error.option == "label_column"
    assert isinstance(error := open_error(f"{spec}?image_column=note"), OptionError)
    assert error.option == "image_column"


@pytest.mark.parametrize("kind", ["binary", "large_binary", "struct", "bytes alone"])
def test_images_as_bytes(kind: str, tmp_path: Path) -> None:
    """As parquet files have them that the library did not write; read where they lie."""
    contents = [encode(pixels(0, i), "PNG") for i in range(4)]
    binary = pa.large_binary() if kind == "large_binary" else pa.binary()
    column = pa.array(contents, binary)
    if kind in ("struct", "bytes alone"):
        names = {"path": pa.array(["a.png", "b.png", "c.png", "d.png"])} if kind == "struct" else {}
        column = pa.StructArray.from_arrays([column, *names.values()], ["bytes", *names])
    table = pa.table({"image": column, "label": pa.array(["tit", "jay", "jay", "tit"])})
    parquet.write_table(table, tmp_path / "birds.parquet")
    samples = open_dataset(f"hf:{tmp_path / 'birds.parquet'}", 0.0).train
    assert [samples.read(i) for i in range(4)] == contents
    assert samples.labels.tolist() == [1, 0, 0, 1]
    assert samples.keys[0] == ("train/a.png" if kind == "struct" else "train/00000000")


def test_a_choice_of_columns_is_asked_for(tmp_path: Path) -> None:
    image = {"bytes": encode(pixels(0, 0), "PNG"), "path": None}
    features = {name: datasets.ClassLabel(names=["a", "b"]) for name in ("fine", "coarse")}
    spec = saved_columns(
        *(tmp_path / "a", {"img": datasets.Image()} | features),
        img=[image] * 2,
        fine=[0, 1],
        coarse=[1, 1],
    )
    assert isinstance(error := open_error(spec), OptionError)
    assert error.option == "label_column"
    assert open_dataset(f"{spec}?label_column=coarse", 0.0).splits["train"].labels.tolist() == [
        1,
        1,
    ]


@pytest.mark.parametrize(
    ("name", "option"), [("saved", "config"), ("x.parquet", "config"), ("saved", "revision")]
)
def test_options_of_the_hub_are_refused_elsewhere(
    name: str, option: str, saved: Path, tmp_path: Path
) -> None:
    datasets.load_from_disk(str(saved))["train"].to_parquet(str(tmp_path / "x.parquet"))
    assert isinstance(error := open_error(f"hf:{tmp_path / name}?{option}=other"), OptionError)
    assert (error.option, error.value) == ("data", f"hf:{tmp_path / name}?{option}=other")
    assert error.suggestion == (f"hf:{tmp_path / name}",)


def test_what_is_not_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.parquet").write_bytes(b"no parquet")
    for path in ("empty", "x.parquet"):
        assert isinstance(open_error(f"hf:{tmp_path / path}"), DatasetError | MissingDataset)


def test_from_teacher_to_student(saved: Path, tmp_path: Path) -> None:
    short = ("--epochs", 1, "--batch-size", 8, "--workers", 0)
    data = ("--data", f"hf:{saved}")
    fgkd("train-teacher", *data, *TEACHER, *short, "--output", tmp_path / "t")
    cache = ("--views", 1, "--workers", 1, "--output", tmp_path / "c")
    fgkd("cache-logits", "--teacher", tmp_path / "t", *cache)
    fgkd("train-student", "--cache", tmp_path / "c", *STUDENT, *short, "--output", tmp_path / "s")
    assert library.evaluate([tmp_path / "s"], workers=0)[0].metrics.num_images == 6


def test_images_in_files_elsewhere_are_numbered_by_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of an image folder on the hub, which lie in the library's cache."""
    write_folder(tmp_path / "elsewhere")
    parts = datasets.load_dataset(str(tmp_path / "elsewhere"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: parts)
    dataset = open_dataset("hf:ORG/NAME")
    keys = [key for samples in dataset.splits.values() for key in samples.keys]
    assert len(set(keys)) == len(keys) == 24
    assert keys[0] == "train/00000000"
    assert dataset.splits["test"].read(0)
