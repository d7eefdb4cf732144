"""fgkd as a library: each command is a function, with typed results and nothing on the console."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from helpers.errors import expected
from helpers.runs import STUDENT, TEACHER
from PIL import Image
from torch import nn

import fgkd
from fgkd import files
from fgkd.commands import train_teacher
from fgkd.config import DataSpec, ModelSpec, OptimSpec, RunSpec, TrainTeacherConfig, parse_kwargs
from fgkd.errors import (
    DataMismatch,
    MissingModel,
    MissingOption,
    ModelError,
    OptionError,
    OutputExists,
    UnknownName,
    UnusedOption,
)
from fgkd.models.classifier import state_sha256
from fgkd.progress import Progress

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
HEAVY = ("torch", "numpy", "timm", "h5py", "PIL", "click", "yaml")


class Lines(Progress):
    """Collects what is reported."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.done: list[tuple[int, int]] = []

    def message(self, line: str) -> None:
        self.lines.append(line)

    def advance(self, done: int, total: int) -> None:
        self.done.append((done, total))


@pytest.fixture
def silent(capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing may be printed by the test's calls."""
    yield
    assert capfd.readouterr() == ("", "")


def test_importing_fgkd_imports_nothing_heavy() -> None:
    code = (
        "import sys, fgkd\n"
        f"print(*[name for name in {HEAVY} if name in sys.modules])\n"
        "assert fgkd.__version__ and set(fgkd.__all__) <= set(dir(fgkd))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


def test_every_public_name_can_be_used() -> None:
    for name in fgkd.__all__:
        assert getattr(fgkd, name) is not None
    with pytest.raises(AttributeError):
        fgkd.open_cash  # noqa: B018


def torchvision_net() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.mobilenet_v3_small(num_classes=8).eval()


@pytest.mark.usefixtures("silent")
def test_capture_from_a_torchvision_model(tiny_data: Path, tmp_path: Path) -> None:
    """The cache holds, for each view's pixels, what torchvision's own model answers."""
    dataset = fgkd.open_dataset(f"folder:{tiny_data}")
    net = torchvision_net()
    teacher = fgkd.as_classifier(net, name="mobilenet", classes=dataset.classes, input_size=32)
    assert repr(fgkd.open_dataset([Path(f"folder:{tiny_data}")])) == repr(dataset)
    with pytest.raises(OptionError, match="s3://bucket/cache"):  # and no folder "s3:" is made
        fgkd.capture(teacher, dataset=dataset, views=2, output=Path("s3://bucket/cache"))
    options = {"views": 2, "output": tmp_path / "cache", "encoding": "dense32", "workers": 0}
    progress = Lines()
    found = fgkd.capture(
        teacher, dataset=dataset, aug_recipe="light", shard_size=40, progress=progress, **options
    )
    assert found.complete
    assert found.views == 2
    assert progress.done[-1][0] == progress.done[-1][1] > 0
    views = fgkd.CachedViews(fgkd.open_cache(tmp_path / "cache"))
    assert len(views) == len(dataset.splits["train"]) == 97
    items = [views[i] for i in range(0, 97, 8)]
    x = torch.stack([item["image"] for item in items]).permute(0, 2, 3, 1)
    with torch.no_grad():
        wanted = net(((x / 255 - MEAN) / STD).permute(0, 3, 1, 2))
    stored = torch.stack([item["teacher_logits"] for item in items])
    torch.testing.assert_close(stored, wanted, atol=1e-4, rtol=1e-4)
    more = fgkd.capture(teacher, dataset=dataset, aug_recipe="light", shard_size=40, **options)
    assert more.complete
    assert more.shards_written == 0
    other = fgkd.as_classifier(net, name="mobilenet", classes=["x"] * 8, input_size=32)
    with pytest.raises(DataMismatch) as refused:
        fgkd.capture(other, dataset=dataset, **options)
    assert refused.value.subject == "classes"


@pytest.mark.usefixtures("silent")
def test_the_identity_has_the_weights_as_they_were(tiny_data: Path, tmp_path: Path) -> None:
    """Also where the teacher computes in another number type than its weights are in."""
    dataset = fgkd.open_dataset(f"folder:{tiny_data}")
    net = torchvision_net()
    given = fgkd.as_classifier(net, name="mobilenet", classes=dataset.classes, input_size=32)
    want = state_sha256(given.net.state_dict())
    teacher = fgkd.as_classifier(net, name="mobilenet", classes=dataset.classes, input_size=32)
    options = {"views": 1, "output": tmp_path / "cache", "dtype": "float64", "workers": 0}
    fgkd.capture(teacher, dataset=dataset, **options)
    (one,) = fgkd.open_cache(tmp_path / "cache").identity.teachers
    assert one.weights_sha256 == want


@pytest.mark.usefixtures("silent")
def test_capture_from_a_function_and_an_ensemble(tiny_data: Path, tmp_path: Path) -> None:
    dataset = fgkd.open_dataset(f"folder:{tiny_data}")

    def colours(scale: float) -> fgkd.models.Classifier:
        def logits(x: torch.Tensor) -> torch.Tensor:
            return scale * x.mean((2, 3)).repeat(1, 3)[:, :8]

        return fgkd.as_classifier(
            logits, name=f"colours {scale}", classes=dataset.classes, input_size=16
        )

    for name, teachers in {"one": colours(2.0), "two": [colours(1.0), colours(3.0)]}.items():
        fgkd.capture(
            teachers,
            dataset=dataset,
            views=1,
            output=tmp_path / name,
            ensemble="logits",
            encoding="dense32",
            workers=0,
        )
    one, two = (fgkd.CachedViews(tmp_path / name)[5] for name in ("one", "two"))
    assert torch.equal(one["image"], two["image"])
    torch.testing.assert_close(one["teacher_logits"], two["teacher_logits"])
    cache = fgkd.open_cache(tmp_path / "two")
    assert [t.architecture for t in cache.identity.teachers] == ["colours 1.0", "colours 3.0"]


@pytest.mark.usefixtures("silent")
def test_from_images_to_predictions(tiny_data: Path, tmp_path: Path) -> None:
    """Teacher from dataclasses, cache, student, evaluation, predictions and export."""
    teacher, cache, student = (tmp_path / name for name in ("teacher", "cache", "student"))
    config = TrainTeacherConfig(
        data=DataSpec(data=(f"folder:{tiny_data}",)),
        model=ModelSpec(model=TEACHER[1], model_kwargs=(TEACHER[5],), img_size=32),
        run=RunSpec(output=str(teacher), workers=0),
        optim=OptimSpec(epochs=2, batch_size=16, lr=5e-3),
    )
    trained = train_teacher.run(config)
    assert trained.finished
    assert trained.path == teacher
    assert trained.best["val_top1_pct"] >= 0
    written = fgkd.cache_logits(teacher=trained, views=2, output=cache, workers=0)
    assert written.complete
    progress = Lines()
    kwargs = dict(zip(STUDENT[::2], STUDENT[1::2], strict=True))
    found = fgkd.train_student(
        cache=written,
        model=kwargs["--model"],
        model_kwargs=parse_kwargs([kwargs["--model-kwargs"]], "model_kwargs"),
        epochs=np.int64(2),
        batch_size=16,
        workers=0,
        device=torch.device("cpu"),
        output=str(student),
        progress=progress,
    )
    assert found.finished
    assert any("epoch 2" in line for line in progress.lines)
    scores = fgkd.evaluate([trained, found], workers=0, report=str(tmp_path / "page"))
    assert [one.run for one in scores.results] == [str(teacher), str(student)]
    assert scores.results[1].metrics.agreement_pct is not None
    assert scores.report == tmp_path / "page" / "index.html"
    assert scores.to_json()[0]["num_images"] == 32
    best = fgkd.predict(found, tiny_data / "test", workers=0, top_k=8)
    right = sum(one.top[0][0] == Path(one.image).parent.name for one in best)
    assert 100 * right / len(best) == pytest.approx(scores.results[1].metrics.top1_pct)
    exported = fgkd.export(found, format="pt2", output=tmp_path / "out")
    assert exported.path.stat().st_size == exported.num_bytes
    assert exported.difference < 1e-4
    (inspected,) = fgkd.inspect(written, verify=True, teacher=trained, samples=4)
    assert inspected.problems == []
    assert inspected.summary.samples == 97
    assert fgkd.CachedViews(fgkd.open_cache(written)).num_views == 2
    assert fgkd.load_classifier(trained).classes == found.model.classes
    assert all(line in repr(scores) for line in scores.notes)  # what a notebook shows
    assert all(line in repr(inspected) for line in inspected.lines())


def test_models_in_memory_are_evaluated_used_and_exported(
    tiny_data: Path, tiny_runs: dict[str, Path], tmp_path: Path
) -> None:
    """As their files are: another's module, beside a run that is compared with it."""
    teacher, student = tiny_runs["teacher"], tiny_runs["student"]
    loaded = fgkd.load_classifier(teacher)
    net, (mean, std) = loaded.net, (loaded.mean.flatten(), loaded.std.flatten())
    given = {"mean": mean.tolist(), "std": std.tolist(), "input_size": loaded.input_size}
    more = {name: loaded.config[name] for name in ("crop_pct", "interpolation")}
    model = fgkd.as_classifier(net, name="mine", classes=loaded.classes, **given, **more)
    data = f"folder:{tiny_data}"
    held = fgkd.evaluate([model, student], data=data, workers=0, report=tmp_path / "page")
    filed = fgkd.evaluate([teacher, student], data=data, workers=0)
    assert held[0].metrics == filed[0].metrics
    assert held[1].metrics == filed[1].metrics  # agreement with the teacher, too
    assert held[1].metrics.agreement_pct is not None
    assert (held[0].model, held[0].minutes) == ("mine", None)
    images = [tiny_data / "test"]
    found, expected_ = (fgkd.predict(one, images, workers=0) for one in (model, teacher))
    assert [one.top for one in found] == [one.top for one in expected_]
    with Image.open(found[0].image) as image:
        views = [model.eval_transform(one) for one in (image, np.array(image.convert("RGB")))]
    name, probability = found[0].top[0]
    for probs in model.logits(np.stack(views)).softmax(1):
        assert model.classes[probs.argmax()] == name
        assert probs.max().item() == pytest.approx(probability, rel=1e-4)
    with pytest.raises(MissingOption) as nowhere:
        fgkd.export(model, format="pt2")
    assert nowhere.value.option == "output"
    assert fgkd.export(model, format="pt2", output=tmp_path).path == tmp_path / "model.pt2"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("input_size", size) for size in ((3, 48, 32), (1, 32, 32), (32, 32, 3), (3, 32), 0, -4)),
        *(("input_size", size) for size in ("32", 31.5, None)),
        *(("mean", mean) for mean in ((0.5,), (127.5, 127.5, 127.5), (-0.1, 0.5, 0.5), 0.5)),
        *(("std", std) for std in ((0, 0, 0), (0.2, 0.2), (0.2, 0.2, float("nan")))),
        *(("crop_pct", share) for share in (0, 1.2, -1)),
        *(("crop_mode", "middle"), ("interpolation", "cubic"), ("name", "")),
        *(("classes", []), ("classes", "abc"), ("model", "resnet18")),
    ],
)
def test_what_no_image_can_be_prepared_for_is_no_classifier(option: str, value: object) -> None:
    given: dict[str, Any] = {"model": nn.Identity(), "name": "mine", "classes": ["a", "b"]}
    with pytest.raises(OptionError) as error:
        fgkd.as_classifier(**given | {option: value})
    assert (error.value.option, error.value.value) == (option, value)


