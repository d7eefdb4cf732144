"""The gallery page of a cache: views as a student sees them, with the teacher's predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fgkd import rng
from fgkd.cache.encodings import Codec
from fgkd.cache.reader import Reader
from fgkd.cache.stats import log_softmax
from fgkd.cache.summary import CacheSummary, Suspect
from fgkd.data import Samples
from fgkd.distillation.verify import sample_rows, view_set
from fgkd.loading.cached_data import cached_data
from fgkd.loading.workers import render
from fgkd.report import page
from fgkd.report.page import Card, Group, Line, Section, Table, number, text
from fgkd.report.thumbnails import Thumbs
from fgkd.views import augmentations
from fgkd.views.rendering import KeyedView
from fgkd.views.transforms import ViewParams

NUM_IMAGES, NUM_VIEWS, TOP = 8, 8, 5


def write(
    folder: Path,
    caches: Sequence[tuple[Reader, CacheSummary, list[str]]],
    *,
    data: str | Sequence[str] = (),
    seed: int = 0,
) -> Path:
    """Write the page of some caches, each with its summary, and lines to show above its views."""
    thumbs, sections = Thumbs(), list[Section]()
    for reader, described, lines in caches:
        samples = cached_data(reader, data)[1].splits["train"]
        prefix = f"{reader.name}: " if len(caches) > 1 else ""
        mark = f"-{len(sections)}"
        views = Section(f"views{mark}", f"{prefix}Views")
        labels = Section(f"labels{mark}", f"{prefix}Doubtful labels")
        sections += [
            with_suspects(labels, described.suspects, samples, thumbs),
            with_views(views, reader, samples, seed, thumbs),
            Section(f"cache{mark}", f"{prefix}Cache", notes=[as_note(x) for x in lines]),
        ]
        reader.close()
    lead = "Training views and the teacher's stored answers: what a student learns from."
    return page.write(folder, page.render("Cache gallery", lead, sections, page.made_now()))


def as_note(line: str) -> str:
    """A line of the console's aligned columns as a sentence: `term: text`."""
    term, _, said = line.strip().partition("  ")
    return f"{term}: {said.strip()}" if said else term


def with_views(
    section: Section, reader: Reader, samples: Samples, seed: int, thumbs: Thumbs
) -> Section:
    """A section with a random choice of images in some views, rendered as in training."""
    draw = rng.stream("gallery", seed)
    cached = view_set(reader, samples)
    rows = sample_rows(cached, NUM_IMAGES, draw)
    views = np.sort(draw.permutation(reader.views)[:NUM_VIEWS]).tolist()
    renderer = cached.renderer(hashes=reader.samples["train"].hashes)
    request = cached.request(rows, views, check_content=True)
    answer = next(render(renderer, [request], 0))
    temperature = shown_temperature(reader.codec)
    cards: list[list[Card]] = [[original(samples, row, reader, thumbs)] for row in rows.tolist()]
    sizes = [size_of(cached.view, row) for row in rows.tolist()]
    same = 0
    for j, view in enumerate(views):
        held = reader.arrays_of_view(view)
        same += int((answer.digests_BV[:, j] == held["digests"][rows]).sum())
        arrays = {name: array[rows] for name, array in held.items() if name != "digests"}
        log_p_BK = log_softmax(reader.codec.decode(arrays, temperature) / temperature)
        for i, row in enumerate(rows.tolist()):
            lam = float(answer.lams_BV[i, j])  # 1: not mixed
            partner = row if request.partners is None or lam == 1 else int(request.partners[i, j])
            lines = mixed(reader, samples, row, partner, lam) if partner != row else []
            labels = {int(samples.labels[row]), int(samples.labels[partner])}
            lines += top_answers(reader, np.exp(log_p_BK[i]), labels)
            picture = thumbs.of_pixels(answer.images[0][i, j].numpy(), f"view {view}")
            params = cached.view.params(row, view, sizes[i])
            details = describe(params, cached.size, lam, answer.boxes_BV4[i, j])
            cards[i].append(Card(f"view {view}", picture, lines, details))
    said = (
        f"{len(rows)} images in {len(views)} of {reader.views} views, with the teacher's first "
        f"predictions (softmax at T = {temperature:g}; ✓: the label). The pixels of {same} of "
        f"{len(rows) * len(views)} views are those the teacher saw, by their digests. "
        "How a view was made is shown when the mouse rests on it, and when it is enlarged."
    )
    keys = [samples.keys[row] for row in rows.tolist()]
    groups = [Group(key, "", row, in_row=True) for key, row in zip(keys, cards, strict=True)]
    return dataclasses.replace(section, text=said, groups=groups)


