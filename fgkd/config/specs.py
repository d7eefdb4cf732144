"""All options: a small frozen dataclass for each part of the system.

Each field is declared once, with its default, range and help. The command line, YAML files and the
keyword arguments of `fgkd.train_student` and similar functions derive from it. A default of `None`
means that the value is decided from context, as the help says. "free" options may change when a
run is resumed, because they change no result.
"""

from __future__ import annotations

from dataclasses import dataclass

from fgkd.config.schema import option

DATASET_NAMES = (
    *("icons", "folder", "csv", "hf", "webdataset", "unlabeled", "cub", "dogs", "foodx"),
    *("nabirds", "aircraft", "cars", "pets", "flowers", "food101"),
)
RECIPE_NAMES = ("none", "light", "randaug")
LOSS_NAMES = ("kl", "hard", "ce", "bkd", "dkd", "dist")
FORMAT_NAMES = ("hdf5", "webdataset")
ENCODING_NAMES = ("dense", "dense32", "int8", "topk", "topk8")
DTYPE_NAMES = ("float32", "bfloat16", "float64")
SCHEDULE_NAMES = ("cosine", "linear", "step", "constant")
TTA_NAMES = ("none", "flip", "five-crop", "ten-crop")
COMPILE_NAMES = ("auto", "on", "off")
EXPORT_NAMES = ("onnx", "torchscript", "pt2")

DEVICE_HELP = "auto, cpu, cuda or cuda:N."
WORKERS_HELP = "Processes that load images."
BATCH_HELP = "Images per forward pass. auto: as many as there is memory for."
COMPILE_HELP = "torch.compile the model. auto: on a GPU, where that saves more time than it takes."
DATA_HELP = "NAME:PATH where the images are now. Default: where they were."


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Which images, and how they are read."""

    data: tuple[str, ...] = option(
        (), f"NAME:PATH, repeatable: {', '.join(DATASET_NAMES[:6])}, cub and others.", free=True
    )
    val_fraction: float | None = option(
        None,
        "Share of train held out where a dataset has no val split. Default: the teacher's or "
        "cache's, else 0.1.",
        low=0.0,
        high=0.5,
    )
    test_fraction: float | None = option(
        None,
        "Share of train held out where a dataset has no test split. Default: none.",
        low=0.0,
        high=0.5,
    )
    image_store_side: int | None = option(
        None,
        "Crop views from images resized to a shorter side of at most N px. Default: full size.",
        low=8,
    )
    image_store: str | None = option(
        None,
        "Folder that keeps the resized images decoded; it is written once.",
        free=True,
        place="path",
    )
    skip_bad_images: bool = option(
        False, "Leave out unreadable images, and list them in the output folder.", free=True
    )
    image_column: str | None = option(None, "Column of the images in a csv or hf dataset.")
    label_column: str | None = option(None, "Column of the labels in a csv or hf dataset.")
    split_column: str | None = option(None, "Column of the splits in a csv dataset.")
    label_key: str | None = option(
        None, "Key of the label in the json files of a webdataset's samples."
    )
    image_root: str | None = option(
        None,
        "Folder that a csv dataset's paths are relative to. Default: the file's.",
        free=True,
        place="path",
    )


@dataclass(frozen=True, kw_only=True)
class ViewSpec:
    """The distribution of augmented views: a preset, and single options that override it."""

    aug_recipe: str | None = option(
        None,
        "Preset of augmentations. Default: the cache's or teacher's, else light.",
        choices=RECIPE_NAMES,
        renamed={"seed": "randaug"},
    )
    crop_scale: tuple[float, float] | None = option(
        None, "Area of the random crop as a share of the image, MIN MAX.", low=0.0, high=1.0
    )
    crop_ratio: tuple[float, float] | None = option(
        None, "Aspect ratio of the random crop, MIN MAX.", above=0.0
    )
    interpolation: str | None = option(
        None, "Resampling of the crop.", choices=("bilinear", "bicubic", "random")
    )
    hflip: float | None = option(None, "Probability of a horizontal flip.", low=0.0, high=1.0)
    color_jitter: float | None = option(
        None, "Strength of brightness, contrast and saturation jitter.", low=0.0, high=1.0
    )
    rand_aug_ops: int | None = option(None, "RandAugment operations per view; 0: off.", low=0)
    rand_aug_magnitude: float | None = option(None, "RandAugment magnitude.", low=0.0, high=10.0)
    rand_aug_std: float | None = option(
        None, "Standard deviation of the RandAugment magnitude.", low=0.0
    )
    erasing: float | None = option(None, "Probability of random erasing.", low=0.0, high=1.0)
    erasing_mode: str | None = option(
        None, "Fill of the erased box: noise or a constant.", choices=("pixel", "const")
    )
    bbox_crop: bool | None = option(
        None,
        "Crop inside the object's bounding box (in training; evaluation sees the full image).",
    )
    mixup: float | None = option(
        None, "Mixup alpha; 0: off. The teacher sees the mixed image.", low=0.0
    )
    cutmix: float | None = option(
        None, "CutMix alpha; 0: off. The teacher sees the mixed image.", low=0.0
    )
    mix_prob: float | None = option(
        None, "Probability that a pair of images is mixed.", low=0.0, high=1.0
    )
    switch_prob: float | None = option(
        None, "Probability of CutMix instead of Mixup where both are on.", low=0.0, high=1.0
    )


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A timm model, where its weights come from, and which of them are trained."""

    model: str = option("", "timm model name.")
    model_kwargs: tuple[str, ...] = option(
        (), "K=V,K=V passed to the model (Python literals), repeatable.", keywords=True
    )
    pretrained: bool = option(False, "Start from timm's pretrained weights.")
    initial_checkpoint: str | None = option(
        None,
        "Start from the weights of a .safetensors or .pth file, or of a run folder.",
        free=True,
        place="path",
    )
    img_size: int | None = option(None, "Input side in pixels. Default: the model's own.", low=8)
    crop_pct: float | None = option(
        None, "Centre crop of evaluation. Default: the model's own.", above=0.0, high=1.0
    )
    drop: float = option(0.0, "Dropout rate before the head.", low=0.0, high=0.99)
    drop_path: float = option(0.0, "Stochastic depth rate.", low=0.0, high=0.99)
    head_init_scale: float = option(1.0, "Factor on the new head's initial weights.", above=0.0)
    grad_checkpointing: bool = option(
        False,
        "Recompute activations in the backward pass: less memory, a third slower, same results.",
        free=True,
    )
    freeze: bool = option(
        False, "Train only the heads; the backbone's weights and statistics stay as they are."
    )