def test_sizes_and_figures_of_numpy_make_a_classifier() -> None:
    side, figures = np.int64(40), np.full(3, 0.5)
    model = fgkd.as_classifier(
        nn.Identity(), name="mine", classes=["a"], input_size=side, mean=figures, std=figures
    )
    assert model.input_size == (3, 40, 40)
    assert [type(n) for n in model.input_size] == [int, int, int]
    assert model.config["mean"] == (0.5, 0.5, 0.5)


def test_a_model_or_dataset_in_the_place_of_its_source_is_explained(tmp_path: Path) -> None:
    net, dataset = torchvision_net(), fgkd.open_dataset("icons")
    with pytest.raises(ModelError):  # one model at a time
        fgkd.export([tmp_path, tmp_path], format="pt2")  # type: ignore[arg-type]
    for call in (fgkd.load_classifier, fgkd.evaluate, lambda one: fgkd.predict(one, tmp_path)):
        with pytest.raises(ModelError) as error:
            call(net)
        assert error.value.model == "MobileNetV3"
        assert "as_classifier" in str(error.value)
    with pytest.raises(OptionError) as teacher:
        fgkd.cache_logits(teacher=net, views=1, output=tmp_path / "cache")
    assert teacher.value.option == "teacher"
    assert "fgkd.capture" in str(teacher.value)
    with pytest.raises(OptionError) as data:
        fgkd.train_teacher(data=dataset, model="resnet10t", output=tmp_path / "run")
    assert (data.value.option, "['icons']" in str(data.value)) == ("data", True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("classes", [8, 20_000])
def test_objects_of_any_size_are_printed_on_a_line(
    tiny_data: Path, tiny_cache: Path, classes: int
) -> None:
    """At a prompt, in a notebook and in a failing assert."""
    reader = fgkd.open_cache(tiny_cache)
    dataset = fgkd.open_dataset(f"folder:{tiny_data}")
    dataset = replace(dataset, classes=[f"class {i}" for i in range(classes)])
    views = fgkd.CachedViews(reader)
    views.set_epoch(1)
    for one, texts in (
        (dataset, ("folder", "97 train", f"{classes} classes")),
        (dataset.train, ("97",)),
        (reader, (str(tiny_cache), "97", "8 classes", reader.codec.name)),
        (views, (str(tiny_cache), "97", "8 classes", f"view 1 of {reader.views}")),
    ):
        shown = repr(one)
        assert shown.startswith(f"{type(one).__name__}(")
        assert "\n" not in shown
        assert len(shown) < 200 + len(str(tiny_cache))
        assert [text for text in texts if text not in shown] == []


def test_wrong_calls_raise_typed_errors(
    tiny_teacher: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    """Nothing given is ignored, and each error has the facts."""
    with pytest.raises(UnknownName) as unknown:
        fgkd.train_student(cash="x")
    assert (unknown.value.option, "cache" in unknown.value.known) == ("cash", True)
    with pytest.raises(OptionError) as low:
        fgkd.train_student(cache=str(tiny_cache), model="m", epochs=0)
    assert (low.value.option, low.value.value) == ("epochs", 0)
    with pytest.raises(MissingOption):
        fgkd.evaluate([])
    with pytest.raises(UnknownName) as elsewhere:
        fgkd.evaluate(tiny_teacher, predict=["a.jpg"])
    assert elsewhere.value.option == "predict"
    with pytest.raises(OptionError) as split:
        fgkd.evaluate(tiny_teacher, split="val", tta="flip", json=str(tmp_path))
    assert split.value.option == "json"
    with pytest.raises(OptionError) as unwritten:
        fgkd.export(tiny_teacher, format="tflite")
    assert unwritten.value.option == "format"
    fgkd.export(tiny_teacher, format="pt2", output=tmp_path)
    with pytest.raises(OutputExists) as exists:
        fgkd.export(tiny_teacher, format="pt2", output=tmp_path)
    assert exists.value.path == tmp_path / "model.pt2"
    with pytest.raises(MissingModel):
        fgkd.predict(tmp_path / "no", tmp_path)
    with pytest.raises(UnusedOption) as unused:
        fgkd.inspect(tiny_cache, teacher=[str(tiny_teacher)])
    assert unused.value.option == "teacher"
    with pytest.raises(TypeError):
        fgkd.capture(tiny_teacher, dataset="icons", data=["x"], output="y", views=1)


def test_predictions_of_what_is_no_image(tiny_teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    found = fgkd.predict([tiny_teacher], [tmp_path / "text.jpg", tmp_path / "gone"], workers=0)
    assert [bool(one.error) for one in found] == [True, True]
    assert found[0].to_json()["run"] == str(tiny_teacher)
    assert found[1].to_json() == {"image": str(tmp_path / "gone"), "error": found[1].error}


def test_options_of_capture_have_an_effect_or_are_refused(
    tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    """A dataset's and a teacher's that it opens itself; not of those that are open."""
    dataset, teacher = fgkd.open_dataset(f"folder:{tiny_data}"), fgkd.load_classifier(tiny_teacher)
    common: dict[str, Any] = {"views": 1, "output": tmp_path / "out", "workers": 0}
    for name, value in (("val_fraction", 0.2), ("test_fraction", 0.2), ("label_column", "x")):
        with expected(UnusedOption, option=name, value=value):
            fgkd.capture(teacher, dataset=dataset, **common, **{name: value})
    for name, value in (("val_fraction", 0.2), ("label_column", "x")):
        with expected(UnusedOption, option=name, value=value):
            fgkd.capture(teacher, dataset=f"folder:{tiny_data}", **common, **{name: value})
    for one in (teacher, tiny_teacher):
        with expected(UnusedOption, option="teacher_model", value="resnet18"):
            fgkd.capture(one, dataset=dataset, teacher_model="resnet18", **common)
    with expected(UnusedOption, option="json"):
        fgkd.capture(teacher, dataset=dataset, json=str(tmp_path / "x.json"), **common)
    assert list(tmp_path.iterdir()) == []


def test_capture_reads_a_file_of_weights_and_a_column(
    tiny_data: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    table = tmp_path / "table.csv"
    rows = [f"{path},{path.parent.name}" for path in sorted((tiny_data / "train").glob("*/*"))]
    table.write_text("\n".join(["picture,bird", *rows]) + "\n")
    found = fgkd.capture(
        tiny_teacher / "model" / "model.safetensors",
        dataset=f"csv:{table}",
        teacher_model=TEACHER[1],
        teacher_model_kwargs=[f"{TEACHER[5]},img_size=32"],
        class_map="order",
        image_column="picture",
        label_column="bird",
        views=1,
        output=tmp_path / "cache",
        workers=0,
    )
    assert found.complete
    assert len(fgkd.open_cache(found.path).classes) == 8


def test_json_of_a_dry_run_is_written_by_the_functions(
    tiny_teacher: Path, tiny_cache: Path, tmp_path: Path
) -> None:
    kwargs = dict(zip(STUDENT[::2], STUDENT[1::2], strict=True))
    common: dict[str, Any] = {"output": tmp_path / "o", "dry_run": True, "workers": 0}
    student = {"model": kwargs["--model"], "model_kwargs": [kwargs["--model-kwargs"]]}
    student |= {"cache": str(tiny_cache), "epochs": 1}
    for number, (call, options) in enumerate(
        [(fgkd.train_student, student), (fgkd.cache_logits, {"teacher": str(tiny_teacher)})]
    ):
        path = tmp_path / f"{number}.json"
        estimate = call(**common, **options, json=path)
        assert files.read_json(path, "estimate") == json.loads(json.dumps(estimate.to_json()))
        with expected(UnusedOption, option="json", value=str(path)):
            call(**common | {"dry_run": False}, **options, json=path)


def test_json_is_written_by_the_functions(tiny_cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    (found,) = fgkd.inspect(tiny_cache, json=str(out))
    (written,) = files.read_json(out, "results")
    assert written == found.to_json()
    assert np.isclose(written["teacher"]["top1_pct"], found.summary.teacher.top1_pct)
