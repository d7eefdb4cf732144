"""Datasets made of others: several in one label space, and a validation split carved from train."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from fgkd.data import boxes
from fgkd.data.samples import Dataset, Samples
from fgkd.errors import OptionError
from fgkd.rng import hash64


def split_validation(dataset: Dataset, fraction: float) -> Dataset:
    """The dataset with a `val` split carved from `train`, if it has none: see `split_off`."""
    return split_off(dataset, "val", fraction)


def split_off(dataset: Dataset, split: str, fraction: float) -> Dataset:
    """The dataset with a `val` or `test` split carved from `train`, if it has none, but classes.

    Of every class (label -1 is one, too) the samples whose keys hash lowest go: the share nearest
    to `fraction` (in [0, 1)), at least one, but never the last. So the choice depends on no seed,
    on no order and on no other class. Both splits keep train's order.
    """
    assert 0 <= fraction < 1, fraction
    train = dataset.splits.get("train")
    if fraction == 0 or train is None or split in dataset.splits or not dataset.classes:
        return dataset
    salt = {"val": "validation", "test": "test"}[split]
    held_out = np.zeros(len(train), bool)
    for label in np.unique(train.labels):
        rows = np.flatnonzero(train.labels == label).tolist()
        num_held = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        by_hash = sorted(rows, key=lambda row: hash64(salt, train.keys[row]))
        held_out[by_hash[:num_held]] = True
    if not held_out.any():  # no class has a sample to spare
        return dataset
    splits = {
        "train": train.take(np.flatnonzero(~held_out)),
        split: train.take(np.flatnonzero(held_out)),
    }
    others = {name: samples for name, samples in dataset.splits.items() if name != "train"}
    return replace(dataset, splits=splits | others)


def split_listed(dataset: Dataset, keys: Collection[str]) -> Dataset:
    """The dataset with a `val` split of the training samples with these keys."""
    train = dataset.train
    is_val = np.array([key in keys for key in train.keys], bool)
    parts = {
        "train": train.take(np.flatnonzero(~is_val)),
        "val": train.take(np.flatnonzero(is_val)),
    }
    others = {name: samples for name, samples in dataset.splits.items() if name != "train"}
    return replace(dataset, splits=parts | others)


def union(members: Sequence[Dataset]) -> Dataset:
    """One dataset of several: labels follow one another in the order given, domains are kept apart.

    Keys get the prefix "domain/"; so do all class names if two datasets share one. A val or test
    split holds the datasets that have one (a note says which have not).
    Raises: OptionError if one has no train split.
    """
    domains = _domain_names([member.name for member in members])
    named = dict(zip(domains, members, strict=True))
    classes = [name for member in members for name in member.classes]
    if len(set(classes)) < len(classes):
        classes = [f"{domain}/{name}" for domain in named for name in named[domain].classes]
    notes = [f"{domain}: {note}" for domain in named for note in named[domain].notes]
    splits = {}
    for split in dict.fromkeys(split for member in members for split in member.splits):
        lacking = [domain for domain in named if split not in named[domain].splits]
        if lacking and split == "train":
            names = ", ".join(lacking)
            message = f"{names} has no train split; every dataset of a union must have one"
            alone = (f"{lacking[0]}:PATH",)
            raise OptionError(message, option="data", value=names, suggestion=alone)
        if lacking:
            notes.append(f"split {split} has no images of {', '.join(lacking)}")
        splits[split] = _concatenate(named, split)
    chiral = any(member.chiral for member in members)
    return Dataset("+".join(domains), classes, domains, splits, chiral, notes)


def _domain_names(names: list[str]) -> list[str]:
    """`["folder", "folder"] -> ["folder", "folder-2"]`."""
    seen: Counter[str] = Counter()
    domains = []
    for name in names:
        seen[name] += 1
        domains.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return domains


def _concatenate(named: dict[str, Dataset], split: str) -> Samples:
    """The samples of one split of the datasets (by domain name) that have it."""
    parts, labels, indices = {}, [], []
    offset = 0
    for index, (domain, member) in enumerate(named.items()):
        if split in member.splits:
            part = parts[domain] = member.splits[split]
            labels.append(np.where(part.labels < 0, -1, part.labels + offset))
            indices.append(np.full(len(part), index, np.int64))
        offset += len(member.classes)
    readers = {domain: part.box_reader for domain, part in parts.items()}
    places = [p for part in parts.values() for p in part.places or [None] * len(part)]
    return Samples(
        keys=[f"{domain}/{key}" for domain, part in parts.items() for key in part.keys],
        labels=np.concatenate(labels),
        domains=np.concatenate(indices),
        paths=[path for part in parts.values() for path in part.paths],
        places=places if any(places) else None,
        box_reader=functools.partial(boxes.of_union, readers) if any(readers.values()) else None,
    )
