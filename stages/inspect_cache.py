"""`fgkd inspect`: prints a cache's summary and its teacher's statistics, and verifies it."""

from __future__ import annotations

import sys

from fgkd.commands import inspect as library
from fgkd.config import InspectConfig

from . import console, remedies
from .next_step import after_cache


def inspect(options: InspectConfig, caches: list[str]) -> None:
    """Print each cache; with --verify check it, and exit with 1 if anything is wrong."""
    console.require(caches, "CACHE", "fgkd inspect runs/cache")
    library.check(options)
    found = []
    for path in caches:
        one = library.inspect_one(path, options)
        found.append(one)
        for line in one.lines():
            console.echo(line)
        for problem in one.problems:
            console.echo("FAILED  " + remedies.explain(problem).replace("\n", "  "))
        if options.verify and not one.problems:
            console.echo("verified: every shard is complete, and the sampled views are the same")
    if gallery := library.write_results(found, options):
        console.echo(f"gallery: {gallery}")
    if any(one.problems for one in found):
        sys.exit(1)
    console.next_step(after_cache(caches[0]))
