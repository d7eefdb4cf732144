"""What distillation buys on the icons, and whether a cache costs anything: the table of README.

    python scripts/study.py --output runs/study

One teacher and one cache, then for each seed six students of one model on the same views: labels
alone; from the cache; beside the live teacher; beside it in a loop of timm's own (its
LogitDistillationTask, optimizer and scheduler); and the first two for three times as long, labels
on fresh views, the cache on its views thrice. Each is chosen on val and scored on test. Killed, the
same command continues.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from fgkd import files, models, rng
from fgkd.config import args_file
from fgkd.data import Dataset, open_dataset
from fgkd.evaluation import inference, metrics
from fgkd.loading import train_loader
from fgkd.loading.schedule import Schedule
from fgkd.views import recipes
from fgkd.views.clean import clean_renderer
from fgkd.views.view_set import ViewSet
from stages import cli

RECIPES = ROOT / "stages" / "recipes"
# One head for both terms, which is what timm's task has.
STUDENT = {
    "model": "deit_tiny_patch16_224",
    "model_kwargs": ["patch_size=8,embed_dim=192,depth=6,num_heads=3"],
}
ARMS = {
    "baseline": "labels alone",
    "offline": "from the cache",
    "live": "with the live teacher",
    "timm": "timm's LogitDistillationTask, live",
    "baseline-3x": "labels alone, 3 x the steps",
    "offline-3x": "from the cache, 3 x the steps",
}


def stage(*args: object) -> None:
    """Run an fgkd command; its failure, or Ctrl-C, ends the study."""
    command = [str(arg) for arg in args]
    print("$ fgkd", *command, flush=True)
    cli.main(command)


def train_fgkd(arm: str, run: Path, base: Path, seed: int, epochs: int, data: str) -> None:
    """One of our students; `--resume` continues it, or says that it is finished."""
    steps = 3 * epochs if arm.endswith("-3x") else epochs
    recipe = "icons-baseline" if arm.startswith("baseline") else "icons-student"
    given = ["-c", RECIPES / f"{recipe}.yaml", "--model", STUDENT["model"]]
    given += ["--epochs", steps, "--seed", seed, "--view-seed", 0, "--amp"]
    if arm.startswith("offline"):
        given += ["--views", epochs, "--cache", base / "cache"]
    else:
        given += ["--views", steps, "--data", data, "--aug-recipe", "light"]
    if arm == "live":
        given += ["--teacher", base / "teacher"]
    stage("train-student", *given, "--output", run, "--resume")


def train_timm(run: Path, base: Path, seed: int, epochs: int, data: str) -> None:
    """timm's task, optimizer, scheduler and loss over the very batches of the other arms."""
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler
    from timm.task import LogitDistillationTask

    if (run / "minutes.json").exists():
        return
    recipe = args_file.load_yaml(RECIPES / "icons-student.yaml")
    dataset, teacher = open_dataset([data], 0.1), models.load(base / "teacher" / "model")
    rng.seed_torch("init", seed)
    student, _ = models.create(
        str(STUDENT["model"]),
        class_names=dataset.classes,
        kwargs=models.parse_kwargs(tuple(STUDENT["model_kwargs"])),
        img_size=recipe["img_size"],
        crop_pct=recipe["crop_pct"],
    )
    task = LogitDistillationTask(
        student.net,
        teacher.net,
        torch.nn.CrossEntropyLoss(label_smoothing=recipe["smoothing"]),
        distill_loss_weight=recipe["distill_loss_weight"],
        task_loss_weight=recipe["task_loss_weight"],
        temperature=recipe["temperature"],
        device=torch.device("cpu"),
        verbose=False,
    )
    decay = recipe["weight_decay"]
    optimizer = create_optimizer_v2(student.net, "adamw", lr=recipe["lr"], weight_decay=decay)
    train = dataset.splits["train"]
    schedule = Schedule(seed, len(train), recipe["batch_size"], epochs, epochs)
    warmup = round(min(2.0, epochs / 4) * schedule.steps_per_epoch)
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=schedule.total_steps - warmup - 1,
        lr_min=1e-6,
        warmup_t=warmup + 1,
        warmup_lr_init=1e-6,
        warmup_prefix=True,
        t_in_epochs=False,
    )
    light = recipes.recipe_from("light", {}, dataset.chiral)
    batches = train_loader.TrainLoader(
        ViewSet(train, light, 0, recipe["img_size"], len(train)),
        schedule,
        workers=2,
    )
    began, best = time.monotonic(), -math.inf
    for batch in batches.batches(0):
        task.train()
        scheduler.step_update(batch.spec.step + 1)
        images = batch.image_u8_BHW3.permute(0, 3, 1, 2)
        with torch.autocast("cpu", torch.bfloat16):
            loss = task((images / 255 - student.mean) / student.std, batch.labels_B)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if (batch.spec.step + 1) % schedule.steps_per_epoch == 0:
            found = score(student, dataset, "val", None).top1_pct
            print(
                f"timm epoch {batch.spec.epoch + 1}/{epochs}  val top-1 {found:.2f} %", flush=True
            )
            if found > best:
                best = found
                models.save(student, run / "model")
    files.write_json(run / "minutes.json", (time.monotonic() - began) / 60)


