"""A cache's summary: what it is made of, its size, and how good its teacher is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fgkd import files
from fgkd.cache import stats
from fgkd.cache.identity import Identity
from fgkd.cache.reader import Reader

SUSPECTS_SHOWN = 10


@dataclass(frozen=True)
class Suspect:
    """An image whose label the teacher contradicts in every view, by class names.

    confidence: the teacher's lowest in its answer, from 0 to 1.
    """

    key: str
    label: str
    answer: str
    confidence: float


@dataclass(frozen=True)
class CacheSummary:
    """A cache in figures.

    name: its folder or URL. identity_sha256: as recorded in the manifest. shards, num_bytes: of the
    training views. unreadable: keys of images that were left out. libraries: versions that wrote
    it. teacher: its accuracy and calibration on the views. suspects: doubtful labels, the most
    confident first.
    """

    name: str
    identity: Identity
    identity_sha256: str
    samples: int
    val_samples: int
    views: int
    shards: int
    num_bytes: int
    unreadable: Sequence[str]
    libraries: Mapping[str, str]
    teacher: stats.Summary
    suspects: Sequence[Suspect]

    @staticmethod
    def of(reader: Reader) -> CacheSummary:
        """The summary of an open cache."""
        held, teacher, classes = reader.manifest, reader.summary, reader.classes
        return CacheSummary(
            name=reader.name,
            identity=reader.identity,
            identity_sha256=held.identity_sha256,
            samples=len(reader.samples["train"]),
            val_samples=len(reader.samples["val"]),
            views=reader.views,
            shards=len(held.shards),
            num_bytes=reader.num_bytes,
            unreadable=sorted(reader.unreadable_keys),
            libraries=held.libraries,
            teacher=teacher,
            suspects=[
                Suspect(one.key, classes[one.label], classes[one.answer], one.confidence)
                for one in teacher.suspects
            ],
        )

    def to_json(self) -> dict[str, Any]:
        """As `inspect` writes it: the identity without classes, sizes, the teacher's figures."""
        identity = self.identity.to_json()
        suspects = [vars(one) for one in self.suspects]
        return {
            "cache": self.name,
            "identity_sha256": self.identity_sha256,
            **{name: identity[name] for name in ("format", "encoding", "dtype", "teachers")},
            "ensemble": identity["ensemble"],
            "view_recipe": identity["views"],
            "dataset": {k: v for k, v in identity["dataset"].items() if k != "classes"},
            "num_classes": len(self.identity.dataset.classes),
            "samples": self.samples,
            "val_samples": self.val_samples,
            "views": self.views,
            "shards": self.shards,
            "bytes": self.num_bytes,
            "bad_images": list(self.unreadable),
            "libraries": dict(self.libraries),
            "teacher": self.teacher.to_json() | {"suspects": suspects},
        }

    def lines(self) -> list[str]:
        """The summary as text, with the first suspects."""
        teacher, identity = self.teacher, self.identity
        encoding, views = identity.encoding, identity.views
        per_view = self.num_bytes / max(1, self.samples * self.views)
        temperatures = list(encoding.temperatures)
        topk = f", top {encoding.top_k}, T in {temperatures}" if encoding.top_k else ""
        top1, top5 = teacher.views_top1_pct, teacher.views_top5_pct
        out = [
            f"{self.name}  {self.identity_sha256[:16]}",
            f"  data      {identity.dataset.name}: {len(identity.dataset.classes)} classes, "
            f"{self.samples:,} training images, {self.val_samples:,} validation images",
            f"  targets   {self.views} views, {encoding.name}{topk}, {identity.format}: "
            f"{self.shards} shards, {files.human_bytes(self.num_bytes)} "
            f"({per_view:,.0f} bytes per view)",
            f"  views     {views.img_size} px, seed {views.seed}",
        ]
        if views.short_side:
            out[-1] += f", of images with a shorter side of {views.short_side} px"
        for one in identity.teachers:
            out.append(
                f"  teacher   {one.architecture}, {one.img_size} px, {identity.dtype}, "
                f"weights {one.weights_sha256[:16]}"
            )
        out.append(
            f"  on views  top-1 {teacher.top1_pct:.2f} %  top-5 {teacher.top5_pct:.2f} %  "
            f"ECE {teacher.ece_pct:.2f} %  entropy {teacher.entropy:.3f} nats  "
            f"top1/top2 logit ratio {teacher.top1_top2_ratio:.2f}"
        )
        out.append(
            f"  by view   top-1 {min(top1):.2f} to {max(top1):.2f} %, "
            f"top-5 {min(top5):.2f} to {max(top5):.2f} %"
        )
        if len(teacher.domains) > 1:
            for name, part in teacher.domains.items():
                out.append(
                    f"  {name:<9} {part.images:,} images, top-1 {part.top1_pct:.2f} %, "
                    f"top-5 {part.top5_pct:.2f} %"
                )
        kls = "  ".join(f"T={t}: {kl:.2e}" for t, kl in teacher.encoding_kl.items())
        out.append(f"  encoding  KL(teacher || stored) in nats  {kls or 'not on this grid'}")
        if self.unreadable:
            out.append(f"  left out  {len(self.unreadable)} unreadable images")
        return out + self._suspect_lines()

    def _suspect_lines(self) -> list[str]:
        out = []
        if self.suspects:
            out.append("  labels that the teacher contradicts in every view, most confident first:")
        for one in self.suspects[:SUSPECTS_SHOWN]:
            out.append(
                f"    {one.key}: labelled {one.label}, teacher says {one.answer} "
                f"(at least {100 * one.confidence:.1f} %)"
            )
        return out
