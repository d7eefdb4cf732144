"""Verification of a cache: its shards, and a sample of its views and targets made again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from fgkd import comparison, rng
from fgkd.cache import encodings
from fgkd.cache.encodings import Arrays, Codec
from fgkd.cache.reader import Reader
from fgkd.data import Dataset, Samples
from fgkd.distillation.teachers import Teachers
from fgkd.errors import FgkdError, TargetMismatch
from fgkd.evaluation import inference
from fgkd.loading.cached_data import cached_data
from fgkd.loading.cached_views import pixel_mismatch
from fgkd.loading.workers import render
from fgkd.models import Classifier
from fgkd.views.clean import clean_renderer
from fgkd.views.view_set import ViewSet

VIEWS_CHECKED = 4


@dataclass(frozen=True)
class Verification:
    """The result of `verify`. problems: what is wrong, if anything. lines: what was done."""

    problems: list[FgkdError]
    lines: list[str]


def verify(
    reader: Reader,
    *,
    data: str | Sequence[str] = (),
    teachers: Sequence[Classifier] = (),
    device: torch.device | None = None,
    samples: int = 64,
    seed: int = 0,
) -> Verification:
    """Check every shard's sha256, and a keyed sample of views against what a fresh rendering gives.

    data: where the images are; see `cached_data`. teachers: the cache's own, to compare stored
    targets with what they say now. samples: how many images of the sample.
    """
    verifier = _Verifier(reader, teachers, device or torch.device("cpu"), samples, seed)
    verifier.check_shards()
    if not verifier.problems:
        try:
            verifier.compare_sample(cached_data(reader, data)[1])
        except FgkdError as error:
            verifier.problems.append(error)
    return Verification(verifier.problems, verifier.lines)


class _Verifier:
    def __init__(
        self,
        reader: Reader,
        teachers: Sequence[Classifier],
        device: torch.device,
        num_samples: int,
        seed: int,
    ) -> None:
        self.reader, self.num_samples, self.seed = reader, num_samples, seed
        self.problems: list[FgkdError] = []
        self.lines: list[str] = []
        self.teachers = _of_this_cache(reader, teachers, device) if teachers else None

    def check_shards(self) -> None:
        """Every shard's sha256, identity, samples and shapes."""
        manifest = self.reader.manifest
        rows = [*manifest.shards, *filter(None, [manifest.val])]
        for row in rows:
            try:
                self.reader.check(row)
            except FgkdError as error:
                self.problems.append(error)
        self.lines.append(f"checked the sha256 of {len(rows)} shards")

    def compare_sample(self, dataset: Dataset) -> None:
        """Render a keyed sample of views again; compare pixels, and with teachers the targets."""
        reader, samples, before = self.reader, dataset.splits["train"], len(self.problems)
        views = view_set(reader, samples)
        draw = rng.stream("verify", self.seed)
        rows = sample_rows(views, self.num_samples, draw)
        chosen = np.sort(draw.permutation(reader.views)[:VIEWS_CHECKED]).tolist()
        sizes = self.teachers.sizes if self.teachers else [reader.identity.views.img_size]
        renderer = views.renderer(sizes, hashes=reader.samples["train"].hashes)
        for view in chosen:
            request = views.request(rows, [view], check_content=True)
            answer = next(render(renderer, [request], 0))
            held = reader.arrays_of_view(view)
            wrong = answer.digests_BV[:, 0] != held["digests"][rows]
            self.problems += [pixel_mismatch(reader, samples.keys[r], view) for r in rows[wrong]]
            if self.teachers:
                arrays = {name: array[rows] for name, array in held.items() if name != "digests"}
                partner = views.partners(view)
                both = [rows] if partner is None else [rows, partner[rows]]
                labels_NL = np.stack([samples.labels[of] for of in both], axis=-1)
                self._compare_targets(self.teachers, answer.images, arrays, labels_NL)
        if self.teachers:
            self._compare_val(self.teachers, dataset)
        found = len(self.problems) - before
        self.lines.append(f"rendered {len(rows) * len(chosen)} views again: {found} differences")

    def _compare_targets(
        self,
        teachers: Teachers,
        images: tuple[torch.Tensor, ...],
        arrays: Arrays,
        labels_NL: np.ndarray,
    ) -> None:
        """Compare stored targets with the teachers' logits now.

        A forward pass depends a little on its batch, so the tolerance is the difference between
        all images in one batch and one by one, or in bfloat16, where compiled kernels round less
        often, that to float32; the encoding's own error comes on top.
        """
        codec = self.reader.codec
        together = teachers.logits(images)
        single = [
            teachers.logits(tuple(size[i : i + 1] for size in images)) for i in range(len(together))
        ]
        if codec.name == "topk8":
            worst, rounding = _furthest_gap(codec, together, arrays), 0.5 / encodings.CELLS
        else:
            now, then = _kept(codec, codec.encode(together, labels_NL)), _kept(codec, arrays)
            if codec.name == "topk":  # the kept values must belong to their classes
                at = arrays["indices"].astype(np.int64)
                now["logits"] = np.take_along_axis(together, at, -1)
                then["logits"] = then["values"]
                rounding = furthest(now["logits"], now["logits"].astype(np.float16))
            else:
                rounding = furthest(together, now["logits"])
            worst = max(furthest(now[name], then[name]) for name in then)
        noise = furthest(together, np.concatenate(single))
        if teachers.amp_dtype:
            exact = replace(teachers, dtype="float32").logits(images)
            noise = max(noise, furthest(together, exact))
        self._judge("targets", worst, noise, rounding)

    def _compare_val(self, teachers: Teachers, dataset: Dataset) -> None:
        """Compare stored clean logits of some validation images with the teachers' logits now."""
        stored, row = self.reader.val_logits(), self.reader.manifest.val
        if stored is None or row is None:
            return
        samples, unreadable = dataset.splits["val"], set(row.unreadable)
        usable = np.array([i for i, k in enumerate(samples.keys) if k not in unreadable], np.int64)
        rows = usable[rng.stream("verify val", self.seed).permutation(len(usable))]
        rows = rows[: self.num_samples]
        if not len(rows):
            return

        def logits(batch_size: int, amp_dtype: torch.dtype | None) -> np.ndarray:
            each = []
            for model in teachers.models:
                renderer = clean_renderer(samples.take(rows), model.eval_transform, False)
                device = teachers.device
                _, logits_NK, _ = inference.evaluate(
                    *(model, renderer),
                    batch_size=batch_size,
                    workers=0,
                    device=device,
                    amp_dtype=amp_dtype,
                )
                each.append(logits_NK)
            return teachers.average(each)

        now = logits(teachers.max_batch, teachers.amp_dtype)
        noise = furthest(now, logits(1, teachers.amp_dtype))
        if teachers.amp_dtype:
            noise = max(noise, furthest(now, logits(teachers.max_batch, None)))
        self._judge("clean logits of val", furthest(now, stored[rows]), noise, 0.0)

    def _judge(self, what: str, worst: float, noise: float, rounding: float) -> None:
        """Note a problem if stored values differ by more than noise and rounding explain."""
        self.lines.append(
            f"stored {what} differ by {worst:.1e} at most "
            f"(teacher's batch noise {noise:.1e}, encoding {rounding:.1e})"
        )
        if not worst <= 4 * noise + 2 * rounding + 1e-5:
            message = f"stored {what} differ from the teacher's by {worst:.3g}"
            self.problems.append(TargetMismatch(message, difference=worst))


