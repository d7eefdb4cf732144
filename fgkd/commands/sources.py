"""The sources of trained models that commands take, and how their classes fit the data's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from fgkd import files
from fgkd.config import ArchitectureSpec, SourceSpec, parse_kwargs
from fgkd.errors import UnusedOption
from fgkd.models import Classifier, classifier, weights
from fgkd.models.class_names import fit_classes
from fgkd.models.loading import (
    is_checkpoint,
    is_remote,
    located,
    model_folder,
    read_classifier,
    source_text,
)
from fgkd.training import run_folder
from fgkd.training.run_folder import RunFacts

Source = str | Path | Classifier  # a trained model: where it is, or in memory
Sources = files.PathLike | Classifier | Sequence[files.PathLike | Classifier]


def given(models: Sources) -> list[Source]:
    """One trained model or several that were given to a function, paths as text.

    Raises: ModelError for an object of another type.
    """
    is_one = isinstance(models, str | nn.Module) or not isinstance(models, Iterable)
    several: Any = [models] if is_one else models
    return [given_one(one) for one in several]


def given_one(model: object) -> Source:
    """As `given`, of a model that is not in a list."""
    return model if isinstance(model, Classifier) else source_text(model)


def name_of(source: Source) -> str:
    """What a source is called in results: as it was given, or a model's architecture."""
    return f"{source.architecture} (in memory)" if isinstance(source, Classifier) else str(source)


def load(source: Source, spec: ArchitectureSpec) -> Classifier:
    """The classifier of a source, of any form that `load_classifier` takes."""
    if isinstance(source, Classifier):
        return source
    kwargs = parse_kwargs(spec.teacher_model_kwargs, "teacher_model_kwargs")
    return read_classifier(source, spec.teacher_model, kwargs)


@contextlib.contextmanager
def borrowed(sources: Sequence[Source]) -> Iterator[None]:
    """Models in memory may be moved and put in eval mode inside; afterwards all is as it was."""
    with contextlib.ExitStack() as stack:
        for source in sources:
            if isinstance(source, Classifier):
                stack.enter_context(classifier.borrowed(source))
        yield


def check(sources: Sequence[Source], spec: ArchitectureSpec) -> None:
    """Refuse sources that are not there before any work, and options that no source needs."""
    places = [located(one) for one in sources if not isinstance(one, Classifier)]
    for source in places:
        if not is_remote(source) and not is_checkpoint(source):
            weights.require_model(model_folder(source))
    if any(map(is_checkpoint, places)):
        return
    for name in ("teacher_model", "teacher_model_kwargs"):
        if value := getattr(spec, name):
            message = f"{name} has no effect without a source that is a file of weights"
            raise UnusedOption(message, option=name, value=value)


def describe_run(source: Source) -> RunFacts | None:
    """run.json of a run folder; None for a model of another form, or in memory.

    Raises: MissingFile, NotLocal for a URL, WrongKind for a cache, UnreadableFile.
    """
    if isinstance(source, Classifier):
        return None
    text = located(source)
    path = Path(text)
    if is_remote(text) or text.startswith("local-dir:") or is_checkpoint(text):
        return None
    if (path / "config.json").exists() and not (path / "run.json").exists():
        return None
    return run_folder.read(path)


def fit(
    found: Sequence[Classifier], names: Sequence[str], classes: Sequence[str], spec: SourceSpec
) -> tuple[list[Classifier], list[str]]:
    """The models with logits of the data's classes, and lines that say what was done to them."""
    fitted, lines = [], []
    for model, name in zip(found, names, strict=True):
        one, text = fit_classes(model, classes, spec.class_map, name=name)
        fitted.append(one)
        if text:
            lines.append(f"{name}: {text}")
    return fitted, lines
