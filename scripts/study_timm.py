"""One student of the study in a loop of timm's own, with the options of `fgkd train-student`.

timm's LogitDistillationTask, optimizer and scheduler over the very batches of the other students:
what fgkd's own loop is compared with. Writes OUTPUT/model, summary.csv and timings.jsonl.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from pathlib import Path
from typing import Any

import click
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from fgkd import files, models, rng
from fgkd.config import args_file, parse_kwargs
from fgkd.data import open_dataset
from fgkd.evaluation import scoring
from fgkd.loading import train_loader
from fgkd.loading.schedule import Schedule
from fgkd.views import recipes
from fgkd.views.view_set import ViewSet


@click.command()
@click.option("-c", "--config", "recipe", required=True, type=click.Path(path_type=Path))
@click.option("--model", required=True)
@click.option("--model-kwargs", required=True)
@click.option("--epochs", required=True, type=int)
@click.option("--seed", required=True, type=int)
@click.option("--view-seed", required=True, type=int)
@click.option("--views", required=True, type=int)
@click.option("--aug-recipe", required=True)
@click.option("--data", required=True)
@click.option("--teacher", required=True, type=click.Path(path_type=Path))
@click.option("--output", required=True, type=click.Path(path_type=Path))
@click.option("--lr", type=float)
@click.option("--weight-decay", type=float)
@click.option("--drop-path", type=float, default=0.0)
def main(**given: Any) -> None:
    """Train one student with timm's parts."""
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler
    from timm.task import LogitDistillationTask

    recipe = args_file.load_yaml(ROOT / given["recipe"])
    recipe |= {name: value for name, value in given.items() if value is not None}
    epochs, seed, run = recipe["epochs"], recipe["seed"], recipe["output"]
    dataset, teacher = open_dataset([recipe["data"]], 0.1), models.load(recipe["teacher"] / "model")
    rng.seed_torch("init", seed)
    student, _ = models.create(
        recipe["model"],
        class_names=dataset.classes,
        kwargs=parse_kwargs((recipe["model_kwargs"],), "model_kwargs"),
        img_size=recipe["img_size"],
        crop_pct=recipe["crop_pct"],
        drop_path=recipe["drop_path"],
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
    schedule = Schedule(seed, len(train), recipe["batch_size"], epochs, recipe["views"])
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
    views = recipes.recipe_from(recipe["aug_recipe"], {}, dataset.chiral)
    batches = train_loader.TrainLoader(
        ViewSet(train, views, recipe["view_seed"], recipe["img_size"], len(train)),
        schedule,
        workers=1,
    )
    began, found = time.monotonic(), []
    for batch in batches.batches(0):
        task.train()
        scheduler.step_update(batch.spec.step + 1)
        images = batch.image_u8_BHW3.permute(0, 3, 1, 2)
        loss = task((images / 255 - student.mean) / student.std, batch.labels_B)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if (batch.spec.step + 1) % schedule.steps_per_epoch == 0:
            scored = scoring.score(student, dataset, "val", device=torch.device("cpu"))
            found.append(100 * float(scored.hit_N.mean()))
            print(f"epoch {batch.spec.epoch + 1}/{epochs}  val top-1 {found[-1]:.2f} %", flush=True)
            if found[-1] == max(found) and found.count(found[-1]) == 1:
                models.save(student, run / "model")
    with (run / "summary.csv").open("w", newline="") as out:
        csv.writer(out).writerows([["epoch", "val_top1_pct"], *enumerate(found)])
    took = {"train_s": time.monotonic() - began}
    files.write_text(run / "timings.jsonl", json.dumps(took) + "\n")


if __name__ == "__main__":
    main()
