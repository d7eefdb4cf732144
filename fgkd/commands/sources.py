"""The sources of trained models that commands take, and how their classes fit the data's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fgkd.config import ArchitectureSpec, SourceSpec, parse_kwargs
from fgkd.errors import UnusedOption
from fgkd.models import Classifier, weights
from fgkd.models.class_names import fit_classes
from fgkd.models.loading import (
    is_checkpoint,
    is_remote,
    load_classifier,
    located,
    model_folder,
)
from fgkd.training import run_folder
from fgkd.training.run_folder import RunFacts


def load(source: str | Path, spec: ArchitectureSpec) -> Classifier:
    """The classifier of a source, of any form that `load_classifier` takes."""
    kwargs = parse_kwargs(spec.teacher_model_kwargs, "teacher_model_kwargs")
    return load_classifier(source, model=spec.teacher_model, model_kwargs=kwargs)


def check(sources: Sequence[str | Path], spec: ArchitectureSpec) -> None:
    """Refuse sources that are not there before any work, and options that no source needs."""
    for source in map(located, sources):
        if not is_remote(source) and not is_checkpoint(source):
            weights.require_model(model_folder(source))
    if any(is_checkpoint(located(one)) for one in sources):
        return
    for name in ("teacher_model", "teacher_model_kwargs"):
        if value := getattr(spec, name):
            message = f"{name} has no effect without a source that is a file of weights"
            raise UnusedOption(message, option=name, value=value)


def describe_run(source: str | Path) -> RunFacts | None:
    """run.json of a run folder; None for a model of another form.

    Raises: MissingFile, NotLocal for a URL, WrongKind for a cache, UnreadableFile.
    """
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
