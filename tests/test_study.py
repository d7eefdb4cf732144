"""scripts/study.py on a miniature, and the numbers of its tables."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from helpers.runs import fgkd
from scipy import stats
from scipy.special import log_softmax

from fgkd import open_cache
from fgkd.data import open_dataset

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture(scope="module")
def study() -> Any:
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module("study")
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def figures(study: Any) -> Any:
    return study.figures


def test_a_small_study(
    study: Any,
    tiny_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every way of teaching, an epoch each; what is there already is not trained again."""
    ways = ("labels", "cache", "live", "timm")
    command = ["run", *(f"small/{way}/8" for way in ways), "--data", f"folder:{tiny_data}"]
    command += ["--output", str(tmp_path), "--tries", "2", "--jobs", "2", "--with", "--epochs=1"]
    study.main([*command, "--seeds", "0"], standalone_mode=False)
    first = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.safetensors")}
    study.main([*command, "--seeds", "1"], standalone_mode=False)
    assert all(path.stat().st_mtime_ns == at for path, at in first.items())
    rows = json.loads((tmp_path / "study.json").read_text())
    students = {(row["arm"], row["seed"]) for row in rows if not row["arm"].startswith("teacher/")}
    assert students == {(f"small/{way}/8", seed) for way in ways for seed in (0, 1)}
    # With other numbers of tries a seed's row may be of another setting: it goes.
    for row in rows:
        row["tries"] = 1
    (tmp_path / "study.json").write_text(json.dumps(rows))
    study.main([*command[:2], *command[len(ways) + 1 :], "--seeds", "1"], standalone_mode=False)
    rows = json.loads((tmp_path / "study.json").read_text())
    assert [row["seed"] for row in rows if row["arm"] == "small/labels/8"] == [1]
    assert {row["seed"] for row in rows if row["arm"] == "small/cache/8"} == {0, 1}
    # With one setting the seeds are trained at a time.
    alone = [*command[:2], *command[len(ways) + 1 :], "--seeds", "0,1", "--setting", "0"]
    study.main(alone, standalone_mode=False)
    rows = json.loads((tmp_path / "study.json").read_text())
    made = {(row["seed"], row["tries"]) for row in rows if row["arm"] == "small/labels/8"}
    assert made == {(0, 1), (1, 1)}
    for row in rows:
        right = int.from_bytes(bytes.fromhex(row["hits"]), "big").bit_count()
        assert row["test_top1_pct"] == pytest.approx(100 * right / row["images"], abs=1e-4)
    capsys.readouterr()
    study.main(
        ["show", "--json", str(tmp_path / "study.json"), "--plot", str(tmp_path / "a.png")],
        standalone_mode=False,
    )
    assert capsys.readouterr().out.count("| 8 |") == len(ways)
    assert (tmp_path / "a.png").stat().st_size > 10_000
    # A cache may be another one in another encoding.
    recoded = study.table.Cache(("60-epochs",), ("--encoding", "int8"), of="60-epochs")
    monkeypatch.setitem(study.table.CACHES, "recoded", recoded)
    found = open_cache(study.Study(tmp_path, f"folder:{tiny_data}").cache("recoded"))
    assert (found.codec.name, found.views) == ("int8", recoded.views)