def _of_this_cache(
    reader: Reader, teachers: Sequence[Classifier], device: torch.device
) -> Teachers:
    """The teachers on the device. Raises: DataMismatch unless they are the cache's own."""
    identity = reader.identity
    hashes = [model.weights_sha256 for model in teachers]
    stored = [one.weights_sha256 for one in identity.teachers]
    differences = comparison.differences(stored, hashes, "weights_sha256")
    comparison.refuse("the teacher given is not the cache's teacher", differences, "teacher")
    ensemble, size = identity.ensemble or "logits", identity.views.img_size
    names = [model.architecture for model in teachers]
    found = Teachers(teachers, names, ensemble, size, device, identity.dtype, 64)
    found.to_device()
    return found


def view_set(reader: Reader, samples: Samples) -> ViewSet:
    """The views that a cache holds targets of."""
    identity = reader.identity
    unreadable = reader.unreadable_keys
    return ViewSet.of(identity.views, samples, identity.shard_size, unreadable, identity.added)


def sample_rows(views: ViewSet, count: int, draw: rng.Stream) -> np.ndarray:
    """At most `count` training rows that have a target, drawn by a keyed stream."""
    usable = np.flatnonzero(views.has_views)
    return usable[draw.permutation(len(usable))[:count]]


def _kept(codec: Codec, arrays: Arrays) -> Arrays:
    """What is compared of a target: its logits, or the values and the tail that `topk` keeps."""
    logits = codec.decode(arrays)
    if codec.name != "topk":
        return {"logits": logits}
    return {"values": arrays["values"].astype(np.float32), "log_tail": arrays["log_tail"]}


def _furthest_gap(codec: Codec, logits_NC: np.ndarray, arrays: Arrays) -> float:
    """How far the gaps that `topk8` stores are from those of logits, in log(1 + gap).

    Or, if that is more, how far the K-th largest kept logit is from the K-th largest of all.
    """
    codec.decode(arrays)  # refuses classes that do not exist
    kept_NK = arrays["indices"].astype(np.int64)
    wide_NC = logits_NC.astype(np.float64)
    each_NT = encodings.tail_logits(codec, encodings.log_tails(codec, wide_NC, kept_NK))
    values_NK = np.take_along_axis(wide_NC, kept_NK, -1)
    now = values_NK[..., :1] - np.concatenate([values_NK[..., 1:], each_NT], axis=-1)
    then = encodings.gaps_of(np.concatenate([arrays["gaps"], arrays["tail_gaps"]], axis=-1))
    now = np.minimum(now, encodings.gaps_of(np.full(1, 255)))  # all that a code can say
    gaps = furthest(np.sign(now) * np.log1p(np.abs(now)), np.log1p(then))
    kth, kth_kept = (np.sort(x, axis=-1)[..., -codec.top_k] for x in (wide_NC, values_NK))
    return max(gaps, furthest(kth, kth_kept))


def furthest(a: np.ndarray, b: np.ndarray) -> float:
    """The largest absolute difference; inf where one is not finite."""
    difference = np.abs(a.astype(np.float64) - b)
    return float(np.where(np.isfinite(difference), difference, np.inf).max(initial=0.0))
