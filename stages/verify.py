"""`inspect --verify`: shards against hashes, pixels against digests, teacher against cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from fgkd import fsio, models, plan, rng, rundir, views
from fgkd.cache import manifest
from fgkd.cache.reader import Reader
from fgkd.config import InspectConfig
from fgkd.data import Dataset, open_dataset
from fgkd.errors import FgkdError
from fgkd.fetch import Fetcher, KeyedView, Request, fetch

from . import session
from .capture import Teachers

VIEWS_CHECKED = 4


def verify(folder: Path, options: InspectConfig) -> list[str]:
    """What is wrong with a cache, one line each; empty when all holds."""
    reader = Reader(folder)
    problems = []
    rows = [*reader.manifest["shards"], *filter(None, [reader.manifest["val"]])]
    for row in rows:
        try:
            reader.check(row)
        except FgkdError as error:
            problems.append(str(error).replace("\n", "  "))
    session.echo(f"checked the sha256 of {len(rows)} shards")
    if problems:
        return problems
    try:
        dataset = open_images(reader, options)
        return compare_sample(reader, dataset, options)
    except FgkdError as error:
        return [str(error).replace("\n", "  ")]


def open_images(reader: Reader, options: InspectConfig) -> Dataset:
    """The images the cache was made of, from its shards or from where the data lies."""
    if reader.holds_images and not options.data:
        return reader.dataset()
    specs = options.data or rundir.load_yaml(reader.folder / "args.yaml")["data"]
    dataset = open_dataset(specs, reader.identity["dataset"]["val_fraction"])
    manifest.check_dataset(reader.identity, dataset, str(reader.folder))
    return dataset


def compare_sample(reader: Reader, dataset: Dataset, options: InspectConfig) -> list[str]:
    """Render a keyed sample of views again and compare; ask the teacher too where it is given."""
    identity = reader.identity
    described = identity["views"]
    samples = dataset.splits["train"]
    recipe = views.ViewRecipe.from_dict(described["recipe"])
    draw = rng.stream("verify", options.seed)
    usable = np.array([i for i, key in enumerate(samples.keys) if key not in reader.bad_keys])
    rows = usable[draw.permutation(len(usable))[: options.samples]]
    chosen = np.sort(draw.permutation(reader.views)[:VIEWS_CHECKED]).tolist()
    teachers = open_teachers(identity, options)
    sizes = teachers.sizes if teachers else [described["img_size"]]
    keyed = KeyedView(samples, recipe, described["seed"])
    fetcher = Fetcher(keyed, sizes, identity["train"]["hashes"])
    blocks = plan.blocks(described["seed"], len(samples), identity["shard_size"])
    problems = []
    for view in chosen:
        partner = plan.partners(described["seed"], view, blocks) if recipe.mixes else None
        partners = None if partner is None else partner[rows][:, None]
        request = Request(rows, [view], partners, check_content=True)
        answer = next(fetch(fetcher, [request], 0))
        slab = reader.slab(view)
        wrong = answer.digests_BV[:, 0] != slab["digests"][rows]
        problems += [
            f"pixels of view {view} of {samples.keys[row]} are not those the teacher saw"
            for row in rows[wrong]
        ]
        if teachers:
            arrays = {name: array[rows] for name, array in slab.items() if name != "digests"}
            problems += compare_teacher(reader, teachers, answer.images, arrays, view)
    checked = len(rows) * len(chosen)
    session.echo(f"rendered {checked} views again: {len(problems)} differences")
    return problems


def open_teachers(identity: dict[str, Any], options: InspectConfig) -> Teachers | None:
    """The teachers of --teacher, which must be those of the identity."""
    if not options.teacher:
        return None
    device, _ = session.start_device(options.device)
    paths = [Path(spec) for spec in options.teacher]
    folders = [p if (p / "config.json").exists() else p / "model" for p in paths]
    known = [models.load(folder) for folder in folders]
    hashes = [fsio.sha256(folder / "model.safetensors") for folder in folders]
    manifest.refuse(
        "--teacher is not the cache's teacher",
        manifest.explain_mismatch(
            [one["weights_sha256"] for one in identity["teachers"]], hashes, "weights_sha256"
        ),
        "give the run folders the cache was made with, in the same order",
    )
    size = identity["views"]["img_size"]
    ensemble = identity["ensemble"] or "logits"
    teachers = Teachers(known, paths, ensemble, size, device, identity["dtype"], 64)
    teachers.ready()
    return teachers


def compare_teacher(
    reader: Reader,
    teachers: Teachers,
    images: tuple[torch.Tensor, ...],
    arrays: dict[str, np.ndarray],
    view: int,
) -> list[str]:
    """Compare stored targets with the teacher's answers now, against its own noise.

    A forward pass moves with its batch, so the floor is the difference between answering all
    images together and one by one; the encoding's own error comes on top.
    """
    together = teachers.ask(images)
    single = [teachers.ask(tuple(size[i : i + 1] for size in images)) for i in range(len(together))]
    noise = float(np.abs(together - np.concatenate(single)).max())
    codec = reader.codec
    labels = np.full((len(together), codec.num_labels), -1)
    if codec.name == "topk":  # which classes are kept is part of the target
        at = arrays["indices"].astype(np.int64)
        now = np.take_along_axis(together, at, -1)
        then = arrays["values"].astype(np.float32)
        rounding = float(np.abs(now - now.astype(np.float16)).max())
    else:
        now, then = together, codec.decode(arrays)
        rounding = float(np.abs(now - codec.decode(codec.encode(now, labels))).max())
    worst = float(np.abs(now - then).max())
    session.echo(
        f"view {view}: stored logits differ by {worst:.1e} at most "
        f"(teacher's batch noise {noise:.1e}, encoding {rounding:.1e})"
    )
    if worst > 4 * noise + 2 * rounding + 1e-6:
        return [f"view {view}: stored logits differ from the teacher's by {worst:.3g}"]
    return []
