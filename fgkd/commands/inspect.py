"""Inspecting caches: a summary, verification, and a page of views with predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fgkd import config, files
from fgkd.cache.reader import Reader
from fgkd.cache.remote import open_cache
from fgkd.cache.summary import CacheSummary
from fgkd.config import InspectConfig
from fgkd.errors import FgkdError, UnusedOption


@dataclass(frozen=True, repr=False)
class Inspection:
    """What is known of a cache. reader: the open cache. problems: of `verify`, else empty.

    verified: the lines of what was verified; None if nothing was. Printed, it is the summary.
    """

    reader: Reader
    summary: CacheSummary
    problems: list[FgkdError] = field(default_factory=list)
    verified: list[str] | None = None

    def __repr__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """The summary as text, with what was verified."""
        return self.summary.lines() + (self.verified or [])

    def to_json(self) -> dict[str, Any]:
        """The summary, with problems as text where they were looked for."""
        if self.verified is None:
            return self.summary.to_json()
        return self.summary.to_json() | {"problems": [one.message for one in self.problems]}


def inspect(caches: files.PathLike | Sequence[files.PathLike], **options: Any) -> list[Inspection]:
    """What some caches are, with the options of `fgkd inspect` by name.

    `inspect("runs/cache", verify=True)[0].problems`. Raises: FgkdError of many types for a cache
    that cannot be opened.
    """
    spec = config.build(InspectConfig, options, "inspect()")
    check(spec)
    found = [inspect_one(path, spec) for path in files.paths(caches)]
    write_results(found, spec)
    return found


def check(options: InspectConfig) -> None:
    """Refuse outputs that cannot be written, and options that have no effect."""
    source, nothing = options.source, InspectConfig()
    for value, name in (
        (source.class_map, "class_map"),
        (source.teacher_model, "teacher_model"),
        (source.teacher_model_kwargs, "teacher_model_kwargs"),
    ):
        if value and not options.teacher:
            message = f"{name} has no effect without a teacher"
            raise UnusedOption(message, option=name, value=value)
    shows = options.verify or options.gallery
    used = {"teacher": options.verify, "samples": options.verify, "device": options.verify}
    for name, is_used in (used | {"seed": shows, "data": shows}).items():
        value = getattr(options, name)
        if not is_used and value != getattr(nothing, name):
            message = f"{name} has no effect without verify"
            raise UnusedOption(message, option=name, value=value, advice="verify as well")
    files.claim_option(options.json, "json")
    if options.gallery:
        from fgkd.report import page

        page.claim(Path(options.gallery), "gallery")


def write_results(found: Sequence[Inspection], options: InspectConfig) -> Path | None:
    """Write the files that `json` and `gallery` name, if they are given; the page's path."""
    if options.json:
        files.write_json(Path(options.json), [one.to_json() for one in found])
    return write_gallery(found, options) if options.gallery else None


def inspect_one(path: str | Path, options: InspectConfig) -> Inspection:
    """`inspect` of one cache with the command's config."""
    reader = open_cache(path)
    described = CacheSummary.of(reader)
    if not options.verify:  # which torch is not needed for
        return Inspection(reader, described)
    from fgkd import device
    from fgkd.commands import sources
    from fgkd.distillation.verify import verify

    sources.check(options.teacher, options.source)
    with device.settings_kept():
        hardware, _ = device.set_up(options.device)
        known = [sources.load(one, options.source) for one in options.teacher]
        result = verify(
            reader,
            data=options.data,
            teachers=sources.fit(known, options.teacher, reader.classes, options.source)[0],
            device=hardware,
            samples=options.samples,
            seed=options.seed,
        )
    return Inspection(reader, described, result.problems, result.lines)


def write_gallery(found: Sequence[Inspection], options: InspectConfig) -> Path:
    """Write the page of these caches into the folder `gallery`; returns its index.html."""
    from fgkd.report import gallery

    return gallery.write(
        Path(options.gallery or "."),
        [(one.reader, one.summary, one.lines()) for one in found],
        data=options.data,
        seed=options.seed,
    )
