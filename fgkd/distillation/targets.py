"""Where a student's views and targets come from: a cache, a live teacher, or labels alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from fgkd import files, losses, models
from fgkd.cache.reader import Reader
from fgkd.cache.remote import open_cache
from fgkd.config import (
    DataSpec,
    LossSpec,
    SourceSpec,
    TargetSpec,
    ViewSpec,
    args_file,
    parse_kwargs,
)
from fgkd.data import (
    DEFAULT_VAL_FRACTION,
    Dataset,
    absolute_specs,
    moved,
    open_chosen,
    specs_of,
    unlabeled,
    with_boxes,
)
from fgkd.errors import MissingOption, NoTargets, OptionError, TooFewViews
from fgkd.evaluation import inference
from fgkd.files import is_url
from fgkd.loading.cached_data import cached_data
from fgkd.models.class_names import fit_classes
from fgkd.models.loading import absolute, read_classifier
from fgkd.training import run_folder
from fgkd.training.run_folder import Parents, RunFacts
from fgkd.views import recipes
from fgkd.views.clean import clean_renderer
from fgkd.views.view_set import ViewSet


def reads_by_shard(spec: TargetSpec) -> bool:
    """Whether a cache is read shard by shard: where that was asked for, and always behind a URL."""
    return spec.order == "shard" or is_url(spec.cache or "")


@dataclass
class TargetSource:
    """A student's images, views and targets.

    specs: the dataset, with absolute paths. num_views: views of each image that are used.
    block_size: images per block of mixing pairs. img_size: side of the views; None: the student's
    own. text: a description for a person. parents: for run.json. cache, teacher: at most one.
    """

    dataset: Dataset
    specs: list[str]
    val_fraction: float
    recipe: recipes.ViewRecipe
    view_seed: int
    num_views: int
    block_size: int
    img_size: int | None
    text: str
    parents: Parents = Parents()
    short_side: int | None = None
    cache: Reader | None = None
    teacher: models.Classifier | None = None

    @property
    def hashes(self) -> np.ndarray | None:
        """Content hashes of the training images, where the cache records them."""
        return self.cache.samples["train"].hashes if self.cache else None

    @property
    def teacher_text(self) -> str:
        """The architectures of the teachers."""
        known = self.cache.identity.teachers if self.cache else ()
        names = [one.architecture for one in known] + (
            [self.teacher.architecture] if self.teacher else []
        )
        return " and ".join(names)

    def view_set(self, size: int) -> ViewSet:
        """The views of the training images at this size."""
        samples = self.dataset.train
        unreadable = self.cache.unreadable_keys if self.cache else ()
        views = (self.recipe, self.view_seed, size, self.block_size, self.short_side)
        added = self.cache.identity.added if self.cache else ()
        return ViewSet(samples, *views, unreadable, added)

    def close(self) -> None:
        """Close the cache's shards, and stop downloads."""
        if self.cache:
            self.cache.close()