def test_data_with_few_and_with_wrong_labels(
    study: Any, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the training images alone, and as many as the tables say."""
    inputs = study.inputs
    monkeypatch.setitem(inputs.LABELLED, "few", 0.5)
    whole = open_dataset([f"folder:{tiny_data}"], 0.1)
    few, rest, noisy = inputs.fill(["{few}", "{rest of few}", "{noisy}"], tmp_path, whole)

    def labels(name: str, split: str) -> dict[str, int]:
        samples = open_dataset([name], 0.1).splits[split]
        return dict(zip(samples.paths, samples.labels.tolist(), strict=True))

    true = dict(zip(whole.train.paths, whole.train.labels.tolist(), strict=True))
    kept, wrong = labels(few, "train"), labels(noisy, "train")
    assert kept.items() < true.items()
    assert set(kept.values()) == set(true.values())
    assert len(list(Path(rest.removeprefix("unlabeled:")).iterdir())) == len(true) - len(kept)
    assert wrong.keys() == true.keys()
    flipped = sum(wrong[path] != label for path, label in true.items())
    assert abs(flipped / len(true) - inputs.NOISE["noisy"]) < 4 * (0.24 / len(true)) ** 0.5
    for split in set(whole.splits) - {"train"}:
        assert labels(noisy, split) == labels(few, split) == labels(f"folder:{tiny_data}", split)


def test_the_long_recipes_are_what_was_studied(study: Any) -> None:
    """The teacher and its cache, and each student with the setting that its rows were made with."""
    table = study.table
    for role, words in {
        "teacher": table.TEACHERS["60-epochs"],
        "cache": table.CACHES["60-epochs"].options,
        "baseline": table.Student("small", "labels", 75).options(0, 1),
        "student": table.Student("small", "cache", 75).options(0, 1),
    }.items():
        command = {"teacher": "train-teacher", "cache": "cache-logits"}.get(role, "train-student")
        data = ["--data", "icons"] if role == "baseline" else []
        given = [str(SCRIPTS.parent / w) if w.startswith(table.RECIPES) else w for w in words]
        seeds = ["--view-seed", "0"] if command == "train-student" else []  # so that seeds share it
        recipe = ["-c", f"icons-long-{role}", *seeds]
        assert parsed(command, recipe) == parsed(command, [*given, *data])


def parsed(command: str, words: list[str]) -> Any:
    """The options that a command would run with."""
    name = command.replace("-", "_")
    with mock.patch(f"stages.{name}.{name}") as run:
        fgkd(command, *words)
    return run.call_args.args[0]


def row(arm: str, seed: int, hit_N: np.ndarray) -> dict[str, Any]:
    return {
        **{"arm": arm, "seed": seed, "images": len(hit_N)},
        "hits": np.packbits(hit_N).tobytes().hex(),
    }


def test_the_gap_and_its_interval(figures: Any) -> None:
    """One seed: the normal interval of paired differences."""
    draw = np.random.default_rng(0)
    these, others = draw.random(1433) < 0.6, draw.random(1433) < 0.55
    gap = figures.gap([row("a", 0, these), row("b", 0, others)], "a", "b")
    difference = 100 * (these.astype(float) - others)
    assert gap.points == pytest.approx(difference.mean())
    low, high = stats.norm.interval(0.95, difference.mean(), stats.sem(difference))
    assert gap.low == pytest.approx(low, abs=0.25)
    assert gap.high == pytest.approx(high, abs=0.25)
    assert gap.p == pytest.approx(stats.ttest_1samp(difference, 0).pvalue, abs=0.03)


def test_seeds_that_differ_widen_the_interval(figures: Any) -> None:
    ahead, level, behind = (np.arange(1000) < n for n in (700, 600, 500))
    rows = [row("b", seed, level) for seed in range(3)]
    alike = [row("a", seed, ahead) for seed in range(3)]
    mixed = [row("a", seed, hit) for seed, hit in enumerate((ahead, ahead, behind))]
    certain, uncertain = (figures.gap([*rows, *made], "a", "b") for made in (alike, mixed))
    assert certain.p < 0.001
    assert certain.low > 0
    assert uncertain.low < 0 < uncertain.high


def test_a_gap_is_over_the_seeds_that_both_have(figures: Any) -> None:
    one, none = np.ones(10, bool), np.zeros(10, bool)
    rows = [row("a", 0, one), row("a", 1, one), row("b", 1, none), row("b", 2, one)]
    assert figures.gap(rows, "a", "b").points == 100
    assert figures.gap(rows, "a", "c") is None


KEPT = (1, 3, 5, 10, 20)


def test_the_table_of_bytes(study: Any) -> None:
    """Bytes as they are stored, and a KL that is numpy's and falls with what is kept."""
    bytes_of = importlib.import_module("study_bytes")
    logits = np.random.default_rng(0).normal(0, 3, (50, 85)).astype(np.float32)
    lines = bytes_of.table(logits, logits.argmax(1), KEPT).splitlines()
    cells = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in lines[2:]}
    assert int(cells["`dense`"][0]) == 2 * 85
    assert int(cells["`topk8` 5"][0]) == 6 + 5 + 1
    log_p = log_softmax(logits.astype(np.float64), axis=1)
    log_q = log_softmax(logits.astype(np.float16).astype(np.float64), axis=1)
    expected = (np.exp(log_p) * (log_p - log_q)).sum(1).mean()
    assert float(cells["`dense`"][1]) == pytest.approx(expected, rel=0.06)
    kept = [float(cells[f"`topk` {k}"][2]) for k in KEPT]
    assert kept == sorted(kept, reverse=True)
