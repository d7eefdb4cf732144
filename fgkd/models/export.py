"""Export of a trained model to ONNX, TorchScript and torch.export files.

All three hold timm's model: `image` float32 [B, 3, H, W], RGB, normalised, of any batch size, to
`logits` float32 [B, K] (a distilled DeiT's two heads averaged). What a caller must know besides
travels in the file, as ONNX metadata or as the extra file `metadata.json`.
"""

from __future__ import annotations

import copy
import io
import json
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fgkd import models
from fgkd.errors import ExportError, FgkdError, ModelError
from fgkd.packages import require

Run = Callable[[Tensor], Tensor]  # image_B3HW -> logits_BK
METADATA = "metadata.json"
TOLERANCE = 1e-4  # of the largest logit, or of 1
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def to_onnx(net: nn.Module, image_B3HW: Tensor, metadata: dict[str, str]) -> bytes:
    """An ONNX model with a dynamic batch and the metadata in its metadata_props."""
    require("export to onnx", *ONNX_PACKAGES)
    program = torch.onnx.export(
        net,
        (image_B3HW,),
        dynamo=True,
        verbose=False,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    assert program is not None
    proto: Any = program.model_proto
    for node in [*proto.graph.node, *(node for f in proto.functions for node in f.node)]:
        del node.metadata_props[:]  # stack traces: paths of this machine
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)
    data: bytes = proto.SerializeToString()
    return data


def run_onnx(data: bytes) -> Run:
    """The model by onnxruntime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return lambda image_B3HW: torch.from_numpy(
        session.run(["logits"], {"image": image_B3HW.numpy()})[0]
    )


def to_torchscript(net: nn.Module, image_B3HW: Tensor, metadata: dict[str, str]) -> bytes:
    """A traced TorchScript module, for torch.jit.load and libtorch."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # torch prefers torch.export (pt2), but libtorch of many installations reads this; a trace
        # reads all attributes of a model, those that its library has deprecated, too.
        warnings.simplefilter("ignore", FutureWarning)
        # Checks of the image's size, constant by design; the batch is checked after the trace.
        warnings.filterwarnings("ignore", "Converting a tensor to a Python")
        traced = torch.jit.trace(net, image_B3HW, check_trace=False)
        torch.jit.save(traced, buffer, _extra_files={METADATA: json.dumps(metadata)})
    return buffer.getvalue()


def run_torchscript(data: bytes) -> Run:
    """The module as torch.jit.load gives it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit", FutureWarning)
        module: Run = torch.jit.load(io.BytesIO(data))
    return module


def to_pt2(net: nn.Module, image_B3HW: Tensor, metadata: dict[str, str]) -> bytes:
    """A torch.export program with a dynamic batch, for torch.export.load and AOTInductor."""
    dynamic = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(net, (image_B3HW,), dynamic_shapes=dynamic)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA: json.dumps(metadata)})
    return buffer.getvalue()


def run_pt2(data: bytes) -> Run:
    """The program as torch.export.load gives it."""
    module: Run = torch.export.load(io.BytesIO(data)).module()
    return module


# format -> how it is written, and how it is run to check what was written
FORMATS: dict[str, tuple[Callable[..., bytes], Callable[[bytes], Run]]] = {
    "onnx": (to_onnx, run_onnx),
    "torchscript": (to_torchscript, run_torchscript),
    "pt2": (to_pt2, run_pt2),
}


def describe(config: dict[str, Any], class_names: list[str]) -> dict[str, str]:
    """What a caller must know of a model; values are text, lists and numbers as JSON."""
    keys = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
    found = {key: json.dumps(config[key]) for key in keys if key in config}
    return {
        "architecture": config["architecture"],
        "class_names": json.dumps(class_names, ensure_ascii=False),
        **found,
        "input": "image: float32 [batch, 3, height, width], RGB, (pixel / 255 - mean) / std",
        "output": "logits: float32 [batch, classes]; their softmax is the probabilities",
    }


def convert(model: models.Classifier, format: str, name: str) -> tuple[bytes, float]:
    """A model as a file of `format`, and the largest error of a logit in it.

    The file is run on one image and on three. name: of the model, for messages. Raises:
    MissingPackage; ModelError for a model with a wrong number of class names; ExportError when the
    model cannot be expressed, or the file gives other logits than the model.
    """
    write, open_run = FORMATS[format]
    others = tuple(other for other in FORMATS if other != format)
    generator = torch.Generator().manual_seed(0)
    images_3 = torch.randn(3, *model.config["input_size"], generator=generator)
    net = copy.deepcopy(model.net).to("cpu", torch.float32).eval()
    net.requires_grad_(False)  # no file asks for gradients
    with torch.no_grad():
        want_3K = net(images_3)
        if model.classes and len(model.classes) != want_3K.shape[1]:
            message = f"{name} names {len(model.classes)} classes of {want_3K.shape[1]}"
            raise ModelError(message, model=name)
        try:
            data = write(net, images_3[:2], describe(model.config, model.classes))
            run = open_run(data)
            got_3K, got_1K = run(images_3), run(images_3[:1])
        except FgkdError:
            raise
        except Exception as error:  # whatever a converter finds that it cannot express
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            message = f"{model.architecture} cannot be written as {format}: {reason}"
            raise ExportError(message, model=name, format=format, others=others) from error
    worst = max((got_3K - want_3K).abs().max(), (got_1K - want_3K[:1]).abs().max()).item()
    if not worst <= TOLERANCE * max(1.0, want_3K.abs().max().item()):
        message = f"{model.architecture} as {format} is {worst:.1e} off torch's logits; not written"
        raise ExportError(message, model=name, format=format, others=others)
    return data, worst
