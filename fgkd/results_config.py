"""Options of the commands that look at what was made; `config` declares those that make it."""

from __future__ import annotations

from dataclasses import dataclass

from .schema import option

TTA_NAMES = ("none", "flip", "five-crop", "ten-crop")
EXPORT_NAMES = ("onnx", "torchscript", "pt2")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Options of `evaluate`."""

    split: str = option("test", "Split to evaluate.", choices=("train", "val", "test"))
    data: tuple[str, ...] = option((), "NAME:PATH where the data lies now. Default: as trained.")
    tta: str = option(
        "none", "Test-time augmentation: views whose logits are averaged.", choices=TTA_NAMES
    )
    predict: tuple[str, ...] = option(
        (),
        "Instead: classes of these images and folders, by each RUN (or timm local-dir folder).",
        many="PATH...",
    )
    top: int = option(5, "Classes that --predict gives an image.", low=1)
    export: str | None = option(
        None, "Instead: write each RUN's model as a file of this format.", choices=EXPORT_NAMES
    )
    export_dir: str = option("", "Folder of the exported file. Default: RUN/export.")
    overwrite: bool = option(False, "Move an exported file that is there aside.", free=True)
    json: str | None = option(
        None, "Write the results to this file; of --predict, one line an image."
    )
    report: str | None = option(None, "Write a page of plots and examples into this folder.")
    skip_bad_images: bool = option(False, "Leave unreadable images out of the count, and say so.")
    batch_size: int = option(256, "Images a step.", low=1)
    device: str = option("auto", "auto, cpu, cuda or cuda:N. auto takes CUDA if present.")
    workers: int = option(2, "Data loading processes; 0 loads in the main one.", low=0)


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Options of `inspect`."""

    verify: bool = option(False, "Check shards, pixels and (with --teacher) targets.", free=True)
    samples: int = option(64, "Images that --verify renders again, in 4 views.", low=1)
    seed: int = option(0, "Key of that sample.", low=0)
    data: tuple[str, ...] = option((), "NAME:PATH where the data lies now.")
    teacher: tuple[str, ...] = option((), "Run folder of the teacher, to ask it again.")
    json: str | None = option(None, "Write the report to this file.")
    gallery: str | None = option(None, "Write a page of views and targets into this folder.")
    device: str = option("auto", "auto, cpu, cuda or cuda:N. auto takes CUDA if present.")
