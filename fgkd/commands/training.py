"""A prepared training run, and its cost estimate: shared by both training commands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fgkd.commands import dry_run, image_stores
from fgkd.data import Dataset
from fgkd.estimate.image_store import estimate_store
from fgkd.estimate.training import Build, PlannedTraining, TrainingEstimate, estimate_training
from fgkd.loading.train_loader import TrainLoader
from fgkd.models import Classifier
from fgkd.progress import Progress
from fgkd.training import setup
from fgkd.training.loop import Step
from fgkd.training.run_folder import Config, Parents, RunFacts, RunFolder
from fgkd.training.train import TrainedRun, Validation, finished_run, train


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A training run whose data, model and losses are loaded; nothing is written yet.

    banner: lines that describe it. specs, val_fraction: how the dataset was opened. build: makes
    the model. lr: the highest; lr_at: from a step to its own. step_fn: None if its targets are not
    there; counted_step_fn: the same without the live teacher, whose number type is dtype.
    val_targets: from a batch size to a teacher's logits of the val images, float [N, K]. taught_by:
    a line for the model's card.
    """

    stage: str
    options: Config
    banner: list[str]
    device: torch.device
    device_line: str
    dataset: Dataset
    specs: Sequence[str]
    val_fraction: float
    build: Build
    model: Classifier
    loader: TrainLoader
    lr: float
    lr_at: Callable[[int], float]
    step_fn: Step | None
    counted_step_fn: Step
    teacher: Classifier | None = None
    dtype: str = "float32"
    parents: Parents = Parents()
    taught_by: str = "none: learned from labels"
    val_targets: Callable[[int], Tensor | None] = lambda batch_size: None

    def carry_out(self, progress: Progress) -> TrainedRun | TrainingEstimate:
        """What the options ask for: the run, or its estimate."""
        return self.estimate() if self.options.run.dry_run else self.run(progress)

    def estimate(self) -> TrainingEstimate:
        """Its memory, FLOPs and time; nothing is written."""
        options, views = self.options, self.loader.views
        planned = PlannedTraining(
            run=options.run,
            optim=options.optim,
            build=self.build,
            loader=self.loader,
            step_fn=self.step_fn,
            counted_step_fn=self.counted_step_fn,
            lr=self.lr,
            lr_at=self.lr_at,
            num_val=len(self.dataset.splits.get("val", ())),
            size=views.size,
            freeze=options.model.freeze,
            store=estimate_store(self.loader.renderer.store, views.samples, views.short_side),
            teacher=self.teacher,
            dtype=self.dtype,
        )
        return dry_run.written(estimate_training(planned, self.banner, self.device), options.run)

    def run(self, progress: Progress) -> TrainedRun:
        """Train, or continue the run in the output folder."""
        options, spec, optim = self.options, self.options.run, self.options.optim
        assert self.step_fn is not None
        state = setup.make_state(optim, self.lr, self.model, self.device, spec.channels_last)
        folder = RunFolder(Path(spec.output), progress)
        facts = RunFacts(
            stage=self.stage,
            command=tuple(sys.argv),
            device=self.device_line,
            data=tuple(self.specs),
            val_fraction=self.val_fraction,
            views=self.loader.views.identity,
            parents=self.parents,
            images={split: samples.sha256 for split, samples in self.dataset.splits.items()},
        )
        with folder.opened(options, spec, facts) as resume:
            total_steps = self.loader.schedule.total_steps
            if resume and (finished := finished_run(folder, total_steps, self.dataset)):
                return finished
            for line in self.banner:
                folder.log(line)
            skip_unreadable = options.data.skip_bad_images
            image_stores.fill_store(
                self.loader.renderer.store,
                workers=spec.workers,
                skip_unreadable=skip_unreadable,
                progress=progress,
            )
            batch_size = setup.eval_batch_size(spec, optim, self.loader)
            validation = Validation(
                *(self.dataset, self.model, self.device),
                batch_size=batch_size,
                workers=spec.workers,
                amp_dtype=setup.autocast_dtype(optim),
                skip_unreadable=skip_unreadable,
                teacher_NK=self.val_targets(batch_size),
            )
            return train(
                folder,
                options,
                resume=resume,
                state=state,
                loader=self.loader,
                step_fn=self.step_fn,
                validation=validation,
                lr_at=self.lr_at,
                device=self.device,
                teacher=self.taught_by,
                progress=progress,
            )