@dataclass(frozen=True, kw_only=True)
class OptimSpec:
    """Optimizer, schedule, batch and numerics of a training run; names follow timm."""

    epochs: int = option(30, "Passes over the training images.", low=1)
    batch_size: int = option(64, "Images per step, over all GPUs.", low=1)
    grad_accum_steps: int = option(
        1, "Micro-batches per step: the same gradient in less memory.", low=1
    )
    opt: str = option("adamw", "timm optimizer name.")
    opt_kwargs: tuple[str, ...] = option(
        (), "K=V,K=V passed to the optimizer, as 'betas=(0.9,0.95)', repeatable.", keywords=True
    )
    momentum: float = option(0.9, "Momentum of optimizers that have one.", low=0.0, high=1.0)
    lr: float | None = option(
        None, "Peak learning rate. Default: 1e-3, or 1e-4 from given weights.", above=0.0
    )
    min_lr: float = option(1e-6, "Final learning rate.", low=0.0)
    warmup_lr: float = option(1e-6, "Learning rate at the start of warmup.", low=0.0)
    warmup_epochs: float | None = option(
        None, "Linear warmup. Default: 2 epochs, at most a quarter of the run.", low=0.0
    )
    sched: str = option("cosine", "Learning rate schedule.", choices=SCHEDULE_NAMES)
    decay_epochs: float = option(30.0, "Epochs between decays of the step schedule.", above=0.0)
    decay_rate: float = option(
        0.1, "Factor of each decay of the step schedule.", above=0.0, high=1.0
    )
    weight_decay: float = option(0.05, "Weight decay; norms and biases have none.", low=0.0)
    layer_decay: float | None = option(
        None, "Layer-wise lr decay: factor from each layer to the one below.", above=0.0, high=1.0
    )
    layer_decay_style: str = option(
        "timm",
        "What a layer is: timm counts blocks, convnext12 ConvNeXt's own 12 groups.",
        choices=("timm", "convnext12"),
    )
    clip_grad: float | None = option(None, "Gradient clipping threshold. Default: off.", above=0.0)
    clip_mode: str = option(
        "norm", "Whether the threshold is on the norm or on each value.", choices=("norm", "value")
    )
    model_ema: bool = option(False, "Keep an average of the weights, and save the better of both.")
    model_ema_samples: float = option(20_000.0, "Horizon of the average, in samples.", above=0.0)
    amp: bool = option(False, "Autocast to amp_dtype.")
    amp_dtype: str = option(
        "bfloat16",
        "Autocast type. float16 scales the loss and skips steps that overflow.",
        choices=("bfloat16", "float16"),
    )


