"""Datasets and models of the Hugging Face hub, by its own clients, from a miniature of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import datasets
import pytest
from helpers import hub
from helpers.caches import write_cache
from helpers.datasets import encode, pixels
from helpers.models import CLASSES, write_run
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

import fgkd

ROOT = Path(__file__).parents[2]
COUNTS = {"train": 6, "validation": 2, "test": 3}
OPEN = """
import json, sys
from hashlib import sha256
from fgkd import download
from fgkd.data import open_dataset
from fgkd.errors import FgkdError
from stages.remedies import remedy

download.FIRST_PAUSE_S = 0.01
found = []
for name in sys.argv[1:]:
    try:
        data = open_dataset(name)
    except FgkdError as error:
        facts = {key: str(value) for key, value in vars(error).items()}
        found.append([type(error).__name__, facts, remedy(error)])
    else:
        found.append({split: [list(samples.keys), samples.labels.tolist(),
            [sha256(samples.read(row)).hexdigest() for row in range(len(samples))]]
            for split, samples in data.splits.items()})
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """birds: files in class folders; table: parquet files of the same; teacher: a model."""
    root = tmp_path_factory.mktemp("repositories")
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=CLASSES))
    (root / "datasets/me/table/data").mkdir(parents=True)
    for number, (split, count) in enumerate(COUNTS.items()):
        rows: dict[str, list[Any]] = {"image": [], "label": []}
        for label, name in enumerate(CLASSES):
            for i in range(count):
                content = encode(pixels(10 * number + i, label), "PNG")
                file = root / "datasets/me/birds" / split / name / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
                rows["image"].append({"bytes": content, "path": file.name})
                rows["label"].append(label)
        part = datasets.Dataset.from_dict(rows, features=features)
        part.to_parquet(root / f"datasets/me/table/data/{split}-00000-of-00001.parquet")
    write_run(root / "run", "folder:none", "convnext_atto")
    (root / "models/me").mkdir(parents=True)
    (root / "run" / "model").rename(root / "models/me/teacher")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8, "image_size": 32}
    config = ViTConfig(**sizes, num_attention_heads=2, id2label={0: "red", 1: "blue"})
    ViTForImageClassification(config).save_pretrained(root / "models/me/vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(root / "models/me/vit")
    return root


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """The environment of a client with an empty cache of its own."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return kept | {"HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(ROOT)}


def ask(script: str, *names: str, env: dict[str, str]) -> Any:
    """What a script prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", script, *names], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def busy_at_first(*endings: str) -> tuple[set[str], Callable[[str, str], int]]:
    """What a hub answers that is busy when it is first asked for a file of these endings.

    With the files that it was busy for; what is private, it refuses.
    """
    failed = set[str]()

    def answer(method: str, path: str) -> int:
        is_first = method == "GET" and path.endswith(endings) and not failed
        failed.update([path] * is_first)
        return 503 if is_first else 401 if "private" in path else 0

    return failed, answer


def test_datasets_by_their_name(repositories: Path, home: dict[str, str]) -> None:
    """Files and labels of either form, at a hub that is busy at first; then without a network."""
    failed, busy_once = busy_at_first(".parquet", ".png")
    names = ("hf:me/table", "hf:me/birds")
    with hub.serve(repositories, busy_once) as (url, asked):
        found = ask(OPEN, *names, env=home | {"HF_ENDPOINT": url})
    assert failed
    assert any(line.startswith("GET /datasets/me/birds/resolve/") for line in asked)
    for splits in found:
        for hub_split, split in (("train", "train"), ("validation", "val"), ("test", "test")):
            keys, labels, hashes = splits[split]
            folder = repositories / "datasets/me/birds" / hub_split
            expected = [
                (label, sha256(file.read_bytes()).hexdigest())
                for label, name in enumerate(CLASSES)
                for file in (folder / name).iterdir()
            ]
            assert sorted(zip(labels, hashes, strict=True)) == sorted(expected)
            assert len(set(keys)) == len(expected)
            assert all(key.startswith(f"{hub_split}/") for key in keys)
    offline = home | {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "1"}
    assert ask(OPEN, *names, env=offline) == found


def test_datasets_that_cannot_be_fetched(repositories: Path, home: dict[str, str]) -> None:
    refused = {"/datasets/me/private/": 401, "/datasets/me/gated/": 403}

    def refuse(method: str, path: str) -> int:
        if method == "GET" and path.endswith(".parquet"):
            return 503
        return next((code for part, code in refused.items() if part in path), 0)

    names = ("private", "gated", "nothing", "table", "table?config=birds", "table?revision=v2")
    with hub.serve(repositories, refuse) as (url, _):
        found = ask(OPEN, *(f"hf:me/{name}" for name in names), env=home | {"HF_ENDPOINT": url})
    (kind, facts, remedy), found[4:5] = found[4], []
    assert kind == "OptionError"
    assert remedy == "--data 'hf:me/table?config=default'"
    assert [kind for kind, *_ in found] == ["DatasetHubError"] * 5
    statuses = [int(facts["status"]) for _, facts, _ in found]
    assert (*statuses[:2], statuses[3]) == (401, 403, 503)
    assert {statuses[2], statuses[4]} <= {0, 404}  # some versions of the client do not tell
    assert ["hf auth login" in remedy for *_, remedy in found] == [True, True, True, False, True]
    for name, (_, facts, remedy) in zip(("private", "gated", "nothing", "table"), found, strict=0):
        assert facts["path"] == f"me/{name}"
        assert f"{url}/datasets/me/{name}" in remedy
    offline = home | {"HF_HUB_OFFLINE": "1"}
    ((kind, facts, remedy),) = ask(OPEN, "hf:me/private", env=offline)
    assert (kind, facts["offline"]) == ("DatasetHubError", "True")
    assert remedy.startswith("unset HF_HUB_OFFLINE")


def test_caches_by_their_url(repositories: Path, home: dict[str, str], tmp_path: Path) -> None:
    """As fsspec opens hf://, from a hub that is busy at first; refused ones are asked for once."""
    script = """
import json
import fgkd
from fgkd import download, errors
from stages.remedies import remedy
download.FIRST_PAUSE_S = 0.01
cache = fgkd.open_cache("hf://datasets/me/cache")
found = [cache.targets(range(len(cache.samples["train"])), view).tolist() for view in range(2)]
try:
    fgkd.open_cache("hf://datasets/me/private")
except errors.DownloadError as error:
    print(json.dumps([found, error.is_final, remedy(error)]))
"""
    cache = write_cache(tmp_path / "datasets/me/cache", views=2)
    failed, busy_once = busy_at_first(".h5")
    with hub.serve(tmp_path, busy_once) as (url, asked):
        found, final, remedy = ask(script, env=home | {"HF_ENDPOINT": url})
    assert failed
    reader = fgkd.open_cache(cache)
    rows = range(len(reader.samples["train"]))
    assert found == [reader.targets(rows, view).tolist() for view in range(2)]
    assert final
    assert len([line for line in asked if "private" in line]) <= 2  # some clients ask twice
    assert "hf auth login" in remedy
    assert "https://huggingface.co/datasets/me/private" in remedy


def test_models_by_their_name(repositories: Path, home: dict[str, str]) -> None:
    """Of the file's weights, from a hub that is busy at first; refused ones say which they are."""
    script = """
import json
import torch
import fgkd
from fgkd import download, errors
download.FIRST_PAUSE_S = 0.01
teacher = fgkd.load_classifier("hf-hub:me/teacher")
vit = fgkd.load_classifier("transformers:me/vit")
try:
    fgkd.load_classifier("hf-hub:me/vit")
except errors.OtherLibrary as error:
    suggestion = error.suggestion
local = fgkd.load_classifier(f"local-dir:{FOLDER}")
try:
    fgkd.load_classifier("hf-hub:me/private")
except errors.HubError as error:
    status = error.status
images = torch.arange(2 * 32 * 32 * 3).remainder(256).to(torch.uint8).reshape(2, 32, 32, 3)
same = teacher.logits(images).equal(local.logits(images))
print(json.dumps([same, teacher.classes, status, vit.classes, suggestion]))
""".replace("{FOLDER}", str(repositories / "models/me/teacher"))
    failed, busy_once = busy_at_first("safetensors")
    with hub.serve(repositories, busy_once) as (url, _):
        found = ask(script, env=home | {"HF_ENDPOINT": url})
    assert failed
    assert found == [True, CLASSES, 401, ["red", "blue"], "transformers:me/vit"]