def score(
    model: models.Classifier, dataset: Dataset, split: str, teacher_NK: torch.Tensor | None
) -> metrics.Metrics:
    """The metrics of a model on a split."""
    samples = dataset.splits[split]
    logits_NK = logits_of(model, dataset, split)
    return metrics.summarize(
        logits_NK=logits_NK,
        labels_N=torch.from_numpy(samples.labels),
        domains_N=torch.from_numpy(samples.domains),
        domain_names=dataset.domains,
        teacher_NK=teacher_NK,
    )


def logits_of(model: models.Classifier, dataset: Dataset, split: str) -> torch.Tensor:
    """float32 [N, K] in the order of the split."""
    renderer = clean_renderer(dataset.splits[split], model.eval_transform, False)
    rows, logits_NK, _ = inference.evaluate(
        model, renderer, batch_size=256, workers=2, device=torch.device("cpu")
    )
    return logits_NK[np.argsort(rows)]


def collect(output: Path, seeds: list[int], data: str) -> dict[str, Any]:
    """Test top-1, agreement with the teacher and training minutes of every run."""
    from fgkd.training import run_folder

    dataset = open_dataset([data], 0.1)
    teacher = models.load(output / "teacher" / "model")
    teacher_NK = logits_of(teacher, dataset, "test")
    found: dict[str, Any] = {"teacher": score(teacher, dataset, "test", None).top1_pct}
    for arm in ARMS:
        runs = [output / f"{arm}-{seed}" for seed in seeds]
        scores = [score(models.load(r / "model"), dataset, "test", teacher_NK) for r in runs]
        took = [
            files.read_json(r / "minutes.json", "minutes")
            if arm == "timm"
            else run_folder.minutes(r)
            for r in runs
        ]
        found[arm] = {
            "top1_pct": [s.top1_pct for s in scores],
            "agreement_pct": [s.agreement_pct for s in scores],
            "minutes": took,
        }
    return found


def mean_and_spread(values: list[float]) -> str:
    """`51.36 +- 0.42`: the mean, and the standard deviation over seeds."""
    spread = statistics.stdev(values) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.2f} ± {spread:.2f}"


def table(found: dict[str, Any]) -> str:
    """The study as Markdown, and what it says in words."""
    lines = [
        "| student | test top-1 % | agreement with the teacher % | minutes |",
        "|---|---|---|---|",
    ]
    for arm, text in ARMS.items():
        row = found[arm]
        cells = [mean_and_spread(row["top1_pct"]), mean_and_spread(row["agreement_pct"])]
        lines.append(f"| {text} | {' | '.join(cells)} | {statistics.mean(row['minutes']):.1f} |")

    def gain(a: str, b: str) -> str:
        pairs = zip(found[a]["top1_pct"], found[b]["top1_pct"], strict=True)
        return mean_and_spread([x - y for x, y in pairs])

    return "\n".join(
        [
            *lines,
            "",
            f"Teacher {found['teacher']:.2f} %. Differences of top-1, seed by seed, mean ± spread:",
            f"offline - live {gain('offline', 'live')}; offline - timm {gain('offline', 'timm')}; "
            f"offline - baseline {gain('offline', 'baseline')}; "
            f"offline - baseline of 3 x the steps {gain('offline', 'baseline-3x')}; "
            f"both of 3 x the steps {gain('offline-3x', 'baseline-3x')}.",
        ]
    )


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=Path("runs/study"))
@click.option("--seeds", default="0,1,2", show_default=True, help="One student an arm for each.")
@click.option("--epochs", default=8, show_default=True, help="Of every arm but the long baseline.")
@click.option("--teacher-epochs", default=16, show_default=True)
@click.option("--data", default="icons", show_default=True, help="NAME or NAME:PATH.")
def main(output: Path, seeds: str, epochs: int, teacher_epochs: int, data: str) -> None:
    """Train what is missing, then print the table and write OUTPUT/study.{json,md}."""
    output, numbers = output.resolve(), [int(seed) for seed in seeds.split(",")]
    teacher = ["-c", RECIPES / "icons-teacher.yaml", "--epochs", teacher_epochs, "--data", data]
    stage("train-teacher", *teacher, "--output", output / "teacher", "--resume")
    cache = ["--teacher", output / "teacher", "--output", output / "cache"]
    stage("cache-logits", *cache, "--views", epochs, "--aug-recipe", "light")
    for seed in numbers:
        for arm in ARMS:
            run = output / f"{arm}-{seed}"
            if arm == "timm":
                train_timm(run, output, seed, epochs, data)
            else:
                train_fgkd(arm, run, output, seed, epochs, data)
    found = collect(output, numbers, data)
    files.write_json(output / "study.json", {"epochs": epochs, "seeds": numbers, **found})
    files.write_text(output / "study.md", table(found) + "\n")
    print("\n" + table(found))


if __name__ == "__main__":
    main()
