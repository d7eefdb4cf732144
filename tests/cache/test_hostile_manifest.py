"""Manifests from strangers, which vouch for anything: an explained error or an answer."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from helpers.hostile import BACKENDS, JSON, explained, frugal, valid
from hypothesis import given, settings
from hypothesis import strategies as st

from fgkd import files
from fgkd.cache.reader import Reader
from fgkd.cache.summary import CacheSummary
from fgkd.errors import FgkdError
from fgkd.files import fingerprint


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every part of a JSON value; of a long list, its first two."""
    inner: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))[:2]
    return [path] * bool(path) + [p for key, part in inner for p in places(part, (*path, key))]


@functools.cache
def manifest_of(name: str) -> str:
    return valid(name)["manifest.json"].decode()


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_manifests_that_vouch_for_anything(name: str, data: st.DataObject) -> None:
    """One part replaced by any JSON, the identity's hash made to fit: an error or an answer."""
    held = json.loads(manifest_of(name))
    *parents, last = data.draw(st.sampled_from(places(held)))
    owner = functools.reduce(lambda part, key: part[key], parents, held)
    owner[last] = data.draw(JSON)
    if isinstance(held.get("identity"), dict) and last != "identity_sha256":
        held["identity_sha256"] = fingerprint(held["identity"])
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        for path, content in valid(name).items():
            (cache / path).parent.mkdir(exist_ok=True)
            (cache / path).write_bytes(content)
        files.write_json(cache / "manifest.json", held)
        with frugal():
            try:
                use(cache)
            except FgkdError as error:
                explained(error, "")


def use(cache: Path) -> None:
    """Everything that is done with a cache before a model sees it."""
    reader = Reader(cache)
    try:
        CacheSummary.of(reader).lines()
        for view in range(min(reader.views, 3)):
            reader.arrays_of_view(view)
        reader.val_logits()
        for row in reader.manifest.shards:
            reader.check(row)
        if reader.holds_images:
            for samples in reader.dataset().splits.values():
                samples.read(0)
    finally:
        reader.close()
