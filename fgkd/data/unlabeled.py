"""Images without labels beside a labelled dataset; students learn the teacher's targets of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fgkd.data.folder import image_keys
from fgkd.data.lists import make_samples
from fgkd.data.samples import Dataset
from fgkd.data.spec import Spec
from fgkd.errors import DatasetError, OptionError


def load(root: Path) -> Dataset:
    """All images in a folder, at any depth, as a train split with label -1 and no classes.

    Keys are paths relative to it. Raises: DatasetError if there is none.
    """
    ignored: list[str] = []
    keys = sorted(image_keys(root, "", ignored))
    if not keys:
        raise DatasetError(f"no image in {root}", path=root)
    notes = [f"{len(keys):,} images have no label: only the teacher's targets are learned of them"]
    if ignored:
        notes.append(f"ignored {len(ignored)} files that are no images, as {min(ignored)}")
    samples = make_samples(root, keys, [-1] * len(keys))
    return Dataset("unlabeled", [], ["unlabeled"], {"train": samples}, notes=notes)


def refuse(specs: Sequence[str]) -> None:
    """Raise OptionError if these data have images that teach nothing without a teacher."""
    for spec in specs:
        if Spec.parse(spec).name == "unlabeled":
            message = f"{spec} has no labels, and there is no teacher to learn from"
            raise OptionError(message, option="data", value=spec, suggestion=("folder:PATH",))
