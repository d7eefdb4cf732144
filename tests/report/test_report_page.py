"""`evaluate --report`: the page says what the runs' own answers say, computed here by timm."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers.failures import run_command as command
from helpers.pages import Outline, assert_stands_alone, bytes_of, outline
from helpers.runs import fgkd
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from fgkd.report.thumbnails import Thumbs


@pytest.fixture(scope="module")
def page(tiny_report: Path) -> Outline:
    return outline(tiny_report)


@pytest.fixture(scope="module")
def files(tiny_data: Path) -> list[Path]:
    return sorted((tiny_data / "test").rglob("*.png"))


@pytest.fixture(scope="module")
def labels(files: list[Path]) -> np.ndarray:
    names = sorted({path.parent.name for path in files})
    return np.array([names.index(path.parent.name) for path in files])


@pytest.fixture(scope="module")
def answers(tiny_runs: dict[str, Path], files: list[Path]) -> dict[str, np.ndarray]:
    """Each run's top answers, by timm alone."""
    found = {}
    for name, run in tiny_runs.items():
        model = timm.create_model(f"local-dir:{run / 'model'}", pretrained=True).eval()
        transform = create_transform(**resolve_model_data_config(model))
        images = torch.stack([transform(Image.open(path).convert("RGB")) for path in files])
        with torch.no_grad():
            found[name] = model(images).argmax(1).numpy()
    return found


def table(page: Outline, *columns: str) -> list[list[str]]:
    """The rows below the head of the one table that begins with these columns."""
    (found,) = [rows for head, *rows in page.tables if tuple(head[: len(columns)]) == columns]
    return found


def plots(page: Outline) -> list[dict[str, str]]:
    return [image for image in page.images if image["src"].startswith("data:image/svg+xml")]


def test_it_stands_alone(page: Outline) -> None:
    assert_stands_alone(page)
    assert len(plots(page)) >= 12
    kinds = {bytes_of(image["src"])[:4] for image in page.images}
    assert kinds == {b"\x89PNG", b"<?xm"}
    assert {"results", "training", "classes", "confusions", "confidence"} <= set(page.ids)


def test_the_table_of_runs(
    page: Outline,
    tiny_runs: dict[str, Path],
    labels: np.ndarray,
    answers: dict[str, np.ndarray],
) -> None:
    for row, (role, path) in zip(table(page, "run", "images"), tiny_runs.items(), strict=True):
        assert (row[0], row[-2], row[1]) == (path.name, role, "32")
        assert re.fullmatch(r"\d+\.\d\d ±\d+\.\d", row[2])
        top1 = float(row[2].split()[0])
        assert top1 == pytest.approx(100 * (answers[role] == labels).mean(), abs=0.005)
    pairs = [(row[0], row[1]) for row in table(page, "run", "against")]
    assert pairs == [("baseline", "run"), ("student", "run"), ("student", "baseline")]


def test_the_table_of_classes(
    page: Outline, files: list[Path], labels: np.ndarray, answers: dict[str, np.ndarray]
) -> None:
    rows = table(page, "class", "images")
    assert [row[0] for row in rows] == sorted({path.parent.name for path in files})
    for k, row in enumerate(rows):
        here = labels == k
        pct = [f"{100 * (answer[here] == k).mean():.1f}" for answer in answers.values()]
        assert row[1:5] == [str(here.sum()), *pct]
        gain = (
            100 * (answers["student"][here] == k).mean()
            - 100 * (answers["baseline"][here] == k).mean()
        )
        assert row[5] == f"{gain:+.1f}"
        wrong = [rows[a][0] for a in answers["student"][here] if a != k]
        assert row[6] in wrong if wrong else row[6] == ""
        assert all(wrong.count(row[6]) >= wrong.count(other) for other in wrong)


