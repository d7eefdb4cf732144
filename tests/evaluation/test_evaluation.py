"""`evaluate` agrees with timm to the image, and the baseline is the student without its teacher."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers.runs import STUDENT, assert_same, fgkd, rows, saved
from PIL import Image
from scipy import stats
from timm.data import create_transform, resolve_model_data_config

from fgkd.commands.evaluate import compared
from fgkd.training import loop

FIELDS = {
    *("run", "split", "num_images", "top1_pct", "top5_pct", "mean_class_pct", "nll", "ece_pct"),
    *("agreement_pct", "kl_to_teacher", "domains", "ci95", "mcnemar"),
}
SHOWN_TOO = {"model", "minutes", "tta"}


@pytest.fixture(scope="module")
def student(tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A distilled student; at --crop-pct 0.8 its evaluation does resize and crop."""
    run = tmp_path_factory.mktemp("student") / "run"
    fgkd(
        *("train-student", "--cache", tiny_cache, *STUDENT, "--output", run, "--epochs", 3),
        *("--batch-size", 16, "--lr", 5e-3, "--crop-pct", 0.8, "--workers", 0),
    )
    return run


def evaluate(output: Path, *args: object) -> list[dict[str, Any]]:
    """What `evaluate --json` writes."""
    fgkd("evaluate", *args, "--workers", 0, "--json", output)
    results: list[dict[str, Any]] = json.loads(output.read_text())
    return results


def timm_inputs(model: torch.nn.Module, split: Path) -> torch.Tensor:
    """The images of an ImageFolder split, sorted, through timm's transform for a model."""
    transform = create_transform(**resolve_model_data_config(model))
    files = sorted(split.rglob("*.png"))
    return torch.stack([transform(Image.open(path).convert("RGB")) for path in files])


def by_timm(run: Path, split: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of an ImageFolder split by timm, torch and Pillow alone."""
    model = timm.create_model(f"local-dir:{run / 'model'}", pretrained=True).eval()
    names = sorted(path.name for path in split.iterdir())
    labels = [names.index(path.parent.name) for path in sorted(split.rglob("*.png"))]
    with torch.no_grad():
        return model(timm_inputs(model, split)), torch.tensor(labels)


def top1_pct(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Percent of rows whose largest logit is the label's."""
    return 100 * (logits.argmax(1) == labels).double().mean().item()


def test_evaluate_agrees_with_timm_to_the_image(
    tiny_data: Path, tiny_teacher: Path, student: Path, tmp_path: Path
) -> None:
    """Top-1, NLL, agreement and KL of teacher and student, recomputed without fgkd."""
    results = evaluate(tmp_path / "out.json", tiny_teacher, student, "--batch-size", 7)
    logits = []
    for run, result in zip((tiny_teacher, student), results, strict=True):
        theirs, labels = by_timm(run, tiny_data / "test")
        logits.append(theirs)
        assert result["run"] == str(run)
        assert result["num_images"] == len(labels) == 32
        assert result["top1_pct"] == top1_pct(theirs, labels)
        nll = torch.nn.functional.cross_entropy(theirs, labels).item()
        assert result["nll"] == pytest.approx(nll, rel=1e-5)
    teacher, pupil = (x.log_softmax(1) for x in logits)
    kl = (teacher.exp() * (teacher - pupil)).sum(1).mean().item()
    assert results[1]["kl_to_teacher"] == pytest.approx(kl, rel=1e-4)
    assert results[1]["agreement_pct"] == top1_pct(logits[1], logits[0].argmax(1))
    assert 0 < results[1]["agreement_pct"] < 100  # else the test would not tell much


def test_the_json_has_the_promised_fields(
    tiny_teacher: Path, student: Path, tmp_path: Path
) -> None:
    """One object a run; a teacher has nobody to agree with."""
    results = evaluate(tmp_path / "out.json", tiny_teacher, student, "--split", "test")
    of_teacher = FIELDS - {"agreement_pct", "kl_to_teacher"}
    assert [set(r) - SHOWN_TOO for r in results] == [of_teacher, FIELDS]
    for result in results:
        inner = set(result) - SHOWN_TOO - {"run", "split", "domains", "mcnemar"}
        assert {name: set(part) for name, part in result["domains"].items()} == {"folder": inner}
        assert result["split"] == "test"


def test_intervals_and_mcnemar_are_of_timms_hits(
    tiny_data: Path, tiny_teacher: Path, student: Path, tmp_path: Path
) -> None:
    """The counts by timm's own logits; each interval holds its accuracy, by domain too."""
    results = evaluate(tmp_path / "out.json", tiny_teacher, student)
    hits = []
    for run, result in zip((tiny_teacher, student), results, strict=True):
        theirs, labels = by_timm(run, tiny_data / "test")
        hits.append((theirs.argmax(1) == labels).numpy())
        for part in (result, result["domains"]["folder"]):
            for name in ("top1_pct", "top5_pct", "mean_class_pct"):
                low, high = part["ci95"][name]
                assert low <= part[name] <= high
        assert result["ci95"]["top1_pct"][0] < result["ci95"]["top1_pct"][1]
    teacher, pupil = hits
    assert results[0]["mcnemar"] == []
    (found,) = results[1]["mcnemar"]
    counts = [int((pupil & ~teacher).sum()), int((teacher & ~pupil).sum())]
    assert [found["only_this"], found["only_other"]] == counts
    assert found["against"] == str(tiny_teacher)
    assert found["p_value"] == pytest.approx(stats.binomtest(counts[0], sum(counts)).pvalue)


def test_many_runs_are_held_against_the_first_student() -> None:
    """All pairs of three; of four with the first student; never runs on other images."""

    def scored(role: str, key: str = "a") -> Any:
        return SimpleNamespace(role=role, score=SimpleNamespace(keys=[key]))

    teacher, baseline, one = map(scored, ("teacher", "baseline", "student"))
    assert compared([teacher, baseline, one]) == [(1, 0), (2, 0), (2, 1)]
    assert compared([teacher, baseline, one, one]) == [(1, 0), (2, 1), (3, 1)]
    assert compared([teacher, scored("student", "b")]) == []


def test_a_student_alone_is_compared_with_the_stored_validation_logits(
    tiny_data: Path, tiny_teacher: Path, student: Path, tmp_path: Path
) -> None:
    """On val, agreement needs no teacher; it is what training reported and what timm finds."""
    (result,) = evaluate(tmp_path / "out.json", student, "--split", "val")
    best = saved(student, "best")
    for name in ("top1_pct", "nll", "agreement_pct", "kl_to_teacher"):
        assert result[name] == pytest.approx(best[f"val_{name}"], rel=1e-4), name
    teacher, _ = by_timm(tiny_teacher, tiny_data / "val")
    pupil, _ = by_timm(student, tiny_data / "val")
    assert result["agreement_pct"] == top1_pct(pupil, teacher.argmax(1))
    (alone,) = evaluate(tmp_path / "test.json", student, "--split", "test")
    assert "agreement_pct" not in alone


class Recorder:
    """Stands in for `loop.fit`: passes it on, keeping the batches and the first weights."""

    def __init__(self) -> None:
        self.batches: list[tuple[np.ndarray, torch.Tensor, torch.Tensor]] = []
        self.first: dict[str, torch.Tensor] = {}
        self.with_targets: set[bool] = set()
        self._fit = loop.fit

    def __call__(self, state: loop.State, *, batches: Any, **more: Any) -> Any:
        self.first = {name: value.clone() for name, value in state.model.state_dict().items()}
        return self._fit(state, batches=map(self._keep, batches), **more)

    def _keep(self, batch: Any) -> Any:
        self.batches.append((batch.row_ids, batch.image_u8_BHW3, batch.labels_B))
        self.with_targets.add(batch.teacher_BK is not None)
        return batch


def recorded(monkeypatch: pytest.MonkeyPatch, output: Path, *source: object) -> Recorder:
    """Train a student for 3 epochs and say what it was shown."""
    recorder = Recorder()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "fit", recorder)
        fgkd(
            *("train-student", *source, *STUDENT, "--output", output, "--epochs", 3),
            *("--batch-size", 16, "--lr", 5e-3, "--workers", 0),
        )
    return recorder


