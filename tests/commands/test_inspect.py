"""`inspect`: every figure against one computed by hand from the logits, and no torch to show it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.caches import (
    IDENTITY,
    NUM_CLASSES,
    NUM_TRAIN,
    TABLES,
    encoding_of,
    logits_of,
    open_writer,
    publish,
    val_logits,
    write_cache,
)
from helpers.runs import fgkd

from fgkd.cache import encodings, stats
from fgkd.evaluation import metrics
from fgkd.views import orders

LABELS = TABLES["train"].labels  # one of them is -1
DOMAINS = np.array([i % 3 == 0 for i in range(NUM_TRAIN)], np.int64)
UNION = {"dataset__domains": ("birds", "dogs"), "train__domains": DOMAINS}
VIEWS = 5


def inspect(cache: Path, *more: object) -> dict[str, Any]:
    """The --json report of one cache."""
    path = cache.parent / "report.json"
    fgkd("inspect", cache, "--json", path, *more)
    (report,) = json.loads(path.read_text())
    return dict(report)


def by_hand() -> np.ndarray:
    """float64 [V, N, C]: what the made-up teacher says."""
    views = [[logits_of(row, view) for row in range(NUM_TRAIN)] for view in range(VIEWS)]
    return np.array(views, np.float64)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).log_softmax(-1).numpy()


def pct(hits: np.ndarray) -> float:
    return 100 * float(hits.mean())


@pytest.fixture(scope="module", params=["at once", "grown", "webdataset"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Five views of a union of two domains with an unlabelled sample; written in several ways."""
    changes = dict(UNION, encoding=encoding_of("int8"))
    cache = tmp_path_factory.mktemp("inspect") / "cache"
    if request.param == "webdataset":
        changes["format"] = "webdataset"
    if request.param == "grown":
        write_cache(cache, views=2, **changes)
        write_cache(cache, views=3, **changes)
    return inspect(write_cache(cache, views=VIEWS, **changes))


def test_accuracy_by_domain_and_view(report: dict[str, Any]) -> None:
    """Of labelled samples alone."""
    teacher, logits = report["teacher"], by_hand()
    known = LABELS >= 0
    for k, name in ((1, "top1"), (5, "top5")):
        best = np.argsort(-logits, axis=-1)[..., :k]
        hits = (best == LABELS[:, None]).any(-1)[:, known]
        assert teacher[f"{name}_pct"] == pytest.approx(pct(hits))
        assert teacher[f"views_{name}_pct"] == pytest.approx([pct(view) for view in hits])
        for number, domain in enumerate(("birds", "dogs")):
            inside = DOMAINS[known] == number
            assert teacher["domains"][domain]["images"] == inside.sum()
            assert teacher["domains"][domain][f"{name}_pct"] == pytest.approx(pct(hits[:, inside]))


def test_calibration_and_entropy(report: dict[str, Any]) -> None:
    logits, log_p = by_hand(), log_softmax(by_hand())
    labels = np.broadcast_to(LABELS, logits.shape[:2])
    expected = metrics.ece_pct(
        logits_NK=torch.from_numpy(logits.reshape(-1, NUM_CLASSES)),
        labels_N=torch.from_numpy(labels.reshape(-1).copy()),
    )
    assert report["teacher"]["ece_pct"] == pytest.approx(expected, rel=1e-6)
    entropy = -(np.exp(log_p) * log_p).sum(-1).mean()
    assert report["teacher"]["entropy"] == pytest.approx(entropy, rel=1e-6)


def test_ratio_of_the_two_best_logits(report: dict[str, Any]) -> None:
    """The median over shards of each one's median: between the shards' own."""
    two = np.sort(by_hand(), axis=-1)[..., -2:]
    ratios = two[..., 1] / two[..., 0]
    medians = [np.median(ratios[:, rows]) for rows in orders.blocks(4, NUM_TRAIN, 8)]
    found = report["teacher"]["top1_top2_ratio"]
    if report["shards"] == 3:
        assert found == pytest.approx(np.median(medians), rel=1e-6)
    assert np.quantile(ratios, 0.3) < found < np.quantile(ratios, 0.7)


def test_suspects(report: dict[str, Any]) -> None:
    """Labelled samples whose label every view denies, by the least confident denial."""
    p, top = np.exp(log_softmax(by_hand())).max(-1), by_hand().argmax(-1)
    denied = np.flatnonzero((LABELS >= 0) & (top != LABELS).all(0))
    expected = sorted(denied, key=lambda row: -p[:, row].min())
    found = report["teacher"]["suspects"]
    assert len(expected) > 3
    assert [s["key"] for s in found] == [TABLES["train"].keys[row] for row in expected]
    for suspect, row in zip(found, expected, strict=True):
        assert suspect["label"] == f"class {LABELS[row]}"
        assert suspect["answer"] in {f"class {c}" for c in top[:, row]}
        assert suspect["confidence"] == pytest.approx(p[:, row].min(), rel=1e-6)


@pytest.mark.parametrize("name", encodings.ENCODINGS)
def test_divergence_of_the_encoding(name: str, tmp_path: Path) -> None:
    """KL(teacher || stored) at each temperature that the encoding has."""
    encoding = encoding_of(name)
    cache = write_cache(tmp_path / "cache", views=VIEWS, encoding=encoding)
    found = inspect(cache)["teacher"]["encoding_kl"]
    codec = encodings.Codec.of(encoding, NUM_CLASSES, mixes=False)
    assert list(found) == (["1", "2"] if name in encodings.TRUNCATED else ["1", "2", "4"])
    logits = by_hand()
    labels = np.broadcast_to(LABELS, logits.shape[:2])[..., None]
    arrays = codec.encode(logits.astype(np.float32), labels)
    for t in map(float, found):
        stored = codec.decode(arrays, t).astype(np.float64)
        log_p, log_q = log_softmax(logits / t), log_softmax(stored / t)
        expected = (np.exp(log_p) * (log_p - log_q)).sum(-1).mean()
        assert found[f"{t:g}"] == pytest.approx(expected, rel=1e-5, abs=1e-12)


