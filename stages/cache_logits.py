"""`fgkd cache-logits`: writes a cache."""

from __future__ import annotations

from fgkd import files
from fgkd.commands import cache_logits as library
from fgkd.commands.cache_logits import CapturedCache
from fgkd.config import CacheLogitsConfig
from fgkd.estimate.capture import CaptureEstimate

from . import console, results
from .next_step import after_cache


def cache_logits(options: CacheLogitsConfig) -> None:
    """Create, continue or grow a cache, and print the next command."""
    progress = console.ConsoleProgress()
    found = library.run(options, progress)
    progress.close()
    if isinstance(found, CaptureEstimate):
        results.show_estimate(found)
        return
    if not found.finished:
        raise progress.stop.interrupted(kept_line(found))
    for line in found.accuracy.lines() if found.accuracy else ():
        console.echo(line)
    if found.num_unreadable:
        images = "image" if found.num_unreadable == 1 else "images"
        where = found.path / library.BAD_IMAGES
        console.echo(f"left out {found.num_unreadable} unreadable {images}: {where}")
    if not found.complete:
        console.echo(f"this part is done; {found.left} shards of other ranges are still to come")
        return
    if found.seconds:
        console.echo(
            f"done: {found.num_shards} shards, {files.human_bytes(found.num_bytes)}, "
            f"{files.human_time(found.seconds)}; the manifest is written, the cache is complete"
        )
    console.next_step(after_cache(found.path))


def kept_line(found: CapturedCache) -> str:
    """What an interrupted capture has kept."""
    line = f"{found.num_shards} of {found.num_shards + found.left} shards kept"
    if found.targets_kept:
        line += f", and {found.targets_kept:,} targets of the next"
    return line
