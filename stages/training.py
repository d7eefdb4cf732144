"""The loop's policy, shared by teacher and student: when to log, evaluate, save and stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from fgkd import distributed, models
from fgkd.data import Dataset
from fgkd.evaluation import inference, metrics
from fgkd.loading.train_loader import TrainLoader
from fgkd.training import checkpoint, loop
from fgkd.training.run_folder import RunFolder
from fgkd.views.rendering import clean_renderer

from . import assembly, session
from .board import Board


class Validation:
    """Evaluates weights on the val split, and their agreement with the teacher where known."""

    def __init__(
        self,
        dataset: Dataset,
        model_config: dict[str, Any],
        options: Any,
        device: torch.device,
        teacher_NK: torch.Tensor | None,
    ) -> None:
        self.samples = dataset.splits.get("val")
        self.dataset, self.options, self.device = dataset, options, device
        self.teacher_NK = teacher_NK
        if self.samples is not None:
            self.renderer = clean_renderer(self.samples, model_config, options.skip_bad_images)

    def __call__(self, model: models.Classifier) -> dict[str, float]:
        """Metrics of the val split, or {} without one."""
        if self.samples is None:
            return {}
        distributed.share_statistics(model)
        rows, logits_NK, _ = inference.evaluate(
            model,
            self.renderer,
            batch_size=self.options.eval_batch_size,
            workers=self.options.workers,
            device=self.device,
        )
        found = metrics.summarize(
            logits_NK=logits_NK,
            labels_N=torch.from_numpy(self.samples.labels[rows]),
            domains_N=torch.from_numpy(self.samples.domains[rows]),
            domain_names=self.dataset.domains,
            teacher_NK=None if self.teacher_NK is None else self.teacher_NK[rows],
        )
        names = ("top1_pct", "top5_pct", "nll", "agreement_pct", "kl_to_teacher")
        return {f"val_{name}": found[name] for name in names if name in found}


def train(
    run: RunFolder,
    options: Any,
    *,
    resume: bool,
    state: loop.State,
    loader: TrainLoader,
    step_fn: loop.Step,
    validation: Validation,
    lr_at: Callable[[int], float],
    device: torch.device,
) -> None:
    """Run or continue a training to its end, leaving the best model in RUN/model."""
    schedule = loader.schedule
    if resume:
        state.restore(checkpoint.load(run.last))
        run.cut_back(state.step)
        run.log(f"resumed at step {state.step} of {schedule.total_steps}")
    board = Board(run.path, options.tensorboard, state.step)
    pace = session.Pace(schedule.total_steps, options.log_interval)
    epoch_start = time.monotonic()
    with session.StopSignal(resume=True) as stop:
        for report in loop.fit(
            state,
            batches=loader.batches(state.step),
            step_fn=step_fn,
            steps_per_epoch=schedule.steps_per_epoch,
            lr_at=lr_at,
            device=device,
            **assembly.loop_options(options),
            should_stop=stop.requested,
        ):
            run.add_bad_images(report.bad)
            due = pace.add(
                report.step, report.num_images, report.times["wait_s"], report.times["step_s"]
            )
            if due:
                run.log(_console_line(report, options, schedule.total_steps, due))
            if report.epoch_ends:
                train_s = time.monotonic() - epoch_start
                board.add(_end_epoch(run, state, report, validation, train_s))
                epoch_start = time.monotonic()
            every = options.checkpoint_steps
            if report.epoch_ends or report.stopping or (every and report.step % every == 0):
                run.save(run.last, state.save())
            if report.stopping and report.step < schedule.total_steps:
                pace.close()
                board.close()
                stop.number = stop.number or 2  # another rank's signal stops this one too
                stop.check()
    pace.close()
    board.close()
    run.log(_closing_line(run, state.best))


def _console_line(report: loop.Report, options: Any, total_steps: int, pace: str) -> str:
    parts = "  ".join(f"{name} {value:.4f}" for name, value in report.losses.items())
    parts += "  (float16 overflow: no update)" if report.skipped else ""
    return (
        f"epoch {report.epoch + 1}/{options.epochs}  step {report.step}/{total_steps}  "
        f"{parts}  lr {report.lr:.2e}  {pace}"
    )


def _end_epoch(
    run: RunFolder, state: loop.State, report: loop.Report, validate: Validation, train_s: float
) -> dict[str, Any]:
    """Evaluate, keep the best, write and return the epoch's row; ties keep the earlier epoch."""
    started = time.monotonic()
    images = state.sums.pop("images", 0.0)
    means = {name: total / max(images, 1.0) for name, total in state.sums.items()}
    state.sums = {}
    row: dict[str, Any] = {"epoch": report.epoch, "step": report.step, **means, "lr": report.lr}
    found, chosen = validate(state.model), state.model
    row |= found
    if state.ema:
        averaged = validate(state.ema.module)
        row |= {f"ema_{name}": value for name, value in averaged.items()}
        if not found or averaged["val_top1_pct"] > found["val_top1_pct"]:
            found, chosen = averaged, state.ema.module
    better = found.get("val_top1_pct", math.inf) > state.best.get("val_top1_pct", -math.inf)
    if better or not found:  # without a val split the last epoch is the best there is
        state.best = {"epoch": report.epoch, "is_ema": chosen is not state.model, **found}
        run.save(run.best, {"model": checkpoint.to_cpu(chosen.state_dict()), **state.best})
        if run.is_writer:
            models.save(chosen, run.model_dir)
    eval_s = time.monotonic() - started
    timing = {"epoch": report.epoch, "step": report.step, "train_s": train_s, "eval_s": eval_s}
    run.add_row(row, {**timing, "img_per_s": images / max(train_s, 1e-9)})
    if found:
        best = " (best)" if better else ""
        agrees = found.get("val_agreement_pct")
        agreement = "" if agrees is None else f"  agreement {agrees:.2f} %"
        run.log(
            f"epoch {report.epoch + 1} done  loss {means.get('loss', math.nan):.4f}  "
            f"val top-1 {found['val_top1_pct']:.2f} %  top-5 {found['val_top5_pct']:.2f} %"
            f"{agreement}{best}"
        )
    return row


def _closing_line(run: RunFolder, best: dict[str, Any]) -> str:
    score = f": val top-1 {best['val_top1_pct']:.2f} %" if "val_top1_pct" in best else ""
    averaged = " (averaged weights)" if best.get("is_ema") else ""
    return f"done: best epoch {best['epoch'] + 1}{score}{averaged}; model in {run.model_dir}"


def is_finished(run: RunFolder, total_steps: int, resume: bool) -> bool:
    """Whether a resumed run has nothing left to do; says so."""
    finished = resume and checkpoint.load(run.last)["step"] >= total_steps
    if finished:
        run.log(f"{run.path} is finished ({total_steps} steps); nothing to do")
    return finished
