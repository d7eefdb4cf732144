"""Adding images to a cache: what is there is checked and stays as it is, the new get blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fgkd import comparison, distributed, files
from fgkd.cache import samples, samples_file
from fgkd.cache.identity import FORMAT_VERSION, Identity
from fgkd.cache.manifest import check_version
from fgkd.cache.samples import SPLITS, SampleTables
from fgkd.data import Dataset, open_dataset
from fgkd.data.spec import Spec
from fgkd.errors import DamagedCache, DataMismatch, Difference, UnusedOption
from fgkd.loading.cached_data import ordered

SHOWN = 3  # keys in an error


@dataclass(frozen=True)
class Extension:
    """A cache that has, or is to get, images that were added to its dataset.

    old: its identity, and tables: its samples, as they are on disk. dataset: in the order of the
    cache, with added images last. specs: of the dataset, whose val split stays what it was.
    count: how many images are to be added now; 0: a cache to which some were added is continued.
    """

    old: Identity
    tables: SampleTables
    dataset: Dataset
    specs: list[str]
    count: int

    @property
    def added(self) -> tuple[int, ...]:
        """How many images were added, each time."""
        return (*self.old.added, self.count) if self.count else self.old.added

    def identity(self, described: Identity) -> Identity:
        """The identity of the cache when it is extended, from that of the same cache begun now.

        Raises: DataMismatch if the cache was begun with other options.
        """
        if not self.count:
            return replace(described, added=self.old.added, earlier=self.old.earlier)
        before, now = (
            replace(one, samples_sha256="", added=(), earlier=()).to_json()
            for one in (self.old, described)
        )
        wrong = comparison.differences(before, now)
        comparison.refuse("the cache to be extended is another one", wrong, "cache")
        return replace(described, added=self.added, earlier=(*self.old.earlier, self.old.sha256))

    def check(self, tables: SampleTables) -> None:
        """Raise DataMismatch if an image that the cache has was changed. tables: of the dataset."""
        wrong: list[Difference] = []
        for split in SPLITS:
            old = self.tables[split]
            now = tables[split].head(len(old)) if split == "train" else tables[split]
            wrong += samples.differences(old, now, split)
        comparison.refuse("images of the cache were changed", wrong, "data")


def find(
    folder: Path, dataset: Dataset, specs: Sequence[str], val_fraction: float, extend: bool
) -> Extension | None:
    """The cache in a folder, if images were added to it before or are to be now.

    extend: images that the dataset has more than the cache may be added. Raises: DataMismatch for
    images that were removed, or that may not be added; UnusedOption for `extend` without a cache;
    FormatVersionMismatch, DamagedCache.
    """
    path = folder / "identity.json"
    if not path.exists():
        if extend:
            message = f"extend has no effect: there is no cache in {folder}"
            raise UnusedOption(message, option="extend", value=True)
        return None
    value = files.read_json(path, "cache identity")
    check_version(value, folder, readable=(FORMAT_VERSION,))
    try:
        old = Identity.from_json(value)
    except ValueError as error:
        message = f"cache identity {path} is damaged: {error}"
        raise DamagedCache(message, cache=folder, path=path) from None
    if not (extend or old.added):
        return None
    tables = samples_file.load(folder, old)
    kept = _keep_val(folder, specs, tables)
    if kept != list(specs):
        dataset = open_dataset(kept, val_fraction)
    known = set(tables["train"].keys)
    there = set(dataset.train.keys)
    if removed := [key for key in tables["train"].keys if key not in there]:
        raise _mismatch("images were removed that the cache has", removed, "data")
    new = [key for key in dataset.train.keys if key not in known]
    if new and not extend:
        raise _mismatch("the data has images that the cache has not", new, "added")
    return Extension(old, tables, ordered(dataset, tables["train"].keys), kept, len(new))


def _mismatch(what: str, keys: list[str], subject: str) -> DataMismatch:
    more = f" and {len(keys) - SHOWN:,} others" if len(keys) > SHOWN else ""
    message = f"{what}: {', '.join(keys[:SHOWN])}{more}"
    return DataMismatch(
        message,
        subject=subject,
        differences=[Difference("train images", *_sides(subject, len(keys)))],
    )


def _sides(subject: str, count: int) -> tuple[str, str]:
    return ("none", f"{count} more") if subject == "added" else (f"{count} more", "none")


def _keep_val(folder: Path, specs: Sequence[str], tables: SampleTables) -> list[str]:
    """Specs whose val split stays what the cache has, where it was carved from train.

    Its keys are listed in a file of the cache: carved again, it would be another with more images.
    """
    if not specs:
        return []
    whole = open_dataset(list(specs), 0.0)
    own = set(whole.splits["val"].keys) if "val" in whole.splits else set()
    carved = [key for key in tables["val"].keys if key not in own]
    kept = []
    for i, spec in enumerate(map(Spec.parse, specs)):
        prefix = f"{whole.domains[i]}/" if len(specs) > 1 else ""
        keys = [key.removeprefix(prefix) for key in carved if key.startswith(prefix)]
        if keys:
            path = folder / f"val_list-{i}.txt"
            if distributed.rank() == 0 and not path.exists():
                files.write_text(path, "".join(f"{key}\n" for key in keys))
            spec = replace(spec, options=spec.options | {"val_list": str(path.absolute())})
        kept.append(str(spec))
    distributed.barrier()
    return kept
