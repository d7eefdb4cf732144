"""Exported files against timm: logits in other runtimes, and what the metadata says."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from helpers.errors import expected
from helpers.failures import Fails
from helpers.models import CLASSES, DEIT, build, images, perturb, timm_logits, trained, write_run
from helpers.runs import fgkd

from fgkd import models
from fgkd.errors import ExportError, MissingOption, MissingPackage
from fgkd.models import export

Asked = tuple[Callable[[np.ndarray], np.ndarray], dict[str, str]]


def open_onnx(path: Path) -> Asked:
    """A session in onnxruntime and the model's metadata."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    onnx.checker.check_model(onnx.load(path), full_check=True)
    (inputs,), (outputs,) = session.get_inputs(), session.get_outputs()
    assert (inputs.name, inputs.type, inputs.shape[1:]) == ("image", "tensor(float)", [3, 32, 32])
    assert (outputs.name, outputs.shape[1:]) == ("logits", [len(CLASSES)])
    metadata = session.get_modelmeta().custom_metadata_map
    return lambda x: session.run(None, {"image": x})[0], metadata


def open_torchscript(path: Path) -> Asked:
    """A module by torch.jit alone."""
    extra = {"metadata.json": ""}
    module = torch.jit.load(path, _extra_files=extra)
    return lambda x: module(torch.from_numpy(x)).numpy(), json.loads(extra["metadata.json"])


def open_pt2(path: Path) -> Asked:
    """A program by torch.export alone."""
    extra = {"metadata.json": ""}
    module = torch.export.load(path, extra_files=extra).module()
    return lambda x: module(torch.from_numpy(x)).numpy(), json.loads(extra["metadata.json"])


OPEN = {"onnx": open_onnx, "torchscript": open_torchscript, "pt2": open_pt2}
MODELS = {
    "deit": (DEIT, {"uses_dist": True, "drop_path": 0.1}),
    "deit without its distillation head": (DEIT, {"uses_dist": False}),
    "convnext": ("convnext_atto", {"drop_path": 0.1}),
}


def normalised(x_u8_BHW3: torch.Tensor, metadata: dict[str, str]) -> np.ndarray:
    """float32 [B, 3, H, W] as the metadata's `input` says, in numpy."""
    mean, std = (np.array(json.loads(metadata[k]), np.float32) for k in ("mean", "std"))
    scaled = (x_u8_BHW3.numpy().astype(np.float32) / 255 - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize("of", MODELS)
@pytest.mark.parametrize("format", export.FORMATS)
def test_logits_elsewhere_are_timms(format: str, of: str, tmp_path: Path) -> None:
    """On one image and on three, from a file written on two; normalised as its metadata says."""
    name, options = MODELS[of]
    ours = trained(tmp_path, name, **options)
    data, worst = export.convert(models.load(tmp_path), format, "run")
    path = tmp_path / f"model.{format}"
    path.write_bytes(data)
    ask, metadata = OPEN[format](path)
    for count in (1, 3):
        x = images(count)
        found = ask(normalised(x, metadata))
        assert found.shape == (count, len(CLASSES))
        theirs = timm_logits(tmp_path, x).numpy()
        np.testing.assert_allclose(found, theirs, atol=1e-5, rtol=0)
        with torch.no_grad():
            np.testing.assert_allclose(found, ours(x).answer_BK.numpy(), atol=1e-5, rtol=0)
    assert np.abs(found).max() > 0.01
    assert 0 <= worst < 1e-5


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize("format", export.FORMATS)
def test_the_metadata_is_the_models_own(format: str, tmp_path: Path) -> None:
    """Class names of any script, mean, std, size, crop: what timm resolves for the folder."""
    config = {"crop_mode": "squash", "crop_pct": 0.8, "mean": [0.2, 0.5, 0.8]}
    run = write_run(tmp_path / "run", "folder:none", "convnext_atto", **config)
    path = run / "model" / "config.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"label_names": ["é, ü", "鳥", 'a "b"']}))
    fgkd("export", run, "--format", format)
    _, metadata = OPEN[format](run / "export" / f"model.{format}")
    net = timm.create_model(f"local-dir:{run / 'model'}", pretrained=False)
    resolved = timm.data.resolve_model_data_config(net)
    for key, value in resolved.items():
        assert json.loads(metadata[key]) == (list(value) if isinstance(value, tuple) else value)
    assert {key: json.loads(metadata[key]) for key in config} == config
    assert json.loads(metadata["class_names"]) == ["é, ü", "鳥", 'a "b"']
    assert metadata["architecture"] == "convnext_atto"
    data = (run / "export" / f"model.{format}").read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in data
    assert str(Path(timm.__file__).parent).encode() not in data  # no stack trace of this machine


def test_a_file_that_is_there_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: Fails
) -> None:
    """Refused, then renamed; --output names another folder, for one run alone."""
    run = write_run(tmp_path / "run", "folder:none", "convnext_atto")
    model, out = run / "model", tmp_path / "out"
    capsys.readouterr()
    fgkd("export", model, "--format", "pt2", "--output", out)  # a bare timm folder
    said, following = capsys.readouterr().out.splitlines()[-2:]
    assert f"{out / 'model.pt2'}: convnext_atto, 3 classes, " in said
    assert following == f"next: fgkd predict {model} --help"
    before = (out / "model.pt2").read_bytes()
    again = ("export", run, "--format", "pt2", "--output", out)
    assert "model.pt2 exists" in fails(*again)
    fgkd(*again, "--overwrite")
    assert (out / "model.pt2.old1").read_bytes() == before
    assert sorted(path.name for path in out.iterdir()) == ["model.pt2", "model.pt2.old1"]
    assert "--output is for one RUN, not 2" in fails(*again, model)
    with mock.patch("os.fsync", side_effect=OSError(28, "No space left on device")):
        assert "No space left on device" in fails(*again, "--overwrite")
    assert sorted(path.name for path in out.iterdir()) == ["model.pt2", "model.pt2.old1"]
    (tmp_path / "file").touch()
    assert "file is a file" in fails(*again[:-1], tmp_path / "file")
    for given, option in (((), "RUN"), ((run,), "format")):
        said = fails("export", *given)
        assert isinstance(said.error, MissingOption)
        assert said.error.option == option


def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Fails
) -> None:
    run = write_run(tmp_path / "run", "folder:none", "convnext_atto")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name)
    )
    said = fails("export", run, "--format", "onnx")
    assert isinstance(said.error, MissingPackage)
    assert said.error.package == "onnxruntime"
    assert "Try: pip install onnx onnxscript onnxruntime" in said
    assert not list(run.glob("export/*"))


class Sizes(torch.nn.Module):
    """Answers by the number of images: what a trace on two images gets wrong on three."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net, self.pretrained_cfg = net, net.pretrained_cfg  # type: ignore[assignment]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.net(x)
        return logits + float(len(x)) * (len(x) != 2)


@pytest.mark.filterwarnings("ignore:Using len:torch.jit.TracerWarning")
def test_a_file_that_answers_otherwise_is_not_given_out() -> None:
    model = perturb(build("convnext_atto"))
    model.net = Sizes(model.net)
    with expected(ExportError, format="torchscript"):
        export.convert(model, "torchscript", CLASSES)
    with expected(ExportError, format="pt2"):
        export.convert(model, "pt2", CLASSES)
