"""The top of a report: what distillation gained, and what it cost.

Shape legend: N labelled images.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fgkd import files
from fgkd.cache import manifest
from fgkd.evaluation import intervals
from fgkd.report import tables
from fgkd.report.page import Command, Section, Tile
from fgkd.report.sections import Run
from fgkd.training import run_folder
from fgkd.training.run_folder import RunFacts

CLEAR_P = 0.05
MIN_LEAD_PCT = 1.0  # of which a kept share is worth a number


def summary(focus: Run, peers: Sequence[Run], baseline: Run | None) -> Section:
    """The verdict in a sentence, and tiles: accuracies, the gain, and the cost."""
    teacher = focus.teacher_answers if focus.role != "teacher" else None
    teacher_N = None if teacher is None else teacher.hit_N
    rival = baseline or next((r for r in peers if r is not focus), None)
    said, tiles = [], [_accuracy(focus)]
    if rival is None:
        said.append(f"{focus.name} is right on {tiles[0].value} of the images.")
    else:
        sentence, tile = _against(focus, rival)
        said.append(sentence)
        tiles.append(tile)
    if teacher_N is not None:
        if baseline is not None:
            sentence, tile = _kept(focus, baseline, teacher_N)
            said.append(sentence)
            tiles.append(tile)
        agreement = focus.result.metrics.agreement_pct
        if agreement is not None:
            text = "images with the same first answer"
            tiles.append(Tile("Agreement with the teacher", f"{agreement:.1f} %", text))
    return Section("summary", "Summary", " ".join(said), tiles=[*tiles, *cost(focus, peers)])


def _accuracy(run: Run) -> Tile:
    interval = run.result.metrics.ci95 or {}
    low, high = interval.get("top1_pct", [np.nan, np.nan])
    text = f"{run.name}; 95 % interval {low:.1f} to {high:.1f}"
    return Tile(f"Top-1 of the {run.role}", f"{run.result.metrics.top1_pct:.2f} %", text)


def _against(run: Run, other: Run) -> tuple[str, Tile]:
    """How a run compares with another on the same images."""
    hit_N, other_N = run.answers.hit_N, other.answers.hit_N
    gain = 100 * (hit_N.mean() - other_N.mean())
    low, high = intervals.difference_ci95(hit_N=hit_N, other_hit_N=other_N)
    p = intervals.mcnemar(hit_N=hit_N, other_hit_N=other_N).p_value
    test = f"95 % interval {low:+.1f} to {high:+.1f}, {tables.p_value(p)}"
    whose = "its baseline, trained on labels alone" if other.role == "baseline" else other.name
    if p < CLEAR_P:
        more = "more" if gain > 0 else "fewer"
        said = f"{run.name} gets {abs(gain):.1f} points {more} right than {whose} ({test})."
        mark = "right" if gain > 0 else "wrong"
    else:
        said = f"{run.name} and {whose} cannot be told apart: {gain:+.1f} points ({test})."
        mark = ""
    return said, Tile(f"Against the {other.role}", f"{gain:+.2f} points", test, mark)


def _kept(run: Run, baseline: Run, teacher_N: np.ndarray) -> tuple[str, Tile]:
    """How much of the teacher's lead over the baseline a student has."""
    own, base, teacher = (
        100 * hit_N.mean() for hit_N in (run.answers.hit_N, baseline.answers.hit_N, teacher_N)
    )
    lead = teacher - base
    text = f"teacher {teacher:.1f} %, baseline {base:.1f} %"
    title = "Of the teacher's lead kept"
    if lead < MIN_LEAD_PCT:
        said = f"The teacher ({teacher:.1f} %) has no lead over the baseline to pass on."
        return said, Tile(title, "no lead", text)
    p = intervals.mcnemar(hit_N=run.answers.hit_N, other_hit_N=baseline.answers.hit_N).p_value
    if own <= base or p >= CLEAR_P:  # a share of noise
        said = f"Of the teacher's lead of {lead:.1f} points none is kept for certain."
        return said, Tile(title, "not clear", text)
    share = 100 * (own - base) / lead
    said = f"It keeps {share:.0f} % of the teacher's lead of {lead:.1f} points."
    if own > teacher:
        p = intervals.mcnemar(hit_N=run.answers.hit_N, other_hit_N=teacher_N).p_value
        said += f" It is {own - teacher:.1f} points above its teacher ({tables.p_value(p)})."
    return said, Tile(title, f"{share:.0f} %", text)