@dataclass(frozen=True, kw_only=True)
class TaskLossSpec:
    """The loss against the labels."""

    smoothing: float = option(0.1, "Label smoothing.", low=0.0, high=0.99)


@dataclass(frozen=True, kw_only=True)
class LossSpec:
    """The losses of a student: against the labels, and against the teacher."""

    smoothing: float = option(0.1, "Label smoothing.", low=0.0, high=0.99)
    distillation: str = option(
        "logits",
        "none: labels alone.",
        choices=("logits", "none"),
    )
    kd_loss: str = option(
        "kl",
        "Distillation loss.",
        choices=LOSS_NAMES,
    )
    temperature: float = option(1.0, "Softmax temperature.", above=0.0)
    logit_standardization: bool = option(
        False, "Standardize each row of logits before the temperature."
    )
    distill_loss_weight: float = option(1.0, "Weight of that loss.", low=0.0)
    task_loss_weight: float = option(1.0, "Weight of the labels' loss.", low=0.0)


TEACHER_HELP = (
    "Run folder, weights file, or local-dir:, hf-hub:, transformers:, timm:, torchvision:NAME."
)


@dataclass(frozen=True, kw_only=True)
class TargetSpec:
    """Where a student's views and targets come from: a cache, a live teacher, or labels alone."""

    cache: str | None = option(
        None, "Cache to learn from: a folder, or a URL.", free=True, place="source"
    )
    order: str = option(
        "sample",
        "shard reads the cache shard by shard, as one behind a URL always is.",
        choices=("sample", "shard"),
    )
    shard_buffer: int = option(
        4, "Shards whose samples are shuffled together (order shard).", low=1
    )
    teacher: tuple[str, ...] = option(
        (),
        "Live teacher, at its own size. " + TEACHER_HELP,
        place="source",
    )
    dtype: str = option("float32", "Number type of a live teacher.", choices=DTYPE_NAMES)
    views: int | None = option(
        None, "Use the first N views. Default: all of the cache, else one per epoch.", low=1
    )
    view_seed: int | None = option(
        None, "Seed of the views. Default: the cache's, else 0 (as cache-logits).", low=0
    )
    shard_size: int = option(
        1024, "Images per block of mixing pairs, without a cache (as cache-logits).", low=1
    )


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """Where a training run is kept, what it runs on, and how it reports."""

    output: str = option("", "Folder of this run (created).", free=True, place="path")
    resume: bool = option(False, "Continue the run in the output folder.", free=True)
    overwrite: bool = option(False, "Rename an existing output and start over.", free=True)
    device: str = option("auto", DEVICE_HELP, free=True)
    workers: int = option(2, WORKERS_HELP, low=0, free=True)
    seed: int = option(0, "Seed of every random choice.", low=0)
    channels_last: bool = option(True, "Channels-last memory format.", free=True)
    compile: str = option("auto", COMPILE_HELP, choices=COMPILE_NAMES, free=True)
    deterministic: bool = option(
        True,
        "Use deterministic GPU kernels, so that a resumed run equals an uninterrupted one.",
        free=True,
    )
    eval_batch_size: int | None = option(
        None,
        "Images per evaluation step. Default: those that a device holds in training, at most 256.",
        low=1,
        free=True,
    )
    log_interval: float = option(10.0, "Seconds between console lines.", above=0.0, free=True)
    log_with: str = option(
        "", "Trackers of each epoch's metrics, as tensorboard,wandb,mlflow.", free=True
    )
    tensorboard: bool = option(False, "Old name of log_with: tensorboard.", free=True)
    license: str = option("other", "Licence of the model, for its card model/README.md.", free=True)
    checkpoint_steps: int = option(
        0, "Also save a checkpoint every N steps; 0: after each epoch only.", low=0, free=True
    )
    dry_run: bool = option(False, "Estimate memory, FLOPs, hours; write nothing.", free=True)
    json: str | None = option(
        None, "File to write the estimate of a dry run to.", free=True, place="path"
    )


