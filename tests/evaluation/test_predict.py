"""`fgkd predict` against timm and Pillow, and what it says of images it cannot read."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers.datasets import encode, pixels
from helpers.failures import Fails
from helpers.models import CLASSES, write_run
from helpers.runs import fgkd
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from fgkd.errors import NotLocal
from stages import cli

ONE_PROCESS = ("--workers", 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("predict") / "run", "folder:none", crop_pct=0.8)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with a JPEG, and below it a grey PNG and a WebP; a hidden file and a text."""
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for name, image in {
        "b.jpg": pixels(0, 0),
        "more/a.PNG": pixels(1, 1, (50, 70)).convert("L"),
        "more/z.webp": pixels(2, 2, (90, 40)),
        ".hidden.jpg": pixels(0, 3),
    }.items():
        kind = {"jpg": "JPEG", "PNG": "PNG", "webp": "WEBP"}[name.rpartition(".")[2]]
        (tmp_path / "photos" / name).write_bytes(encode(image, kind))
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def timm_probs(folder: Path, image: Path) -> torch.Tensor:
    """A model's probabilities for an image, by timm, torch and Pillow alone."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with Image.open(image) as file, torch.no_grad():
        x = create_transform(**resolve_model_data_config(model))(file.convert("RGB"))
        return model(x[None]).softmax(1)[0]


def test_probabilities_are_timms(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file and a folder; JSON lines and the table say the same."""
    out = tmp_path / "out.jsonl"
    fgkd("predict", run, photos / "b.jpg", photos / "more", "--top-k", 2)
    fgkd("predict", run, photos / "b.jpg", photos / "more", "--output", out, "--top-k", 2)
    found = lines(out)
    images = [photos / "b.jpg", photos / "more/a.PNG", photos / "more/z.webp"]
    assert [line["image"] for line in found] == list(map(str, images))
    table = capsys.readouterr().out
    nexts = [line for line in table.splitlines() if line.startswith("next: ")]
    assert nexts == [f"next: fgkd export {run} --format pt2"]  # none below a table in a pipe
    for line in found:
        probs = timm_probs(run / "model", Path(line["image"]))
        best = probs.topk(2)
        assert line["run"] == str(run)
        assert [guess["class"] for guess in line["top"]] == [CLASSES[k] for k in best.indices]
        assert [g["probability"] for g in line["top"]] == pytest.approx(
            best.values.tolist(), abs=1e-5
        )
        row = next(row.split() for row in table.splitlines() if row.startswith(line["image"]))
        assert row[1:] == [line["top"][0]["class"], f"{100 * line['top'][0]['probability']:.2f}"]
    assert len({line["top"][0]["probability"] for line in found}) == 3


def test_a_folder_is_walked_and_every_class_may_be_asked_for(
    run: Path, photos: Path, tmp_path: Path
) -> None:
    """Sorted, at any depth, without hidden files and texts; probabilities sum to one."""
    fgkd("predict", run, *ONE_PROCESS, photos, "--output", tmp_path / "out.jsonl")
    found = lines(tmp_path / "out.jsonl")
    assert [Path(line["image"]).name for line in found] == ["b.jpg", "a.PNG", "z.webp"]
    for line in found:
        values = [guess["probability"] for guess in line["top"]]
        assert sum(values) == pytest.approx(1)  # --top-k is 5, of 3 classes
        assert values == sorted(values, reverse=True)


def test_a_bare_timm_folder_predicts(run: Path, photos: Path, tmp_path: Path) -> None:
    """Here of another model: it has its own answer."""
    other = write_run(tmp_path / "other", "folder:none", "convnext_atto") / "model"
    for folder, model in ((run, run / "model"), (other, other)):
        out = tmp_path / f"{folder.name}.jsonl"
        fgkd("predict", folder, *ONE_PROCESS, photos / "b.jpg", "--output", out)
        (line,) = lines(out)
        assert line["run"] == str(folder)
        probs = timm_probs(model, photos / "b.jpg")
        assert line["top"][0]["class"] == CLASSES[probs.argmax()]
        assert line["top"][0]["probability"] == pytest.approx(probs.max().item(), abs=1e-5)


