"""Every form of a teacher gives its logits, and its classes are matched with the data's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from helpers.failures import Fails
from helpers.models import TINY_CONVNEXT, build, images, perturb
from helpers.runs import TEACHER, fgkd

import fgkd as library
from fgkd import models
from fgkd.errors import (
    DataMismatch,
    DatasetError,
    HubError,
    MissingOption,
    ModelError,
    OptionError,
    UnknownName,
    UnreadableFile,
    UnusedOption,
    WeightsError,
)
from fgkd.models.class_names import fit_classes, match_classes

State = dict[str, Any]
KWARGS = TEACHER[5]


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


WRAPPED: dict[str, Callable[[State], Any]] = {
    "plain": lambda s: s,
    "timm's train.py": lambda s: {
        "epoch": 3,
        "arch": "convnext_atto",
        "state_dict": {k: v + 1 for k, v in s.items()},
        "state_dict_ema": s,
    },
    "DataParallel": lambda s: {"state_dict": prefixed(s, "module.")},
    "compiled": lambda s: {"model": prefixed(s, "_orig_mod.")},
    "compiled and distributed": lambda s: {"model": prefixed(s, "module._orig_mod.")},
    "DeiT's, with an average": lambda s: {
        "model": {k: v + 1 for k, v in s.items()},
        "model_ema": s,
        "epoch": 1,
    },
    "Lightning, model": lambda s: {
        "state_dict": prefixed(s, "model.") | {"criterion.weight": torch.ones(3)},
        "pytorch-lightning_version": "2.6.6",
        "hyper_parameters": {"lr": 0.1},
    },
    "Lightning, net": lambda s: {"state_dict": prefixed(s, "net.") | {"mean": torch.zeros(3)}},
}


@pytest.fixture(scope="module")
def net() -> Any:
    return perturb(build("convnext_atto")).net


@pytest.mark.parametrize("wrapping", WRAPPED)
@pytest.mark.parametrize("suffix", [".pth", ".pth.tar", ".bin", ".ckpt"])
def test_every_file_of_weights_gives_the_networks_logits(
    wrapping: str, suffix: str, net: Any, tmp_path: Path
) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(WRAPPED[wrapping](net.state_dict()), path)
    found = library.load_classifier(path, model="convnext_atto", model_kwargs=TINY_CONVNEXT)
    x = images(2)
    assert torch.equal(found.logits(x), models.Classifier(net, uses_dist=True).eval().logits(x))
    assert found.num_classes == 3
    assert found.classes == []
    assert found.weights_path == path


def test_safetensors_and_other_input_sizes(net: Any, tmp_path: Path) -> None:
    safetensors.torch.save_file(net.state_dict(), tmp_path / "w.safetensors")
    given = {"model": "convnext_atto", "model_kwargs": TINY_CONVNEXT}
    found = library.load_classifier(tmp_path / "w.safetensors", **given)
    assert found.input_size == (3, 224, 224)  # convnext_atto's own
    given["model_kwargs"] = TINY_CONVNEXT | {"img_size": 32}
    assert library.load_classifier(tmp_path / "w.safetensors", **given).input_size == (3, 32, 32)
    deit = build()
    torch.save(deit.net.state_dict(), tmp_path / "d.pth")
    kwargs = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 32}
    name = "deit_tiny_distilled_patch16_224"
    again = library.load_classifier(tmp_path / "d.pth", model=name, model_kwargs=kwargs)
    assert again.input_size == (3, 32, 32)
    assert torch.equal(again.logits(images(2)), deit.eval().logits(images(2)))


def test_files_that_are_no_weights_of_this_model(net: Any, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(net.state_dict(), path)
    with pytest.raises(MissingOption) as missing:
        library.load_classifier(path)
    assert missing.value.option == "teacher_model"
    with pytest.raises(UnknownName):
        library.load_classifier(path, model="convnext_attto")
    with pytest.raises(WeightsError):
        library.load_classifier(path, model="resnet18")
    with pytest.raises(ModelError):
        library.load_classifier(path, model="convnext_atto", model_kwargs={"depth": 3})
    torch.save({"model": net}, path)  # a pickled module is code
    with pytest.raises(UnreadableFile):
        library.load_classifier(path, model="convnext_atto")
    for content in (b"", b"no weights", path.read_bytes()[:1000]):
        path.write_bytes(content)
        with pytest.raises(UnreadableFile) as damaged:
            library.load_classifier(path, model="convnext_atto")
        assert damaged.value.path == path
    torch.save({"epoch": 3}, path)
    with pytest.raises(UnreadableFile):
        library.load_classifier(path, model="convnext_atto")


def test_a_folder_that_timm_saves_by_default(net: Any, tmp_path: Path) -> None:
    """pytorch_model.bin, and no class names."""
    plain = timm.create_model("convnext_atto", num_classes=3, **TINY_CONVNEXT)
    plain.load_state_dict(net.state_dict())
    timm.models.save_for_hf(plain, tmp_path / "model", safe_serialization=False)
    assert (tmp_path / "model" / "pytorch_model.bin").is_file()
    for source in (tmp_path / "model", f"local-dir:{tmp_path / 'model'}"):
        found = library.load_classifier(source)
        x = images(2, 64)
        assert torch.equal(
            found.logits(x), models.Classifier(plain, uses_dist=True).eval().logits(x)
        )
        assert found.classes == []
        assert found.num_classes == 3


def test_a_torchvision_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By torchvision's own code, from the folder in which torch's hub keeps what it downloaded."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(0)
    plain = torchvision.models.mobilenet_v3_small().eval()
    weights = torchvision.models.MobileNet_V3_Small_Weights.DEFAULT
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(plain.state_dict(), folder / weights.url.rpartition("/")[2])
    found = library.load_classifier("torchvision:mobilenet_v3_small")
    assert found.classes == weights.meta["categories"]
    assert found.input_size == (3, 224, 224)
    x = images(1, 224)
    with torch.no_grad():
        wanted = plain(weights.transforms()(x.permute(0, 3, 1, 2)))
    assert found.eval_transform.crop_pct == 224 / 256
    small = (x.permute(0, 3, 1, 2) / 255 - found.mean) / found.std
    with torch.no_grad():
        torch.testing.assert_close(found.logits(x), plain(small), atol=1e-5, rtol=1e-5)
    assert wanted.shape == (1, 1000)
    with pytest.raises(ModelError):
        library.load_classifier("torchvision:mobilenet_v9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr("torch.hub.download_url_to_file", mock_offline)
    with pytest.raises(HubError):
        library.load_classifier("torchvision:mobilenet_v3_small")


def mock_offline(*args: object, **more: object) -> None:
    raise OSError("no network")


# Classes


TEN = [f"class {i}" for i in range(10)]


def match(teacher: list[str], data: list[str], class_map: str | None = None) -> Any:
    found = match_classes(teacher, data, class_map, name="T", num=len(teacher))
    return [list(some) for some in found.columns], found.text


def test_equal_classes_are_taken_as_they_are() -> None:
    assert match(TEN, TEN) == ([[i] for i in range(10)], "")


def test_permutations_and_supersets_are_selected_by_name() -> None:
    columns, text = match(TEN, TEN[::-1])
    assert columns == [[i] for i in reversed(range(10))]
    assert text == "10 classes, by name"
    columns, text = match(TEN, ["class 7", "class 2"])
    assert columns == [[7], [2]]
    assert text == "2 of the teacher's 10 classes, by name"
    assert match(TEN, ["Class-7", "CLASS_2"])[0] == [[7], [2]]  # spelling of names


def test_wordnet_ids_match_names() -> None:
    """Stanford Dogs' folders and plain names with ImageNet's ids, and the other way."""
    info = timm.data.ImageNetInfo("imagenet1k")
    ids = info.label_names()
    place = {name: i for i, name in enumerate(ids)}
    dogs = ["n02085620-Chihuahua", "n02085782-Japanese_spaniel", "n02099712-Labrador_retriever"]
    wanted = [[place[name[:9]]] for name in dogs]
    columns, text = match(ids, dogs)
    assert columns == wanted
    assert text == "3 of the teacher's 1,000 classes, by name"
    assert match(ids, ["chihuahua", "Japanese spaniel", "Labrador_retriever"])[0] == wanted
    assert match(["Chihuahua", "tench"], ["n01440764", "n02085620-Chihuahua"])[0] == [[1], [0]]


@pytest.mark.parametrize(
    ("teacher", "data"),
    [
        (TEN, ["class 7", "class 11"]),
        ([], ["a"]),
        (["a", "A"], ["a ", "b"]),
        (["a b", "c"], ["a-b", "a_b"]),
    ],
)
def test_everything_else_is_refused_with_the_names_of_both_sides(
    teacher: list[str], data: list[str]
) -> None:
    with pytest.raises(DataMismatch) as error:
        match(teacher, data)
    assert error.value.subject == "classes"
    for name in (*teacher[:2], *data[:2]):
        assert repr(name) in error.value.message


def test_order_takes_equal_counts_alone() -> None:
    columns, text = match(["x", "y"], ["a", "b"], "order")
    assert columns == [[0], [1]]
    assert text
    with pytest.raises(DataMismatch):
        match(["x", "y"], ["a"], "order")


def test_a_table_merges_classes(tmp_path: Path) -> None:
    path = tmp_path / "map.csv"
    path.write_text('\ufeffteacher,data\nx,a\ny,"b, or c"\n\nz,a\n', encoding="utf-8")
    columns, text = match(["x", "y", "z", "w"], ["a", "b, or c"], str(path))
    assert columns == [[0, 2], [1]]
    assert text == f"3 of 4 classes, by {path}"
    teacher = library.as_classifier(
        lambda x: x.mean((2, 3)).repeat(1, 2)[:, :4] * torch.tensor([1.0, 2.0, 3.0, 4.0]),
        name="T",
        classes=["x", "y", "z", "w"],
        input_size=32,
    )
    fitted, _ = fit_classes(teacher, ["a", "b, or c"], str(path), name="T")
    x = images(3)
    p = teacher.logits(x).softmax(1)
    torch.testing.assert_close(
        fitted.logits(x).exp(), torch.stack([p[:, 0] + p[:, 2], p[:, 1]], dim=1)
    )
    assert fitted.classes == ["a", "b, or c"]
    assert fitted.weights_sha256 != teacher.weights_sha256


@pytest.mark.parametrize(
    ("text", "line"), [("x,a\nq,b\n", 2), ("x,a\ny,c\n", 2), ("x\n", 1), ("x,a\n", None)]
)
def test_a_wrong_table_is_refused_at_its_line(text: str, line: int | None, tmp_path: Path) -> None:
    (tmp_path / "map.csv").write_text(text)
    with pytest.raises(DatasetError) as error:
        match(["x", "y"], ["a", "b"], str(tmp_path / "map.csv"))
    assert error.value.line == line
    with pytest.raises(UnreadableFile):
        match(["x", "y"], ["a", "b"], str(tmp_path / "gone.csv"))


# Commands


def test_the_forms_of_one_teacher_give_equal_targets(
    tiny_teacher: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """Run, folder, timm's folder of pytorch_model.bin, and file of weights: one cache's targets."""
    run = models.load(tiny_teacher / "model")
    torch.save({"state_dict": prefixed(run.net.state_dict(), "module.")}, tmp_path / "w.pth.tar")
    names = {"label_names": run.classes}
    timm.models.save_for_hf(run.net, tmp_path / "hf", model_config=names, safe_serialization=False)
    kwargs = f"{KWARGS},img_size=32"
    data = ("--data", f"folder:{tiny_data}", "--aug-recipe", "light", "--color-jitter", 0.3)
    forms: dict[str, tuple[object, ...]] = {
        "run": (tiny_teacher,),
        "local": (f"local-dir:{tiny_teacher / 'model'}",),
        "hf": (tmp_path / "hf",),
        "file": (
            *(tmp_path / "w.pth.tar", "--teacher-model", "convnext_atto"),
            *("--teacher-model-kwargs", kwargs, "--class-map", "order"),
        ),
    }
    found = {}
    for name, form in forms.items():
        out = tmp_path / f"cache-{name}"
        fgkd(
            *("cache-logits", "--teacher", *form, *data, "--views", 2, "--output", out),
            *("--encoding", "dense32", "--dtype", "float64", "--workers", 0),
        )
        found[name] = library.open_cache(out).targets(range(97), 1)
    for name in ("local", "hf", "file"):
        assert (found[name] == found["run"]).all(), name


def test_a_teacher_of_more_classes_in_another_order(
    tiny_teacher: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its cache, a live student's teacher and evaluate select the data's classes."""
    run = models.load(tiny_teacher / "model")
    order = [5, 0, 7, 3, 1, 6, 2, 4]
    net = run.net
    with torch.no_grad():
        weight, bias = net.head.fc.weight[order], net.head.fc.bias[order]
        net.head.fc.weight = torch.nn.Parameter(torch.cat([weight, weight[:2]]))
        net.head.fc.bias = torch.nn.Parameter(torch.cat([bias, bias[:2] + 1]))
    net.num_classes = 10
    names = [run.classes[i] for i in order] + ["other", "more"]
    net.pretrained_cfg = dict(net.pretrained_cfg, num_classes=10, label_names=names)
    models.save(run, tmp_path / "teacher")
    data = ("--data", f"folder:{tiny_data}")
    cache = ("cache-logits", "--views", 1, "--encoding", "dense32", "--workers", 0)
    cache = (*cache, *data, "--aug-recipe", "light")
    fgkd(*cache, "--teacher", tiny_teacher, "--output", tmp_path / "a")
    capsys.readouterr()
    fgkd(*cache, "--teacher", tmp_path / "teacher", "--output", tmp_path / "b")
    assert "8 of the teacher's 10 classes, by name" in capsys.readouterr().out
    a, b = (library.open_cache(tmp_path / name) for name in "ab")
    torch.testing.assert_close(
        torch.from_numpy(a.targets(range(97), 0)),
        torch.from_numpy(b.targets(range(97), 0)),
        atol=1e-5,
        rtol=1e-5,
    )
    assert a.identity.teachers != b.identity.teachers
    verify = ("inspect", tmp_path / "b", "--verify", "--samples", 8, "--teacher")
    fgkd(*verify, tmp_path / "teacher")
    scores = library.evaluate(
        [tiny_teacher, tmp_path / "teacher"], data=[f"folder:{tiny_data}"], workers=0
    )
    assert scores.top1[0] == scores.top1[1]


