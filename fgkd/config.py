"""Every option of every command, declared once.

The click options, `args.yaml`, `-c` files, strict loading and `--help` all derive from the frozen
dataclasses below. `None` means "decided from context"; the help text says how.
"""

from __future__ import annotations

from dataclasses import dataclass

from .results_config import EvaluateConfig, InspectConfig
from .schema import build, check, convert, diff, hints, option, to_dict

__all__ = [
    "EvaluateConfig",
    "InspectConfig",
    "build",
    "check",
    "convert",
    "diff",
    "hints",
    "option",
    "to_dict",
]

DATASET_NAMES = (
    *("icons", "folder", "cub", "dogs", "foodx"),
    *("nabirds", "aircraft", "cars", "pets", "flowers", "food101"),
    "webdataset",
)
RECIPE_NAMES = ("none", "light", "seed")
LOSS_NAMES = ("kl", "hard", "ce", "dkd", "dist")
FORMAT_NAMES = ("hdf5", "webdataset")
ENCODING_NAMES = ("dense", "dense32", "int8", "topk")
DTYPE_NAMES = ("float32", "bfloat16", "float64")
SCHEDULE_NAMES = ("cosine", "linear", "step", "constant")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where a run lives and what it runs on."""

    output: str = option("", "Folder of this run (created).", free=True)
    resume: bool = option(False, "Continue the run in --output.", free=True)
    overwrite: bool = option(False, "Move an existing --output aside and start anew.", free=True)
    device: str = option(
        "auto", "auto, cpu, cuda or cuda:N. auto takes CUDA if present.", free=True
    )
    workers: int = option(2, "Data loading processes; 0 loads in the main one.", low=0, free=True)
    seed: int = option(0, "Key of every random choice.", low=0)


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which images."""

    data: tuple[str, ...] = option(
        (),
        f"NAME:PATH, repeatable. Names: {', '.join(DATASET_NAMES)}.",
        free=True,
    )
    val_fraction: float | None = option(
        None,
        "Share of train held out where a dataset has no val split. Default: the teacher's or "
        "cache's, else 0.1.",
        low=0.0,
        high=0.5,
    )
    image_store_side: int | None = option(
        None, "Crop views from images whose shorter side is shrunk to N px. Default: whole.", low=8
    )
    image_store: str | None = option(
        None, "Keep the shrunk images decoded in this folder (written at first use).", free=True
    )
    skip_bad_images: bool = option(
        False, "Leave unreadable images out, and list them in the output folder.", free=True
    )


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """The distribution of augmented views; a single option overrides the recipe."""

    aug_recipe: str | None = option(
        None, "Preset. Default: the cache's or teacher's, else light.", choices=RECIPE_NAMES
    )
    crop_scale: tuple[float, float] | None = option(
        None, "Area of the random crop, MIN MAX.", low=0.0, high=1.0
    )
    crop_ratio: tuple[float, float] | None = option(
        None, "Aspect ratio of the random crop, MIN MAX.", above=0.0
    )
    interpolation: str | None = option(
        None, "Resampling of the crop.", choices=("bilinear", "bicubic", "random")
    )
    hflip: float | None = option(None, "Probability of a mirror image.", low=0.0, high=1.0)
    color_jitter: float | None = option(
        None, "Strength of brightness, contrast and saturation jitter.", low=0.0, high=1.0
    )
    rand_aug_ops: int | None = option(None, "RandAugment operations a view; 0: off.", low=0)
    rand_aug_magnitude: float | None = option(None, "RandAugment magnitude.", low=0.0, high=10.0)
    rand_aug_std: float | None = option(None, "RandAugment magnitude noise.", low=0.0)
    erasing: float | None = option(None, "Probability of random erasing.", low=0.0, high=1.0)
    erasing_mode: str | None = option(None, "Fill of the erased box.", choices=("pixel", "const"))
    bbox_crop: bool | None = option(
        None, "Crop inside the bounding box, in training alone: evaluation sees whole images."
    )
    mixup: float | None = option(None, "Mixup alpha; 0: off. The teacher sees the mix.", low=0.0)
    cutmix: float | None = option(None, "CutMix alpha; 0: off. The teacher sees the mix.", low=0.0)
    mix_prob: float | None = option(None, "Probability that a pair is mixed.", low=0.0, high=1.0)
    switch_prob: float | None = option(
        None, "Probability of CutMix where both are on.", low=0.0, high=1.0
    )


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """A timm model and where its weights come from."""

    model: str = option("", "timm model name.")
    model_kwargs: tuple[str, ...] = option(
        (), "K=V,K=V passed to the model (Python literals), repeatable."
    )
    pretrained: bool = option(False, "Start from timm's pretrained weights (needs the hub).")
    initial_checkpoint: str | None = option(
        None, "Start from a .safetensors or .pth file or a run folder.", free=True
    )
    img_size: int | None = option(
        None, "Side of the square input in pixels. Default: the model's own.", low=8
    )
    crop_pct: float | None = option(
        None, "Evaluation centre crop. Default: the model's own.", above=0.0, high=1.0
    )
    drop: float = option(0.0, "Dropout before the head.", low=0.0, high=0.99)
    drop_path: float = option(0.0, "Stochastic depth, keyed by sample.", low=0.0, high=0.99)
    head_init_scale: float = option(1.0, "Factor on the new head's weights.", above=0.0)


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Optimisation; names follow timm."""

    epochs: int = option(30, "Passes over the training images.", low=1)
    batch_size: int = option(64, "Images a step, over all GPUs and accumulation.", low=1)
    grad_accum_steps: int = option(
        1, "Micro-batches a step; the same sum of gradients in less memory.", low=1
    )
    grad_checkpointing: bool = option(
        False,
        "Recompute activations instead of keeping them: same numbers, less memory, a third slower.",
        free=True,
    )
    freeze: bool = option(
        False,
        "Train the heads alone: the trunk keeps its weights and statistics, and drops nothing.",
    )
    opt: str = option("adamw", "timm optimizer name.")
    momentum: float = option(0.9, "Momentum of optimizers that have one.", low=0.0, high=1.0)
    lr: float | None = option(
        None, "Peak learning rate. Default: 1e-3, or 1e-4 from given weights.", above=0.0
    )
    min_lr: float = option(1e-6, "Learning rate at the end.", low=0.0)
    warmup_lr: float = option(1e-6, "Learning rate at the start of warmup.", low=0.0)
    warmup_epochs: float | None = option(
        None, "Linear warmup. Default: 2 epochs, at most a quarter of the run.", low=0.0
    )
    sched: str = option("cosine", "Learning rate schedule.", choices=SCHEDULE_NAMES)
    decay_epochs: float = option(30.0, "Epochs between decays (sched step).", above=0.0)
    decay_rate: float = option(0.1, "Factor of a decay (sched step).", above=0.0, high=1.0)
    weight_decay: float = option(0.05, "Weight decay; none on norms and biases.", low=0.0)
    layer_decay: float | None = option(
        None, "Layer-wise lr decay, the factor from a layer to the one below.", above=0.0, high=1.0
    )
    layer_decay_style: str = option(
        "timm",
        "timm counts blocks, convnext12 is ConvNeXt's own 12 groups.",
        choices=("timm", "convnext12"),
    )
    smoothing: float = option(0.1, "Label smoothing.", low=0.0, high=0.99)
    clip_grad: float | None = option(None, "Gradient clipping bound. Default: off.", above=0.0)
    clip_mode: str = option("norm", "What the bound is on.", choices=("norm", "value"))
    model_ema: bool = option(False, "Keep, evaluate and maybe choose averaged weights.")
    model_ema_samples: float = option(20_000.0, "Horizon of the average, in samples.", above=0.0)
    amp: bool = option(
        False,
        "Autocast to --amp-dtype. float16 scales the loss and skips steps that overflow.",
    )
    amp_dtype: str = option("bfloat16", "Autocast type.", choices=("bfloat16", "float16"))
    channels_last: bool = option(True, "Channels-last memory format.", free=True)
    compile: bool = option(
        False, "torch.compile the model: faster after minutes, needs a C++ compiler.", free=True
    )
    deterministic: bool = option(
        True,
        "On a GPU take kernels that repeat bit for bit, so that a resumed run ends as a whole one.",
        free=True,
    )
    eval_batch_size: int = option(256, "Images an evaluation step.", low=1, free=True)
    log_interval: float = option(10.0, "Seconds between console lines.", above=0.0, free=True)
    tensorboard: bool = option(
        False, "Also write the epochs' metrics to OUTPUT/tensorboard.", free=True
    )
    checkpoint_steps: int = option(
        0, "Also save every N steps; 0: at epoch ends only.", low=0, free=True
    )
    dry_run: bool = option(
        False, "Compute GPU memory, FLOPs and hours, without weights; write nothing.", free=True
    )
    json: str | None = option(None, "With --dry-run: write the costs to this file.", free=True)


@dataclass(frozen=True, kw_only=True)
class TrainTeacherConfig(TrainOptions, ViewOptions, ModelOptions, DataOptions, RunOptions):
    """Options of `train-teacher`."""


@dataclass(frozen=True, kw_only=True)
class TrainStudentConfig(TrainOptions, ViewOptions, ModelOptions, DataOptions, RunOptions):
    """Options of `train-student`."""

    cache: str | None = option(None, "Cache to learn from: a folder, or a URL.", free=True)
    order: str = option(
        "sample", "shard reads the cache shard by shard (URLs).", choices=("sample", "shard")
    )
    shard_buffer: int = option(4, "Shards whose samples are mixed (order shard).", low=1)
    teacher: tuple[str, ...] = option((), "Run folder of a live teacher, instead of --cache.")
    dtype: str = option("float32", "Number type of a live teacher.", choices=DTYPE_NAMES)
    distillation: str = option(
        "logits", "none trains on labels alone: the control.", choices=("logits", "none")
    )
    views: int | None = option(
        None, "Use the first N views. Default: all of the cache, else one an epoch.", low=1
    )
    view_seed: int | None = option(
        None, "Key of the views. Default: the cache's, else 0 (as cache-logits).", low=0
    )
    shard_size: int = option(
        1024, "Block that mixing pairs lie in, without a cache (as cache-logits).", low=1
    )
    kd_loss: str = option(
        "kl",
        "Distillation loss. dist also compares rows: those of a micro-batch, over all ranks.",
        choices=LOSS_NAMES,
    )
    temperature: float = option(1.0, "Softmax temperature of the distillation loss.", above=0.0)
    logit_standardization: bool = option(False, "Z-score logits before the temperature.")
    distill_loss_weight: float = option(1.0, "Weight of the distillation loss.", low=0.0)
    task_loss_weight: float = option(1.0, "Weight of the label loss.", low=0.0)


@dataclass(frozen=True, kw_only=True)
class CacheLogitsConfig(ViewOptions, DataOptions):
    """Options of `cache-logits`."""

    teacher: tuple[str, ...] = option(
        (), "Run or timm local-dir folder; repeat for an ensemble.", free=True
    )
    ensemble: str = option(
        "logits", "What an ensemble averages.", choices=("logits", "probs"), free=True
    )
    output: str = option("", "Folder of the cache (created, continued or grown).", free=True)
    overwrite: bool = option(False, "Move an existing --output aside and start anew.", free=True)
    views: int = option(8, "Augmented views of every training image.", low=1, free=True)
    seed: int = option(0, "Key of the views and of the blocks.", low=0)
    format: str = option("hdf5", "Shard format.", choices=FORMAT_NAMES)
    encoding: str = option(
        "dense",
        "dense: float16 logits; dense32: float32; int8: 1 byte a class; topk: --top-k and a tail.",
        choices=ENCODING_NAMES,
    )
    top_k: int = option(50, "Classes that topk keeps, besides the label.", low=1)
    temperatures: tuple[float, ...] = option(
        (1.0, 2.0, 4.0), "Temperatures at which topk is exact, as 1,2,4.", above=0.0
    )
    shard_range: str | None = option(None, "A:B, write these blocks alone (scale-out).", free=True)
    dry_run: bool = option(False, "Plan bytes, speed and hours; write nothing.", free=True)
    json: str | None = option(None, "With --dry-run: write the plan to this file.", free=True)
    shard_size: int = option(1024, "Training images a shard.", low=1)
    img_size: int | None = option(None, "Side of the views. Default: the teacher's.", low=8)
    dtype: str = option("float32", "Number type of the teacher.", choices=DTYPE_NAMES)
    batch_size: int = option(128, "Views a teacher batch.", low=1, free=True)
    device: str = option(
        "auto", "auto, cpu, cuda or cuda:N. auto takes CUDA if present.", free=True
    )
    workers: int = option(2, "Data loading processes; 0 loads in the main one.", low=0, free=True)
