"""One training run from start to end: when to log, evaluate, save and stop."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from fgkd import distributed, files, models
from fgkd.data import Dataset
from fgkd.device import memory_in_use
from fgkd.evaluation import inference, metrics
from fgkd.loading.train_loader import TrainLoader
from fgkd.progress import Pace, Progress
from fgkd.training import card, checkpoint, loop, setup, trackers
from fgkd.training.run_folder import Config, RunFolder
from fgkd.views.clean import clean_renderer
from fgkd.views.rendering import Unreadable

VAL_METRICS = ("top1_pct", "top5_pct", "nll", "agreement_pct", "kl_to_teacher")


class Validation:
    """Evaluates weights on the val split, and their agreement with the teacher where it is known.

    amp_dtype: number type to autocast to. teacher_NK: the teacher's logits of the val images, in
    their order.
    """

    def __init__(
        self,
        dataset: Dataset,
        model: models.Classifier,
        device: torch.device,
        *,
        batch_size: int,
        workers: int,
        amp_dtype: torch.dtype | None = None,
        skip_unreadable: bool = False,
        teacher_NK: torch.Tensor | None = None,
    ) -> None:
        self.samples = dataset.splits.get("val")
        self.dataset, self.device = dataset, device
        self.batch_size, self.workers = batch_size, workers
        self.teacher_NK, self.amp_dtype = teacher_NK, amp_dtype
        self.unreadable: list[Unreadable] = []  # of the last call
        if self.samples is not None:
            self.renderer = clean_renderer(self.samples, model.eval_transform, skip_unreadable)

    def __call__(self, model: models.Classifier) -> dict[str, float]:
        """Metrics of the val split, their names prefixed by `val_`; {} without a val split."""
        if self.samples is None:
            return {}
        distributed.share_statistics(model)
        rows, logits_NK, self.unreadable = inference.evaluate(
            model,
            self.renderer,
            batch_size=self.batch_size,
            workers=self.workers,
            device=self.device,
            amp_dtype=self.amp_dtype,
        )
        found = metrics.summarize(
            logits_NK=logits_NK,
            labels_N=torch.from_numpy(self.samples.labels[rows]),
            domains_N=torch.from_numpy(self.samples.domains[rows]),
            domain_names=self.dataset.domains,
            teacher_NK=None if self.teacher_NK is None else self.teacher_NK[rows],
        )
        values = found.to_json()
        return {f"val_{name}": values[name] for name in VAL_METRICS if name in values}


@dataclass(frozen=True)
class TrainedRun:
    """A training run on disk.

    finished: False if it was asked to stop before its last step. best_epoch: from 1; 0: none
    yet. best: validation metrics of that epoch, as `val_top1_pct`; {} without a val split. splits:
    of the data.
    """

    path: Path
    finished: bool
    splits: tuple[str, ...]
    best_epoch: int = 0
    best: dict[str, float] | None = None

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def model(self) -> models.Classifier:
        """The model of the best epoch, in eval mode."""
        return models.load(self.path / "model").remembered()

    @classmethod
    def of(
        cls, path: Path, finished: bool, dataset: Dataset, best: Mapping[str, float]
    ) -> TrainedRun:
        """From what a checkpoint holds of the best epoch."""
        scores = {name: value for name, value in best.items() if name.startswith("val_")}
        return cls(path, finished, tuple(dataset.splits), int(best.get("epoch", -1)) + 1, scores)


def train(
    run: RunFolder,
    options: Config,
    *,
    resume: bool,
    state: loop.State,
    loader: TrainLoader,
    step_fn: loop.Step,
    validation: Validation,
    lr_at: Callable[[int], float],
    device: torch.device,
    teacher: str,
    progress: Progress,
) -> TrainedRun:
    """Run or continue a training, leaving the best model in RUN/model.

    When `progress` asks to stop, the current step is finished and saved. teacher: a description,
    for the model's card.
    """
    schedule, spec, optim = loader.schedule, options.run, options.optim
    if resume:
        state.restore(checkpoint.load(run.last), run.last)
        run.cut_back(state.step)
        run.log(f"resumed at step {state.step} of {schedule.total_steps}")
    pace = Pace(schedule.total_steps, spec.log_interval)
    sizes = loader.usual_sizes(optim.grad_accum_steps) if spec.compile == "on" else ()
    epoch_start, finished = time.monotonic(), True
    logs = trackers.Trackers(run.path, spec, options, state.step, run.log)
    with progress.stoppable(), contextlib.closing(logs):
        for report in loop.fit(
            state,
            batches=loader.batches(state.step),
            step_fn=step_fn,
            steps_per_epoch=schedule.steps_per_epoch,
            lr_at=lr_at,
            seed=spec.seed,
            device=device,
            amp_dtype=setup.autocast_dtype(optim),
            grad_accum_steps=optim.grad_accum_steps,
            clip_grad=optim.clip_grad,
            clip_mode=optim.clip_mode,
            compiled_sizes=sizes,
            checkpoint_steps=spec.checkpoint_steps,
            should_stop=progress.stop_requested,
        ):
            run.add_unreadable(report.unreadable)
            due = pace.add(
                report.step, report.num_images, report.times["wait_s"], report.times["step_s"]
            )
            progress.status(functools.partial(_status, report, optim.epochs, pace, device))
            progress.advance(report.step, schedule.total_steps)
            if due:
                line = _step_line(report, optim.epochs, schedule.total_steps, due)
                run.log(line, progress.interim)
            if report.epoch_ends:
                train_s = time.monotonic() - epoch_start
                row = _end_epoch(run, state, report, validation, train_s, optim.epochs)
                logs.add(row)
                epoch_start = time.monotonic()
            if report.settled:
                run.save(run.last, state.save())
            finished = not report.stopping or report.step >= schedule.total_steps
            if not finished:
                break
    if finished:
        if count := run.num_unreadable():
            images = "image" if count == 1 else "images"
            run.log(f"left out {count} unreadable {images}: {run.path / 'bad_images.jsonl'}")
        if run.is_writer:
            text = card.card(
                run.path, options, state.model, validation.dataset, state.best, teacher
            )
            files.write_text(run.model_dir / card.NAME, text)
        run.log(_closing_line(run, state.best))
    return TrainedRun.of(run.path, finished, validation.dataset, state.best)


def _step_line(report: loop.Report, epochs: int, total_steps: int, pace: str) -> str:
    parts = "  ".join(f"{name} {value:.4f}" for name, value in report.losses.items())
    parts += "  (float16 overflow: no update)" if report.skipped else ""
    return (
        f"epoch {report.epoch + 1}/{epochs}  step {report.step}/{total_steps}  "
        f"{parts}  lr {report.lr:.2e}  {pace}"
    )


def _status(report: loop.Report, epochs: int, pace: Pace, device: torch.device) -> str:
    """A live line's text."""
    loss, memory = report.losses["loss"], files.human_bytes(memory_in_use(device))
    return f"epoch {report.epoch + 1}/{epochs}  loss {loss:.4f}  {pace.now}  {memory}"