@pytest.mark.parametrize("of", ["cache", "data"])
def test_the_control_sees_the_same_batches_and_its_distillation_head_stays_out(
    tiny_data: Path, tiny_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    """Same images, labels, order and first weights; the unused head is as it was initialised."""
    source: dict[str, tuple[object, ...]] = {
        "cache": ("--cache", tiny_cache),
        "data": (
            *("--data", f"folder:{tiny_data}", "--views", 2, "--img-size", 32),
            *("--aug-recipe", "light", "--color-jitter", 0.3),
        ),
    }
    distilled = recorded(monkeypatch, tmp_path / "distilled", "--cache", tiny_cache)
    baseline = recorded(monkeypatch, tmp_path / "run", "--distillation", "none", *source[of])
    assert (distilled.with_targets, baseline.with_targets) == ({True}, {False})
    assert_same(baseline.first, distilled.first)
    assert len(baseline.batches) == len(distilled.batches) == 21
    for got, want in zip(baseline.batches, distilled.batches, strict=True):
        assert np.array_equal(got[0], want[0])
        assert_same(got[1:], want[1:])
    last = saved(tmp_path / "run")["model"]
    for name in ("net.head_dist.weight", "net.head_dist.bias"):
        assert torch.equal(last[name], baseline.first[name])
    assert not torch.equal(last["net.head.weight"], baseline.first["net.head.weight"])
    assert "distill_loss" not in rows(tmp_path / "run")[0]


def test_the_export_of_the_control_gives_timm_the_logits_of_its_one_head(
    tiny_data: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    """timm averages both heads of a distilled DeiT; the score must stay that of the trained one."""
    run = tmp_path / "run"
    fgkd(
        *("train-student", "--cache", tiny_cache, "--distillation", "none", *STUDENT),
        *("--output", run, "--epochs", 2, "--batch-size", 16, "--lr", 5e-3, "--workers", 0),
    )
    exported, labels = by_timm(run, tiny_data / "val")
    best = saved(run, "best")
    net = timm.create_model(
        STUDENT[1], num_classes=8, img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2
    ).eval()
    net.load_state_dict({k.removeprefix("net."): v for k, v in best["model"].items()})
    assert net.head_dist.weight.any()  # in the checkpoint it is as initialised
    with torch.no_grad():
        inputs = timm_inputs(timm.create_model(f"local-dir:{run / 'model'}"), tiny_data / "val")
        head = net.head(net.forward_features(inputs)[:, 0])
    torch.testing.assert_close(exported, head, rtol=1e-5, atol=1e-6)
    assert top1_pct(exported, labels) == best["val_top1_pct"]
    (result,) = evaluate(tmp_path / "out.json", run, "--split", "val")
    assert result["top1_pct"] == best["val_top1_pct"]
    assert result["nll"] == pytest.approx(best["val_nll"], rel=1e-5)