@dataclass(frozen=True, kw_only=True)
class ArchitectureSpec:
    """The architecture of a model that comes as a file of weights."""

    teacher_model: str = option(
        "", "timm architecture of a teacher or RUN that is a file of weights."
    )
    teacher_model_kwargs: tuple[str, ...] = option(
        (), "K=V,K=V passed to that architecture, repeatable.", keywords=True
    )


@dataclass(frozen=True, kw_only=True)
class SourceSpec(ArchitectureSpec):
    """What a model's source does not say itself: a file's architecture, and names of classes."""

    class_map: str | None = option(
        None,
        "CSV file (teacher,data) for classes of other names; or `order`. Several to one add up.",
        place="path",
    )


@dataclass(frozen=True, kw_only=True)
class TeacherSpec:
    """The teachers of a cache, and how they compute."""

    teacher: tuple[str, ...] = option(
        (), TEACHER_HELP + " Repeat for an ensemble.", free=True, place="source"
    )
    ensemble: str = option(
        "logits", "What an ensemble averages.", choices=("logits", "probs"), free=True
    )
    dtype: str = option("float32", "Number type of the teacher.", choices=DTYPE_NAMES)
    batch_size: int | str = option(128, BATCH_HELP, low=1, free=True, words=("auto",))


@dataclass(frozen=True, kw_only=True)
class CacheSpec:
    """What a cache holds, and in which form."""

    views: int = option(8, "Augmented views of every training image.", low=1, free=True)
    seed: int = option(0, "Seed of the views and of the order of the samples.", low=0)
    img_size: int | None = option(
        None, "Side of the views in pixels. Default: the teacher's.", low=8
    )
    format: str = option("hdf5", "Shard format.", choices=FORMAT_NAMES)
    encoding: str = option(
        "dense",
        "dense: float16; dense32: float32; int8: 1 byte per class; topk, topk8: the largest "
        "(float16, 1 byte) and the rest's mass.",
        choices=ENCODING_NAMES,
    )
    top_k: int = option(50, "Classes that topk and topk8 keep, besides the label.", low=1)
    temperatures: tuple[float, ...] = option(
        (1.0, 2.0, 4.0), "Temperatures at which topk and topk8 know the rest, as 1,2,4.", above=0.0
    )
    shard_size: int = option(1024, "Training images per shard.", low=1)


@dataclass(frozen=True, kw_only=True)
class CaptureSpec:
    """Where a cache is written, by which machine, and what it runs on."""

    output: str = option("", "Folder of the cache.", free=True, place="path")
    overwrite: bool = option(False, "Rename an existing output and start over.", free=True)
    extend: bool = option(
        False, "Add images that are in the data and not yet in the cache.", free=True
    )
    shard_range: str | None = option(None, "A:B: write only these blocks.", free=True)
    device: str = option("auto", DEVICE_HELP, free=True)
    workers: int = option(2, WORKERS_HELP, low=0, free=True)
    compile: str = option("auto", COMPILE_HELP, choices=COMPILE_NAMES, free=True)
    dry_run: bool = option(False, "Estimate bytes, speed and hours; write nothing.", free=True)
    json: str | None = option(
        None, "File to write the estimate of a dry run to.", free=True, place="path"
    )
