"""Writes a cache again in a smaller encoding, without its teacher.

    python scripts/recode_cache.py runs/cache runs/small --encoding topk8 --top-k 7

Its shards are those that `cache-logits` would have written with that encoding: to the byte if the
logits are there in float32 (`dense32`), else of logits rounded as they are stored. Killed, the same
command continues.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fgkd import files, open_cache
from fgkd.cache import encodings, manifest
from fgkd.cache.identity import FORMAT_VERSION, EncodingIdentity
from fgkd.cache.reader import Reader
from fgkd.cache.writer import Writer, stored_arrays
from fgkd.config import args_file
from fgkd.distillation.capture import image_reader
from fgkd.errors import FgkdError


def recode(source: Reader, output: Path, encoding: EncodingIdentity) -> None:
    """Write every shard of the source in another encoding into a folder."""
    identity = replace(source.identity, encoding=encoding)
    read = image_reader(source.dataset()) if source.holds_images else lambda split, row: b""
    tables = manifest.load_samples(source.folder, source.manifest, source.url)
    writer = Writer(output, identity, tables, source.views, read)
    writer.begin()
    unreadable, keys = source.unreadable_keys, tables["train"].keys
    extra = stored_arrays(source.codec).keys() - source.codec.arrays().keys()
    for job in writer.jobs():
        captured, rows = writer.captured(job), writer.block_rows[job.block]
        readable = np.array([keys[row] not in unreadable for row in rows])
        at = np.flatnonzero(readable)
        for view in range(job.start, job.stop):
            held = {name: a[:, None] for name, a in source.stored(rows[at], view, [*extra]).items()}
            logits = source.targets(rows[at], view)[:, None]
            mixing = (held.get(name) for name in ("partners", "lams", "boxes"))
            captured.put(at, [view], logits, held["digests"], *mixing)
            left_out = [keys[row] for row in rows[~readable]]
            captured.mark(np.arange(len(rows)), [view], left_out)
        writer.publish(captured)
    val, row = source.val_logits(), source.manifest.val
    if val is not None and row is not None and writer.needs_val():
        writer.publish_val(val, list(row.unreadable))
    writer.finish()


def chosen(encoding: str, top_k: int | None, temperatures: str | None) -> dict[str, Any]:
    """Options of cache-logits. Raises: click.UsageError."""
    if encoding not in encodings.TRUNCATED:
        if top_k is not None or temperatures is not None:
            raise click.UsageError(f"--top-k and --temperatures have no effect on {encoding}")
        return {"encoding": encoding}
    try:
        grid = [float(t) for t in (temperatures or "1,2,4").split(",")]
    except ValueError:
        raise click.UsageError(f"--temperatures is {temperatures!r}, not like 1,2,4") from None
    if not all(0 < t < math.inf for t in grid):
        raise click.UsageError(f"--temperatures is {temperatures!r}: they must be above 0")
    return {"encoding": encoding, "top_k": top_k or 50, "temperatures": grid}


@click.command()
@click.argument("cache")
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--encoding", type=click.Choice([*encodings.ENCODINGS]), required=True)
@click.option("--top-k", type=click.IntRange(1), help="Classes that are kept; 50 by default.")
@click.option("--temperatures", help="At which the rest is known; 1,2,4 by default.")
def main(
    cache: str, output: Path, encoding: str, top_k: int | None, temperatures: str | None
) -> None:
    """Write CACHE, which has all logits, into the folder OUTPUT in another encoding."""
    options = chosen(encoding, top_k, temperatures)
    try:
        source = open_cache(cache)
        if source.codec.truncated:
            raise click.ClickException(f"{cache} has {source.codec.name} targets, not all logits")
        if source.identity.added or source.identity.format_version != FORMAT_VERSION:
            raise click.ClickException(f"{cache} was extended, or is of an earlier format version")
        described = encodings.describe(
            encoding, options.get("top_k", 0), options.get("temperatures", []), len(source.classes)
        )
        recode(source, output, described)
        args = source.folder / "args.yaml"
        if args.exists():
            values = args_file.load_yaml(args) | options | {"output": str(output.resolve())}
            files.write_text(output / "args.yaml", yaml.safe_dump(values, sort_keys=False))
    except FgkdError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