def test_the_table_of_confusions(
    page: Outline, labels: np.ndarray, answers: dict[str, np.ndarray]
) -> None:
    names = [row[0] for row in table(page, "class", "images")]
    mistakes = [(t, a) for t, a in zip(labels, answers["student"], strict=True) if t != a]
    rows = table(page, "class", "other")
    for row in rows:
        a, b = names.index(row[0]), names.index(row[1])
        there, back = mistakes.count((a, b)), mistakes.count((b, a))
        assert row[2:] == [str(there), str(back), str(there + back)]
    totals = [int(row[4]) for row in rows]
    assert totals == sorted(totals, reverse=True)
    assert sum(totals) == len(mistakes) > 0  # 8 classes: the table holds every pair


def test_examples_show_files_with_everybodys_answer(page: Outline, files: list[Path]) -> None:
    """The pixels are those of the file that is named below, and truth is its folder."""
    shown = {}
    thumbs = [image for image in page.images if image not in plots(page)]
    assert thumbs
    for image in thumbs:
        shown[image["alt"]] = image["src"]
    by_key = {path.relative_to(path.parent.parent.parent).as_posix(): path for path in files}
    for key, src in shown.items():
        expected = Thumbs().of_image(Image.open(by_key[key]).convert("RGB"), key)
        assert expected
        assert src == expected.src


def test_classes_gained_and_lost_show_the_images_that_changed(
    page: Outline,
    files: list[Path],
    labels: np.ndarray,
    answers: dict[str, np.ndarray],
) -> None:
    names = sorted({path.parent.name for path in files})
    own, other = answers["student"] == labels, answers["baseline"] == labels
    for sign, word in ((1, "gains"), (-1, "loses")):
        gain_K = [sign * int((own[labels == k] * 1 - other[labels == k]).sum()) for k in range(8)]
        shown = re.findall(rf"student {word} in (.*)", page.text)
        assert len(shown) == min(3, sum(gain > 0 for gain in gain_K))
        for name in shown:
            assert gain_K[names.index(name.strip())] > 0


def test_what_the_teacher_taught(
    page: Outline, labels: np.ndarray, answers: dict[str, np.ndarray]
) -> None:
    hits = {name: answer == labels for name, answer in answers.items()}
    gained = (hits["teacher"] & hits["student"] & ~hits["baseline"]).sum()

    lost = ~hits["student"] & hits["baseline"]
    both = (lost & hits["teacher"]).sum()
    assert f"On {gained} images teacher and student are right and the baseline" in page.text
    assert f"student wrong on {lost.sum()}, of which the teacher is right on {both}." in page.text
    assert ("Right with the teacher, wrong without" in page.text) == (gained > 0)


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_one_run_alone_has_at_least_eight_pictures(
    tiny_runs: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """On val a student alone still knows its teacher's answers: they are in the cache."""
    args = ("--split", "val", "--report", tmp_path, "--workers", 0)
    fgkd("evaluate", tiny_runs[name], *args)
    found = outline(tmp_path / "index.html")
    assert_stands_alone(found)
    assert len(plots(found)) >= 8
    assert ("Who is right" in found.text) == (name == "student")


def test_the_same_command_writes_the_same_page_and_prints_its_path(
    tiny_report: Path,
    tiny_runs: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = map(str, tiny_runs.values())
    code, out, _ = command(capsys, "evaluate", *runs, "--report", str(tmp_path), "--workers", "0")
    assert code == 0
    assert out.splitlines()[-2] == f"report: {tmp_path / 'index.html'}"
    assert (tmp_path / "index.html").read_bytes() == tiny_report.read_bytes()


def test_a_foreign_page_is_refused_before_the_work(
    tiny_runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "index.html").write_text("mine")
    code, out, err = command(
        capsys, "evaluate", str(tiny_runs["teacher"]), "--report", str(tmp_path)
    )
    assert code == 1
    assert "is not a page of fgkd" in err
    assert f"Try: --report {tmp_path}/fgkd" in err
    assert "top-1" not in out
    assert (tmp_path / "index.html").read_text() == "mine"