def _end_epoch(
    run: RunFolder,
    state: loop.State,
    report: loop.Report,
    validate: Validation,
    train_s: float,
    epochs: int,
) -> dict[str, float]:
    """Evaluate, keep the best model, write and return the epoch's row; a tie keeps the earlier."""
    started = time.monotonic()
    images = state.sums.pop("images", 0.0)
    means = {name: total / max(images, 1.0) for name, total in state.sums.items()}
    state.sums = {}
    when = {"epoch": report.epoch + 1, "step": report.step}
    row: dict[str, float] = {**when, **means, "lr": report.lr}
    found, chosen = validate(state.model), state.model
    run.add_unreadable(validate.unreadable)
    row |= found
    if state.ema:
        averaged = validate(state.ema.module)
        row |= {f"ema_{name}": value for name, value in averaged.items()}
        if not found or averaged["val_top1_pct"] > found["val_top1_pct"]:
            found, chosen = averaged, state.ema.module
    better = found.get("val_top1_pct", math.inf) > state.best.get("val_top1_pct", -math.inf)
    if better or not found:  # without a val split the last epoch is kept
        state.best = {"epoch": report.epoch, "is_ema": chosen is not state.model, **found}
        run.save(run.best, {"model": checkpoint.to_cpu(chosen.state_dict()), **state.best})
        if run.is_writer:
            models.save(chosen, run.model_dir)
    eval_s = time.monotonic() - started
    timing = {**when, "train_s": train_s, "eval_s": eval_s}
    run.add_row(row, {**timing, "img_per_s": images / max(train_s, 1e-9)})
    parts = [f"epoch {report.epoch + 1}/{epochs}"]
    if found:
        parts += [
            f"val top-1 {found['val_top1_pct']:.2f} %",
            f"top-5 {found['val_top5_pct']:.2f} %",
        ]
    if "val_agreement_pct" in found:
        parts.append(f"agreement {found['val_agreement_pct']:.2f} %")
    parts.append(f"loss {means.get('loss', math.nan):.4f}")
    line, mark = "  ".join(parts), "  (best)" if found and better else ""
    run.log(line + mark, lambda _: run.progress.milestone(line, bool(mark)))
    return row


def _closing_line(run: RunFolder, best: Mapping[str, float]) -> str:
    score = f": val top-1 {best['val_top1_pct']:.2f} %" if "val_top1_pct" in best else ""
    averaged = " (averaged weights)" if best.get("is_ema") else ""
    which = "best" if score else "last"
    number = int(best["epoch"]) + 1
    return f"done: {which} epoch {number}{score}{averaged}; model in {run.model_dir}"


def finished_run(run: RunFolder, total_steps: int, dataset: Dataset) -> TrainedRun | None:
    """A resumed run that has nothing left to do, which is logged; None if it has."""
    saved = checkpoint.load(run.last)
    if saved.get("step", 0) < total_steps:
        return None
    run.log(f"{run.path} is finished ({total_steps} steps); nothing to do")
    return TrainedRun.of(run.path, True, dataset, saved["best"])
