"""Caches of format version 2, whose manifest holds the samples too; they are read, never written.

Version 3 has the samples in samples.h5, and `views.short_side` where version 2 had
`views.image_store.short_side`. Shards differ in nothing but the version in their header.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fgkd import files
from fgkd.cache.identity import Identity
from fgkd.cache.samples import HASH_TYPE, SampleTable, SampleTables
from fgkd.data.keys import Keys

VERSION = 2
COLUMNS = {"keys": [str], "labels": [int], "domains": [int], "sizes": [int], "hashes": [str]}


def identity_of(value: Any) -> Identity:
    """The identity of version 2's JSON. Raises: ValueError if it is none."""
    if not files.matches(value, {"views": {}, "teachers": [{}]}):
        raise ValueError("a field is missing or of another type")
    views = value["views"]
    store = views.get("image_store")
    if store is not None and not files.matches(store, {"short_side": int}):
        raise ValueError(f"views.image_store is {store!r}")
    known = {name: part for name, part in value.items() if name not in ("train", "val")}
    return Identity.from_json(
        known
        | {
            "teachers": [{"mean": [], "std": []} | one for one in value["teachers"]],
            "views": {
                **{name: views.get(name) for name in ("recipe", "seed", "img_size")},
                "short_side": store["short_side"] if store else None,
            },
            "samples_sha256": "",
        }
    )


def samples_of(value: Any) -> SampleTables:
    """The sample tables of version 2's identity. Raises: ValueError if they are none."""
    if not files.matches(value, {"train": COLUMNS, "val": COLUMNS}):
        raise ValueError("a column of samples is missing or of another type")
    return {split: _table(value[split]) for split in ("train", "val")}


def _table(column: Any) -> SampleTable:
    boxes = None
    if "boxes" in column:
        if not files.matches(column["boxes"], [[float]]):
            raise ValueError("boxes are not numbers")
        boxes = np.array(column["boxes"], np.float64).reshape(-1, 4)
    try:
        labels, domains, sizes = (
            np.array(column[name], np.int64) for name in ("labels", "domains", "sizes")
        )
    except OverflowError as error:
        raise ValueError(str(error)) from None
    hashes = [one.encode() for one in column["hashes"]]
    if any(len(one) > HASH_TYPE.itemsize for one in hashes):
        raise ValueError("a content hash is too long")
    keys, digests = Keys.of(column["keys"]), np.array(hashes, HASH_TYPE)
    return SampleTable(keys, labels, domains, sizes, digests, boxes)