def test_patterns_and_a_list_on_standard_input(
    run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`**` crosses folders; a file whose name looks like a pattern is itself."""
    odd = photos / "[b].jpg"
    odd.write_bytes((photos / "b.jpg").read_bytes())
    out = tmp_path / "out.jsonl"
    fgkd("predict", run, *ONE_PROCESS, f"{photos}/**/*.webp", odd, "--output", out)
    assert [Path(line["image"]).name for line in lines(out)] == ["z.webp", "[b].jpg"]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{photos / 'b.jpg'}\n\n{photos / 'more'}\r\n"))
    fgkd("predict", run, *ONE_PROCESS, "-", "--output", out)
    assert [Path(line["image"]).name for line in lines(out)] == ["b.jpg", "a.PNG", "z.webp"]


def test_a_csv_table(run: Path, photos: Path, tmp_path: Path) -> None:
    """As the csv module reads it, the same as the lines of JSON; an error has its column."""
    given = (*ONE_PROCESS, photos, "--top-k", 2, "--output")
    fgkd("predict", run, *given, tmp_path / "out.jsonl")
    (photos / "cut.jpg").write_bytes((photos / "b.jpg").read_bytes()[:300])
    with pytest.raises(SystemExit):
        cli.main(["predict", str(run), *map(str, given), str(tmp_path / "out.csv")])
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = {Path(row["image"]).name: row for row in csv.DictReader(file)}
    assert "cannot decode" in rows.pop("cut.jpg")["error"]
    for line in lines(tmp_path / "out.jsonl"):
        row = rows.pop(Path(line["image"]).name)
        assert (row["run"], row["error"]) == (str(run), "")
        for k, guess in enumerate(line["top"], 1):
            assert row[f"class_{k}"] == guess["class"]
            assert float(row[f"probability_{k}"]) == pytest.approx(guess["probability"], rel=1e-5)
    assert not rows


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_images_are_named_and_the_others_answered(
    run: Path, photos: Path, tmp_path: Path, fails: Fails, workers: int
) -> None:
    out = tmp_path / "out.jsonl"
    (photos / "cut.jpg").write_bytes((photos / "b.jpg").read_bytes()[:300])
    (tmp_path / "empty").mkdir()
    given = [tmp_path / "gone.jpg", photos / "notes.txt", photos, tmp_path / "empty"]
    said = fails("predict", run, "--workers", workers, *given, "--output", out)
    assert "4 of 7 images could not be read" in said
    found = {Path(line["image"]).name: line.get("error") for line in lines(out)}
    good = [name for name, error in found.items() if error is None]
    assert good == ["b.jpg", "a.PNG", "z.webp"]
    assert "cannot decode" in found["notes.txt"]
    assert "cannot decode" in found["cut.jpg"]
    assert found["gone.jpg"] == "no such file or folder"
    assert found["empty"] == "no image in this folder"
    only_bad = fails("predict", run, *ONE_PROCESS, tmp_path / "gone.jpg")
    assert "1 of 1 images could not be read" in only_bad


def test_what_cannot_be_predicted_with(
    run: Path, photos: Path, tmp_path: Path, fails: Fails
) -> None:
    said = fails("predict", run, photos, "--tta", "flip")
    assert "tta flip mirrors images" in said
    assert "no model at" in fails("predict", tmp_path / "no", photos)
    assert "RUN is required" in fails("predict")
    assert "PATH is required" in fails("predict", run)
    assert "out.txt" in fails("predict", run, photos, "--output", tmp_path / "out.txt")
    path = run / "model" / "config.json"
    kept = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(kept) | {"label_names": ["one", "two"]}))
        assert "names 2 classes of 3" in fails("predict", run, photos)
    finally:
        path.write_text(kept)


def test_a_url_is_no_image(run: Path, photos: Path, fails: Fails) -> None:
    url = "https://host/bird.jpg"
    failure = fails("predict", run, photos, url, *ONE_PROCESS)
    assert isinstance(failure.error, NotLocal)
    assert failure.error.path == url