def shown_temperature(codec: Codec) -> float:
    """1 where the encoding gives it, else the lowest it is exact at."""
    return 1.0 if not codec.truncated or 1.0 in codec.temperatures else codec.temperatures[0]


def original(samples: Samples, row: int, reader: Reader, thumbs: Thumbs) -> Card:
    """The image file itself, with its label."""
    picture = thumbs.of_file(samples.read(row), samples.keys[row])
    return Card("the image", picture, [Line("label", label_of(samples, row, reader))])


def label_of(samples: Samples, row: int, reader: Reader) -> str:
    """The name of an image's class."""
    label = int(samples.labels[row])
    return reader.identity.dataset.classes[label] if label >= 0 else "none"


def mixed(reader: Reader, samples: Samples, row: int, partner: int, lam: float) -> list[Line]:
    """What a mixed view is made of: both labels with their shares."""
    shares = ((row, lam), (partner, 1 - lam))
    parts = [f"{100 * share:.0f}\u00a0% {label_of(samples, r, reader)}" for r, share in shares]
    return [Line("mixed:", " + ".join(parts))]


def size_of(view: KeyedView, row: int) -> tuple[int, int]:
    """(width, height) of what the views of an image are cropped from."""
    image_HWC = view.decode(view.samples.read(row), view.samples.keys[row])
    return image_HWC.shape[1], image_HWC.shape[0]


def describe(params: ViewParams, size: int, lam: float, pasted_4: np.ndarray) -> str:
    """How a view was made, step by step."""
    x, y, width, height = params.box
    steps = [f"crop of {width} x {height} px at ({x}, {y}), resized to {size} px"]
    steps += ["mirrored"] if params.flip else []
    steps += [f"{name} {value:.3g}" if value else name for name, value in params.ops]
    if params.erase is not None:
        left, top, wide, high = augmentations.erase_box(params.erase, size)
        steps.append(f"erased {wide} x {high} px at ({left}, {top})")
    if pasted_4[2:].any():
        left, top, wide, high = pasted_4.tolist()
        steps.append(f"cutmix: {wide} x {high} px at ({left}, {top}) of the other image")
    elif lam < 1:
        steps.append(f"mixup: {100 * lam:.0f} % of this image")
    return "; ".join(steps)


def top_answers(reader: Reader, p_K: np.ndarray, labels: set[int]) -> list[Line]:
    """The classes of highest probability; of truncated targets, those known for certain."""
    classes, codec = reader.identity.dataset.classes, reader.codec
    most = min(TOP, codec.top_k if codec.truncated else codec.num_classes)
    best = np.argsort(-p_K, kind="stable")[:most].tolist()
    return [Line("", classes[k], "right" if k in labels else "", float(p_K[k])) for k in best]


def with_suspects(
    section: Section, suspects: Sequence[Suspect], samples: Samples, thumbs: Thumbs
) -> Section:
    """A section with the images whose label the teacher contradicts in every view."""
    if not suspects:
        return dataclasses.replace(section, text="The teacher contradicts no label in every view.")
    row_of = {key: row for row, key in enumerate(samples.keys)}
    cards, rows = [], []
    for one in suspects:
        key, share = one.key, one.confidence
        picture = thumbs.of_file(samples.read(row_of[key]), key) if key in row_of else None
        lines = [Line("label", one.label), Line("teacher", one.answer, "", share)]
        cards.append(Card(key, picture, lines))
        said = (text(key), text(one.label), text(one.answer))
        rows.append([*said, number(100 * share, "{:.1f}")])
    columns = ["image", "label", "teacher's answer", "confidence %"]
    return dataclasses.replace(
        section,
        text="Images whose label the teacher contradicts in every view. Confidence: its lowest.",
        tables=[Table("The most doubtful labels.", columns, rows)],
        groups=[Group("The images", "", cards)],
    )
