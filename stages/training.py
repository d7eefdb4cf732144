"""The loop's policy, shared by teacher and student: when to log, evaluate, save and stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from fgkd import checkpoint, engine, metrics, models, optim, rng
from fgkd.config import TrainOptions
from fgkd.data import Dataset
from fgkd.fetch import clean_fetcher
from fgkd.loader import TrainLoader
from fgkd.rundir import RunDir

from . import session


def build_model(
    options: Any, class_names: list[str], *, uses_dist: bool, img_size: int | None
) -> tuple[models.Classifier, list[str]]:
    """The model of the options, initialised from --seed; also what to say of its weights."""
    rng.seed_torch("init", options.seed)
    return models.create(
        options.model,
        class_names=class_names,
        kwargs=models.parse_kwargs(options.model_kwargs),
        img_size=img_size,
        crop_pct=options.crop_pct,
        pretrained=options.pretrained,
        initial_checkpoint=options.initial_checkpoint,
        drop=options.drop,
        drop_path=options.drop_path,
        head_init_scale=options.head_init_scale,
        uses_dist=uses_dist,
    )


def resolve_warmup(options: Any) -> float:
    """--warmup-epochs, or the default: 2, but at most a quarter of the epochs."""
    given = options.warmup_epochs
    return min(2.0, options.epochs / 4) if given is None else float(given)


def resolve_lr(options: Any) -> float:
    """--lr, or the default: 1e-3 from scratch, 1e-4 from given weights."""
    given = options.pretrained or options.initial_checkpoint
    return float(options.lr or (1e-4 if given else 1e-3))


def schedule_lr(options: Any, steps_per_epoch: int) -> Callable[[int], float]:
    """The learning rate as a pure function of the step."""

    def lr_at(step: int) -> float:
        return optim.lr_at(
            step=step,
            total_steps=options.epochs * steps_per_epoch,
            warmup_steps=round(resolve_warmup(options) * steps_per_epoch),
            lr=resolve_lr(options),
            min_lr=options.min_lr,
            warmup_lr=options.warmup_lr,
            schedule=options.sched,
            decay_steps=max(1, round(options.decay_epochs * steps_per_epoch)),
            decay_rate=options.decay_rate,
        )

    lr_at(0)  # refuses a schedule that rises before anything is written
    return lr_at


def describe_plan(options: Any, steps_per_epoch: int) -> str:
    """Epochs, steps, optimizer and learning rate on one line."""
    layer_decay = f", layer decay {options.layer_decay:g}" if options.layer_decay else ""
    accum = f" in {options.grad_accum_steps} micro-batches" if options.grad_accum_steps > 1 else ""
    return (
        f"{options.epochs} epochs x {steps_per_epoch} steps of {options.batch_size} images{accum}; "
        f"{options.opt}, lr {resolve_lr(options):g} -> {options.min_lr:g} {options.sched} after "
        f"{resolve_warmup(options):g} epochs of warmup, weight decay {options.weight_decay:g}"
        f"{layer_decay}"
    )


def make_state(options: Any, model: models.Classifier, device: torch.device) -> engine.State:
    """Optimizer, loss scaler and averaged weights around a new model."""
    from timm.utils import ModelEmaV3

    model.to(device)
    if options.channels_last:
        model.to(memory_format=torch.channels_last)
    groups = optim.param_groups(
        model=model.net,
        weight_decay=options.weight_decay,
        layer_decay=options.layer_decay,
        layer_decay_style=options.layer_decay_style,
    )
    optimizer = optim.create_optimizer(
        name=options.opt, groups=groups, lr=resolve_lr(options), momentum=options.momentum
    )
    scaled = options.amp and options.amp_dtype == "float16"
    decay = math.exp(-options.batch_size / options.model_ema_samples)
    return engine.State(
        model,
        optimizer,
        torch.amp.GradScaler(device.type, enabled=scaled),
        ModelEmaV3(model, decay=decay, use_warmup=True) if options.model_ema else None,
    )


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
            self.fetcher = clean_fetcher(self.samples, model_config, options.skip_bad_images)

    def __call__(self, model: models.Classifier) -> dict[str, float]:
        """Metrics of the val split, or {} without one."""
        if self.samples is None:
            return {}
        rows, logits_NK, _ = engine.evaluate(
            model,
            self.fetcher,
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
    run: RunDir,
    options: Any,
    *,
    resume: bool,
    model: models.Classifier,
    loader: TrainLoader,
    step_fn: engine.Step,
    validation: Validation,
    lr_at: Callable[[int], float],
    device: torch.device,
) -> None:
    """Run or continue a training to its end, leaving the best model in RUN/model."""
    state = make_state(options, model, device)
    schedule = loader.schedule
    if resume:
        state.restore(checkpoint.load(run.last, device))
        run.cut_back(state.step)
        run.log(f"resumed at step {state.step} of {schedule.total_steps}")
    pace = session.Pace(schedule.total_steps, options.log_interval)
    epoch_start = time.monotonic()
    with session.StopSignal() as stop:
        for report in engine.fit(
            state,
            batches=loader.batches(state.step),
            step_fn=_compiled(step_fn, options),
            steps_per_epoch=schedule.steps_per_epoch,
            lr_at=lr_at,
            seed=options.seed,
            device=device,
            amp_dtype=getattr(torch, options.amp_dtype) if options.amp else None,
            grad_accum_steps=options.grad_accum_steps,
            clip_grad=options.clip_grad,
            clip_mode=options.clip_mode,
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
                _end_epoch(run, state, report, validation, train_s)
                epoch_start = time.monotonic()
            every = options.checkpoint_steps
            if report.epoch_ends or report.stopping or (every and report.step % every == 0):
                run.save(run.last, state.save())
            if report.stopping and report.step < schedule.total_steps:
                pace.close()
                stop.number = stop.number or 2  # another rank's signal stops this one too
                stop.check(resume=True)
    pace.close()
    run.log(_closing_line(run, state.best))


def _compiled(step_fn: engine.Step, options: TrainOptions) -> engine.Step:
    if not options.compile:
        return step_fn
    compiled: dict[int, Any] = {}

    def step(model: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        fast = compiled.setdefault(id(model), torch.compile(model))
        return step_fn(fast, batch)

    return step


def _console_line(report: engine.Report, options: Any, total_steps: int, pace: str) -> str:
    parts = "  ".join(f"{name} {value:.4f}" for name, value in report.losses.items())
    return (
        f"epoch {report.epoch + 1}/{options.epochs}  step {report.step}/{total_steps}  "
        f"{parts}  lr {report.lr:.2e}  {pace}"
    )


def _end_epoch(
    run: RunDir, state: engine.State, report: engine.Report, validate: Validation, train_s: float
) -> None:
    """Evaluate, keep the best, write the epoch's row; ties keep the earlier epoch."""
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
            models.export(chosen, run.model_dir)
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


def _closing_line(run: RunDir, best: dict[str, Any]) -> str:
    score = f": val top-1 {best['val_top1_pct']:.2f} %" if "val_top1_pct" in best else ""
    averaged = " (averaged weights)" if best.get("is_ema") else ""
    return f"done: best epoch {best['epoch'] + 1}{score}{averaged}; model in {run.model_dir}"


def is_finished(run: RunDir, total_steps: int, resume: bool) -> bool:
    """Whether a resumed run has nothing left to do; says so."""
    finished = resume and checkpoint.load(run.last)["step"] >= total_steps
    if finished:
        run.log(f"{run.path} is finished ({total_steps} steps); nothing to do")
    return finished


def describe_model(name: str, model: models.Classifier, said: list[str]) -> str:
    """Name, size in parameters, input side, and how its weights began."""
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    size = model.config["input_size"][-1]
    return f"{name}, {millions:.2f} M parameters, {size} px; {'; '.join(said)}"


def describe_device(options: Any, device_line: str) -> str:
    """Device, number type and workers."""
    dtype = f"autocast {options.amp_dtype}" if options.amp else "float32"
    return f"{device_line}; {dtype}; {options.workers} workers"