@dataclass(frozen=True)
class _Opener:
    """The specs that decide where targets come from."""

    targets: TargetSpec
    loss: LossSpec
    data: DataSpec
    view: ViewSpec
    source: SourceSpec
    epochs: int
    dry_run: bool

    def open(self) -> TargetSource:
        targets = self.targets
        if targets.cache and targets.teacher:
            message = "cache and teacher exclude each other"
            raise OptionError(message, option="teacher", value=targets.teacher)
        if targets.cache:
            is_local = not is_url(targets.cache)
            if self.dry_run and is_local and not Path(targets.cache).exists():
                return self._planned(targets.cache)
            return self._from_cache(targets.cache)
        if targets.teacher:
            return self._from_teacher(targets.teacher)
        if self.loss.distillation == "logits":
            raise NoTargets("nothing to distil from: neither cache nor teacher was given")
        if not self.data.data:
            raise MissingOption("data is required", option="data", suggestion="icons")
        unlabeled.refuse(self.data.data)
        return self._from_data(specs_of(self.data), "labels")

    def _planned(self, folder: str) -> TargetSource:
        """For an estimate before the cache is written: the data it will be of."""
        if not self.data.data:
            message = f"no cache at {folder}, and no data to make an estimate from"
            raise MissingOption(message, option="data", suggestion="NAME:PATH")
        text = f"cache {folder}, which is not there yet"
        return self._from_data(specs_of(self.data), text)

    def _from_cache(self, folder: str) -> TargetSource:
        given = recipes.given_options(self.view)
        if given:
            message = f"the cache fixes the views; {given[0]} cannot change them"
            value = getattr(self.view, given[0])
            advice = "write another cache with it"
            raise OptionError(message, option=given[0], value=value, advice=advice)
        reader = open_cache(folder)
        identity = reader.identity
        specs, dataset = cached_data(reader, specs_of(self.data), fetch=False)
        self._check_options(reader)
        return TargetSource(
            dataset=dataset,
            specs=specs,
            val_fraction=identity.dataset.val_fraction,
            recipe=identity.views.recipe,
            view_seed=identity.views.seed,
            num_views=self.targets.views or reader.views,
            block_size=identity.shard_size,
            img_size=identity.views.img_size,
            short_side=identity.views.short_side,
            text=f"cache {folder}: {reader.codec.name} logits, {reader.views} views"
            + (", read shard by shard" if reads_by_shard(self.targets) else ""),
            parents=Parents(
                cache=folder if is_url(folder) else str(Path(folder).resolve()),
                identity_sha256=reader.manifest.identity_sha256,
                teachers=tuple(t.weights_sha256 for t in identity.teachers),
            ),
            cache=reader,
        )

    def _check_options(self, reader: Reader) -> None:
        """Refuse options that contradict the cache."""
        name, identity, targets = reader.name, reader.identity, self.targets
        fraction, seed = identity.dataset.val_fraction, identity.views.seed
        if (targets.views or 1) > reader.views:
            message = f"views {targets.views}: cache {name} has {reader.views}"
            there = reader.views
            raise TooFewViews(message, value=targets.views, cache=name, there=there)
        if targets.view_seed not in (None, seed):
            message = f"view_seed {targets.view_seed}: cache {name} was made with {seed}"
            raise OptionError(message, option="view_seed", value=targets.view_seed)
        if self.data.val_fraction not in (None, fraction):
            given = self.data.val_fraction
            message = f"val_fraction {given:g}: cache {name} was made with {fraction:g}"
            raise OptionError(message, option="val_fraction", value=given)
        self._check_losses(reader)
        self._check_images(reader)

    def _check_losses(self, reader: Reader) -> None:
        """Refuse losses that need what a truncated target lacks: all logits, or a temperature."""
        spec, codec = self.loss, reader.codec
        if not codec.truncated or spec.distillation == "none":
            return
        kept = f"cache {reader.name} keeps the top {codec.top_k} of {codec.num_classes}"
        if spec.kd_loss in losses.NEEDS_ALL_LOGITS:
            message = f"{spec.kd_loss} needs all logits, but {kept}"
            advice = "learn from a dense cache"
            raise OptionError(
                message, option="kd_loss", value=spec.kd_loss, suggestion="kl", advice=advice
            )
        if spec.logit_standardization:
            message = f"logit_standardization needs all logits, but {kept}"
            raise OptionError(message, option="logit_standardization", value=True)
        if spec.kd_loss != "hard":
            codec.refuse_temperature(spec.temperature)

    def _check_images(self, reader: Reader) -> None:
        """Refuse an image store whose images are not those that the views were cropped from."""
        side, spec = reader.identity.views.short_side, self.data
        full_size = "were cropped from full-size images"
        if spec.image_store_side not in (None, side):
            how = full_size if side is None else f"were made with {side}"
            message = f"image_store_side {spec.image_store_side}: the views of {reader.name} {how}"
            value = spec.image_store_side
            raise OptionError(message, option="image_store_side", value=value)
        if spec.image_store and side is None:
            message = f"image_store: the views of {reader.name} {full_size}"
            raise OptionError(message, option="image_store", value=spec.image_store)
        if spec.image_store and is_url(self.targets.cache or "") and not spec.data:
            message = "image_store cannot keep images that come with the shards of a URL"
            raise OptionError(message, option="image_store", value=spec.image_store)

    def _from_teacher(self, given: Sequence[str]) -> TargetSource:
        if len(given) > 1:
            raise OptionError(
                f"{len(given)} live teachers were given",
                option="teacher",
                value=given,
                suggestion=given[:1],
                advice="write a cache of both, which averages them",
            )
        name, spec = given[0], self.source
        is_run = (Path(name) / "run.json").is_file()
        kwargs = parse_kwargs(spec.teacher_model_kwargs, "teacher_model_kwargs")
        loaded = read_classifier(name, spec.teacher_model, kwargs)
        run = run_folder.read(Path(name)) if is_run else None
        specs = moved(specs_of(self.data), run.data if run else ())
        text = f"live teacher {name}, {self.targets.dtype}"
        source = self._from_data(specs, text, run)
        teacher, fit = fit_classes(loaded, source.dataset.classes, spec.class_map, name=name)
        options = args_file.load_yaml(Path(name) / "args.yaml") if is_run else None
        args_sha256 = files.fingerprint(options or {"weights": teacher.weights_sha256})
        return replace(
            source,
            text=f"{text}; {fit}" if fit else text,
            teacher=teacher,
            img_size=teacher.input_size[-1],
            parents=Parents(teacher=absolute(name), args_sha256=args_sha256),
        )

    def _from_data(
        self,
        data: Sequence[str],
        text: str,
        taught: RunFacts | None = None,
    ) -> TargetSource:
        """Of labels, or of a live teacher. taught: the run that trained it, if there is one."""
        specs = absolute_specs(data)
        recorded = taught.val_fraction if taught else DEFAULT_VAL_FRACTION
        dataset = open_chosen(self.data, specs, recorded)
        own = taught.views.recipe if taught else None
        recipe = recipes.resolve(self.view, own, dataset.chiral)
        if recipe.bbox_crop:
            dataset = with_boxes(dataset)
        return TargetSource(
            dataset=dataset,
            specs=specs,
            val_fraction=dataset.val_fraction,
            recipe=recipe,
            view_seed=self.targets.view_seed or 0,
            num_views=self.targets.views or self.epochs,
            block_size=self.targets.shard_size,
            img_size=None,
            short_side=self.data.image_store_side,
            text=text,
        )