def test_the_identity_and_the_sizes(report: dict[str, Any]) -> None:
    assert (report["samples"], report["val_samples"], report["views"]) == (NUM_TRAIN, 5, VIEWS)
    assert report["num_classes"] == NUM_CLASSES
    assert report["encoding"]["name"] == "int8"
    described = json.loads(json.dumps(IDENTITY.to_json()))
    assert report["view_recipe"] == described["views"]
    assert report["teachers"] == described["teachers"]
    assert report["dataset"]["domains"] == ["birds", "dogs"]
    assert "classes" not in report["dataset"]
    assert len(report["identity_sha256"]) == 64
    held = json.loads((Path(report["cache"]) / "manifest.json").read_text())
    on_disk = sum(path.stat().st_size for path in Path(report["cache"]).glob("shards/*"))
    assert (report["bytes"], report["shards"]) == (on_disk, len(held["shards"]))
    assert report["libraries"] == held["libraries"]
    assert "problems" not in report  # nothing was verified


def test_the_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Says what the report says."""
    cache = write_cache(tmp_path / "cache", views=VIEWS, **UNION)
    report = inspect(cache)
    out = capsys.readouterr().out
    assert out.startswith(f"{cache}  {report['identity_sha256'][:16]}\n")
    teacher = report["teacher"]
    for text in (
        "6 classes, 23 training images, 5 validation images",
        "5 views, dense, hdf5: 3 shards",
        "32 px, seed 4",
        f"top-1 {teacher['top1_pct']:.2f} %  top-5 {teacher['top5_pct']:.2f} %",
        f"ECE {teacher['ece_pct']:.2f} %  entropy {teacher['entropy']:.3f} nats",
        f"  dogs      {teacher['domains']['dogs']['images']} images, top-1",
        f"{teacher['suspects'][0]['key']}: labelled {teacher['suspects'][0]['label']}",
        "KL(teacher || stored) in nats  T=1: ",
    ):
        assert text in out


def test_images_that_were_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They have no part in the figures: their targets are zeros, which are no answers."""
    writer = open_writer(tmp_path / "cache", 1)
    left_out = writer.block_rows[1][2:]
    keys = [TABLES["train"].keys[row] for row in left_out]
    for job in writer.jobs():
        publish(writer, job, keys if job.block == 1 else [])
    writer.publish_val(val_logits(), [])
    writer.finish()
    report = inspect(tmp_path / "cache")
    assert report["bad_images"] == sorted(keys)
    assert f"left out  {len(keys)} unreadable images" in capsys.readouterr().out
    good = np.setdiff1d(np.arange(NUM_TRAIN), left_out)
    log_p, known = log_softmax(by_hand()[0, good]), good[LABELS[good] >= 0]
    assert report["teacher"]["entropy"] == pytest.approx(-(np.exp(log_p) * log_p).sum(-1).mean())
    hits = by_hand()[0, known].argmax(-1) == LABELS[known]
    assert report["teacher"]["top1_pct"] == pytest.approx(pct(hits))
    assert report["teacher"]["domains"]["made"]["images"] == len(known)


def test_a_shard_of_nothing_but_unreadable_images(tmp_path: Path) -> None:
    writer = open_writer(tmp_path / "cache", 2)
    for job in writer.jobs():
        rows = writer.block_rows[job.block]
        publish(writer, job, [TABLES["train"].keys[row] for row in rows])
    writer.publish_val(val_logits(), [])
    writer.finish()
    assert inspect(tmp_path / "cache")["teacher"]["top1_pct"] == 0


@pytest.mark.parametrize("labels", [[-1] * NUM_TRAIN, [0] * NUM_TRAIN])
def test_no_labels_at_all_or_one(labels: list[int], tmp_path: Path) -> None:
    report = inspect(write_cache(tmp_path / "cache", train__labels=np.array(labels)))
    numbers = report["teacher"]
    if labels[0] < 0:
        assert (numbers["top1_pct"], numbers["ece_pct"], numbers["suspects"]) == (0, 0, [])
    assert numbers["entropy"] > 0


def test_a_teacher_that_knows_nothing() -> None:
    """Equal logits: no ratio, full entropy, every figure finite."""
    codec, zeros = encodings.Codec("dense", 4), np.zeros((2, 3, 4), np.float32)
    arrays = codec.encode(zeros, np.zeros((2, 3, 1), np.int64))
    of_each = stats.of_targets(zeros, np.zeros((2, 3), np.int64), codec, arrays)
    found = stats.of_shard(of_each, np.zeros(3, np.int64), np.zeros(3, np.int64), list("abc"))
    assert found.ratios == 0
    assert found.entropy == pytest.approx(6 * np.log(4))
    json.dumps(found.to_json(), allow_nan=False)


def test_torch_is_not_imported(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache")
    code = (
        "import sys\nfrom stages.cli import main\nmain(['inspect', sys.argv[1]])\n"
        "print([m for m in ('torch', 'timm', 'torchvision') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(cache)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("[]\n")


def test_no_cache_and_no_argument(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for args, said in (((), "CACHE is required"), ((tmp_path,), "no cache manifest")):
        with pytest.raises(SystemExit) as stop:
            fgkd("inspect", *args)
        assert stop.value.code == 1
        assert said in capsys.readouterr().err
