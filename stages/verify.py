"""`inspect --verify`: shards against hashes, pixels against digests, teacher against cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fgkd import comparison, files, models, rng
from fgkd.cache.encodings import Arrays, Codec
from fgkd.cache.identity import Identity
from fgkd.cache.reader import Reader
from fgkd.config import InspectConfig, args_file
from fgkd.data import Dataset, Samples, open_dataset, with_boxes
from fgkd.distillation.teachers import Teachers
from fgkd.errors import FgkdError
from fgkd.evaluation import inference
from fgkd.loading.workers import render
from fgkd.views.rendering import clean_renderer
from fgkd.views.view_set import ViewSet

from . import session

VIEWS_CHECKED = 4


def verify(folder: Path, options: InspectConfig) -> list[str]:
    """What is wrong with a cache, one line each; empty when all holds."""
    reader = Reader(folder)
    problems = []
    rows = [*reader.manifest.shards, *filter(None, [reader.manifest.val])]
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
    specs = options.data or args_file.load_yaml(reader.folder / "args.yaml")["data"]
    dataset = open_dataset(specs, reader.identity.dataset.val_fraction)
    if reader.identity.views.recipe.bbox_crop:
        dataset = with_boxes(dataset)
    reader.check_dataset(dataset)
    return dataset


def compare_sample(reader: Reader, dataset: Dataset, options: InspectConfig) -> list[str]:
    """Render a keyed sample of views again and compare; ask the teacher too where it is given."""
    identity = reader.identity
    samples = dataset.splits["train"]
    draw = rng.stream("verify", options.seed)
    views = view_set(reader, samples)
    rows = sample_rows(views, options.samples, draw)
    chosen = np.sort(draw.permutation(reader.views)[:VIEWS_CHECKED]).tolist()
    teachers = open_teachers(identity, options)
    sizes = teachers.sizes if teachers else [identity.views.img_size]
    renderer = views.renderer(sizes, hashes=reader.samples["train"].hashes)
    problems = []
    for view in chosen:
        partner = views.partners(view)
        request = views.request(rows, [view], check_content=True)
        answer = next(render(renderer, [request], 0))
        slab = reader.slab(view)
        wrong = answer.digests_BV[:, 0] != slab["digests"][rows]
        problems += [
            f"pixels of view {view} of {samples.keys[row]} are not those the teacher saw"
            for row in rows[wrong]
        ]
        if teachers:
            arrays = {name: array[rows] for name, array in slab.items() if name != "digests"}
            both = [rows] if partner is None else [rows, partner[rows]]
            labels_NL = np.stack([samples.labels[of] for of in both], axis=-1)
            problems += compare_teacher(reader.codec, teachers, answer.images, arrays, labels_NL)
    if teachers:
        problems += compare_val(reader, teachers, dataset, options)
    checked = len(rows) * len(chosen)
    session.echo(f"rendered {checked} views again: {len(problems)} differences")
    return problems


def view_set(reader: Reader, samples: Samples) -> ViewSet:
    """The views that a cache holds targets of."""
    identity = reader.identity
    return ViewSet.of(identity.views, samples, identity.shard_size, reader.unreadable_keys)


def sample_rows(views: ViewSet, count: int, draw: rng.Stream) -> np.ndarray:
    """At most `count` training rows that have a target, drawn by a keyed stream."""
    usable = np.flatnonzero(views.has_views)
    return usable[draw.permutation(len(usable))[:count]]


def open_teachers(identity: Identity, options: InspectConfig) -> Teachers | None:
    """The teachers of --teacher, which must be those of the identity."""
    if not options.teacher:
        return None
    device, _ = session.start_device(options.device)
    folders = [session.model_folder(spec) for spec in options.teacher]
    known = [models.load(folder) for folder in folders]
    hashes = [files.sha256(folder / "model.safetensors") for folder in folders]
    comparison.refuse(
        "--teacher is not the cache's teacher",
        comparison.differences(
            [one.weights_sha256 for one in identity.teachers], hashes, "weights_sha256"
        ),
        "teacher",
    )
    size = identity.views.img_size
    ensemble = identity.ensemble or "logits"
    teachers = Teachers(known, folders, ensemble, size, device, identity.dtype, 64)
    teachers.to_device()
    return teachers


def compare_teacher(
    codec: Codec,
    teachers: Teachers,
    images: tuple[torch.Tensor, ...],
    arrays: Arrays,
    labels_NL: np.ndarray,
) -> list[str]:
    """Compare stored targets with the teacher's answers now, against its own noise.

    A forward pass moves with its batch, so the floor is the difference between answering all
    images together and one by one; the encoding's own error comes on top.
    """
    together = teachers.logits(images)
    single = [
        teachers.logits(tuple(size[i : i + 1] for size in images)) for i in range(len(together))
    ]
    now, then = answers(codec, codec.encode(together, labels_NL)), answers(codec, arrays)
    if codec.name == "topk":  # what is kept must be of the classes it is said to be of, too
        at = arrays["indices"].astype(np.int64)
        now["logits"] = np.take_along_axis(together, at, -1)
        then["logits"] = then["values"]
        rounding = furthest(now["logits"], now["logits"].astype(np.float16))
    else:
        rounding = furthest(together, now["logits"])
    worst = max(furthest(now[name], then[name]) for name in then)
    return judge("targets", worst, furthest(together, np.concatenate(single)), rounding)


def compare_val(
    reader: Reader, teachers: Teachers, dataset: Dataset, options: InspectConfig
) -> list[str]:
    """Compare stored clean logits of some validation images with the teacher's answers now."""
    stored = reader.val_logits()
    if stored is None or reader.manifest.val is None:
        return []
    samples, bad = dataset.splits["val"], set(reader.manifest.val.unreadable)
    usable = np.array([i for i, key in enumerate(samples.keys) if key not in bad], np.int64)
    rows = usable[rng.stream("verify val", options.seed).permutation(len(usable))]
    rows = rows[: options.samples]

    def ask(batch_size: int) -> np.ndarray:
        answers = []
        for model in teachers.models:
            renderer = clean_renderer(samples.take(rows), model.config, False)
            answers.append(
                inference.evaluate(
                    model, renderer, batch_size=batch_size, workers=0, device=teachers.device
                )[1]
            )
        return teachers.average(answers)

    if not len(rows):
        return []
    now = ask(teachers.max_batch)
    return judge("clean logits of val", furthest(now, stored[rows]), furthest(now, ask(1)), 0.0)


def answers(codec: Codec, arrays: Arrays) -> Arrays:
    """What of a target must be near the teacher's: logits, or what `topk` keeps and its tail."""
    logits = codec.decode(arrays)
    if codec.name != "topk":
        return {"logits": logits}
    return {"values": arrays["values"].astype(np.float32), "log_tail": arrays["log_tail"]}


def furthest(a: np.ndarray, b: np.ndarray) -> float:
    """The largest absolute difference; inf where one is not finite."""
    difference = np.abs(a.astype(np.float64) - b)
    return float(np.where(np.isfinite(difference), difference, np.inf).max(initial=0.0))


def judge(what: str, worst: float, noise: float, rounding: float) -> list[str]:
    """A problem, if stored values differ by more than noise and rounding explain."""
    session.echo(
        f"stored {what} differ by {worst:.1e} at most "
        f"(teacher's batch noise {noise:.1e}, encoding {rounding:.1e})"
    )
    if worst > 4 * noise + 2 * rounding + 1e-5:
        return [f"stored {what} differ from the teacher's by {worst:.3g}"]
    return []