def test_two_live_teachers_and_options_without_a_file_are_refused(
    fails: Fails, tiny_teacher: Path, tmp_path: Path
) -> None:
    student = ("train-student", "--model", "resnet18", "--output", tmp_path / "run")
    said = fails(*student, "--teacher", tiny_teacher, "--teacher", tiny_teacher)
    assert isinstance(said.error, OptionError)
    assert said.error.option == "teacher"
    cache = ("cache-logits", "--teacher", tiny_teacher, "--output", tmp_path / "cache")
    said = fails(*cache, "--teacher-model", "resnet18")
    assert isinstance(said.error, UnusedOption)


@pytest.mark.parametrize("form", ["run", "local", "file"])
def test_a_run_of_every_form_is_scored_predicted_with_and_exported(
    form: str, tiny_teacher: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """By the commands, with the run's own figures; a file of weights needs its architecture."""
    run = shutil.copytree(tiny_teacher, tmp_path / "run")
    source: tuple[object, ...] = (run,) if form == "run" else (f"local-dir:{run / 'model'}",)
    named: tuple[object, ...] = ()
    if form == "file":
        torch.save(models.load(run / "model").net.state_dict(), tmp_path / "w.pth")
        source = (tmp_path / "w.pth",)
        named = ("--teacher-model", "convnext_atto")
        named = (*named, "--teacher-model-kwargs", f"{KWARGS},img_size=32")
    data = ("--data", f"folder:{tiny_data}", "--workers", 0, "--json", tmp_path / "out.json")
    order = ("--class-map", "order") if form == "file" else ()
    page = ("--report", tmp_path / "page")
    fgkd("evaluate", *source, *named, *order, *data, *page)
    (found,) = json.loads((tmp_path / "out.json").read_text())
    assert found["top1_pct"] == library.evaluate(tiny_teacher, workers=0).top1[0]
    assert (tmp_path / "page" / "index.html").is_file()
    photos = sorted((tiny_data / "test").glob("*/*"))[:3]
    table = tmp_path / "classes.csv"
    fgkd("predict", *source, *photos, *named, "--workers", 0, "--output", table)
    assert len(table.read_text().splitlines()) == 4
    fgkd("export", *source, *named, "--format", "pt2")
    folder = {"run": run, "local": run / "model", "file": tmp_path}[form]
    assert (folder / "export" / "model.pt2").is_file()


def test_a_model_that_is_fetched_is_exported_to_a_folder_that_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingOption) as error:
        library.export("timm:resnet10t", format="pt2")
    assert error.value.option == "output"


def test_options_of_a_teacher_that_is_not_there_are_refused(
    fails: Fails, tiny_cache: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    student = ("train-student", "--model", "resnet18", "--output", tmp_path / "run")
    for command in (
        (*student, "--cache", tiny_cache, "--class-map", "order"),
        (*student, "--cache", tiny_cache, "--teacher-model", "resnet18"),
        (*student, "--teacher", tiny_teacher, "--teacher-model", "resnet18"),
        (*student, "--teacher", tiny_teacher, "--teacher-model-kwargs", "a=1"),
        ("inspect", tiny_cache, "--class-map", "order"),
        ("export", tiny_teacher, "--format", "pt2", "--teacher-model", "resnet18"),
        ("predict", tiny_teacher, tmp_path, "--teacher-model", "resnet18"),
    ):
        assert isinstance(fails(*command).error, UnusedOption), command
