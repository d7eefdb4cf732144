"""Inspecting caches: a summary, verification, and a page of views with predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fgkd import config
from fgkd.cache import summary
from fgkd.cache.reader import Reader
from fgkd.cache.remote import is_url, open_cache
from fgkd.config import InspectConfig
from fgkd.errors import FgkdError, WrongKind


@dataclass(frozen=True)
class Inspection:
    """What is known of a cache. reader: the open cache. problems: of `verify`, else empty.

    verified: the lines of what was verified; None if nothing was.
    """

    reader: Reader
    summary: dict[str, Any]  # as `--json` writes it
    problems: list[FgkdError] = field(default_factory=list)
    verified: list[str] | None = None

    def lines(self) -> list[str]:
        """The summary as text, with what was verified."""
        found = [*summary.lines(self.summary), *summary.suspect_lines(self.summary)]
        return found + (self.verified or [])

    def to_json(self) -> dict[str, Any]:
        """The summary, with problems as text where they were looked for."""
        if self.verified is None:
            return self.summary
        return self.summary | {"problems": [one.message for one in self.problems]}


def inspect(caches: str | Path | Sequence[str | Path], **options: Any) -> list[Inspection]:
    """What some caches are, with the options of `fgkd inspect` by name.

    `inspect("runs/cache", verify=True)[0].problems`. Raises: FgkdError of many types for a cache
    that cannot be opened.
    """
    spec = config.build(InspectConfig, options, "inspect()")
    given = [caches] if isinstance(caches, str | Path) else caches
    found = [inspect_one(path, spec) for path in given]
    if spec.gallery:
        write_gallery(found, spec)
    return found


def inspect_one(path: str | Path, options: InspectConfig) -> Inspection:
    """`inspect` of one cache with the command's config."""
    if not is_url(str(path)):
        _refuse_run(Path(path))
    reader = open_cache(path)
    described = summary.describe(reader)
    if not options.verify:
        return Inspection(reader, described)
    from fgkd import device
    from fgkd.distillation.verify import verify
    from fgkd.models.loading import load_classifier

    hardware, _ = device.set_up(options.device)
    result = verify(
        reader,
        data=options.data,
        teachers=[load_classifier(one) for one in options.teacher],
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


def _refuse_run(path: Path) -> None:
    """Raise WrongKind for a run folder, with the cache that it learned from if it had one."""
    if not (path / "run.json").is_file() or (path / "identity.json").is_file():
        return
    from fgkd.training import run_folder  # with torch

    cache = run_folder.read(path).parents.cache
    raise WrongKind(f"{path} is a run, not a cache", path=path, found="run", cache=cache)