def open_source(
    targets: TargetSpec,
    loss: LossSpec,
    data: DataSpec,
    view: ViewSpec,
    *,
    epochs: int,
    source: SourceSpec | None = None,
    dry_run: bool = False,
) -> TargetSource:
    """The cache, live teacher or labelled data that the specs name.

    epochs: views of each image where nothing else says how many. source: of a live teacher.
    dry_run: the cache need not be there yet. Raises: OptionError or MissingOption when the specs
    name none, several, or options that contradict the cache; DataMismatch when the cache is of
    other data.
    """
    return _Opener(targets, loss, data, view, source or SourceSpec(), epochs, dry_run).open()


def val_targets(
    source: TargetSource, batch_size: int, workers: int, device: torch.device
) -> torch.Tensor | None:
    """The teacher's clean logits [N, K] of the val split, stored or computed; None without one."""
    if source.cache is not None:
        stored = source.cache.val_logits()
        return None if stored is None else torch.from_numpy(stored)
    if source.teacher is None or "val" not in source.dataset.splits:
        return None
    renderer = clean_renderer(source.dataset.splits["val"], source.teacher.eval_transform, False)
    source.teacher.to(device)
    _, logits_NK, _ = inference.evaluate(
        source.teacher,
        renderer,
        batch_size=batch_size,
        workers=workers,
        device=device,
    )
    return logits_NK