def cost(focus: Run, peers: Sequence[Run]) -> list[Tile]:
    """Minutes of the runs and of the cache, its bytes, and what it saves a student."""
    tiles = []
    for run in dict.fromkeys([*(r for r in peers if r.role == "teacher"), focus]):
        if run.result.minutes is not None:
            title = f"Training the {run.role}"
            tiles.append(Tile(title, duration(run.result.minutes), _device(run.path)))
    cache = cache_of(focus)
    if cache is not None:
        held, minutes = manifest.load(cache), run_folder.minutes(cache)
        images = sum(row.samples for row in held.shards if row.start == 0)
        size = files.human_bytes(sum(row.num_bytes for row in held.shards))
        views, text = held.views, f"{held.views} views of {images:,} images, {size}"
        tiles.append(Tile("The cache", "" if minutes is None else duration(minutes), text))
        epochs = len(run_folder.metrics(focus.path))
        if minutes is not None and epochs:
            live = minutes * epochs / views
            text = f"the teacher on {epochs} views of each image, at the cache's own rate"
            tiles.append(Tile("Saved for each further student", duration(live), text))
    return tiles


def duration(minutes: float) -> str:
    """`0.4 -> '24 s'`, `12.3 -> '12.3 min'`, `90 -> '1.5 h'`."""
    if minutes < 1:
        return f"{60 * minutes:.0f} s"
    return f"{minutes:.1f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def cache_of(run: Run) -> Path | None:
    """The folder of the cache that a run learned from, where it is on this machine."""
    facts = facts_of(run.path)
    cache = Path(facts.parents.cache) if facts and facts.parents.cache else None
    return cache if cache and (cache / "manifest.json").exists() else None


def facts_of(path: Path) -> RunFacts | None:
    """run.json of a run folder; None of a model that is no run."""
    return run_folder.read(path) if (path / "run.json").exists() else None


def _device(path: Path) -> str:
    """`on the CPU`, or the graphics card's name."""
    facts = facts_of(path)
    if facts is None or not facts.device:
        return ""
    card = re.search(r"\((?:.*, )?([^,()]+)\)", facts.device)
    return "on the CPU" if facts.device.startswith("cpu") or not card else f"on {card[1]}"


def recipe(runs: Sequence[Run]) -> Section:
    """The command of each run and cache, to be copied."""
    commands, versions = list[Command](), dict[str, str]()
    for run in runs:
        facts, cache = facts_of(run.path), cache_of(run)
        if cache is not None:
            text = f"fgkd cache-logits -c {shlex.quote(str(cache / 'args.yaml'))}"
            commands.append(Command(f"The cache {cache.name}", text))
        if facts:
            commands.append(Command(f"{run.name} ({run.role})", command(run.path, facts)))
            versions |= facts.versions
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    notes = [f"Trained with {named}."] if versions else []
    return Section("recipe", "Recipe", notes=notes, commands=list(dict.fromkeys(commands)))


def command(path: Path, facts: RunFacts) -> str:
    """A run's command line, ready to paste; from its args.yaml if it was not made by a command."""
    words = list(facts.command)
    if facts.stage not in words:
        return f"fgkd {facts.stage} -c {shlex.quote(str(path / 'args.yaml'))}"
    options = words[words.index(facts.stage) :]
    return shlex.join(["fgkd", *(w for w in options if w not in ("--resume", "--overwrite"))])
