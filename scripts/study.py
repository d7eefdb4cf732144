"""What distillation buys on the icons at each length of training: trains the students, shows them.

    python scripts/study.py run 'small/labels/*' 'small/cache/*' --seeds 0,1,2 --tries 2
    python scripts/study.py show

`run` trains what is missing of the students whose names match (study_arms.py lists them all), with
their teachers and caches; killed, the same command continues. Each student is tuned on val with
seed 0, `--tries` settings each (or takes the one of `--setting`, found at another length); test is
scored once, with the setting chosen, when all seeds are there. The rows are in OUTPUT/study.json.
`show` prints the table and draws the plot of a file of rows, by default of scripts/study.json,
which is the run that the pages quote.
"""

from __future__ import annotations

import csv
import fnmatch
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import study_arms as table
import study_figures as figures
import study_inputs as inputs

from fgkd import files, models
from fgkd.data import Dataset, open_dataset
from fgkd.evaluation import scoring
from fgkd.training import run_folder

HOME = str(Path.home())
ROWS = ROOT / "scripts" / "study.json"  # that the pages quote


@dataclass(frozen=True)
class Study:
    """A folder of runs, and the data they are trained on."""

    output: Path
    data: str
    more: tuple[str, ...] = ()  # options of every command: a test's
    filling: threading.Lock = field(default_factory=threading.Lock, compare=False)

    def command(self, name: str, program: list[str]) -> list[str]:
        """Run a command whose console goes to OUTPUT/logs; its failure ends the study."""
        log = self.output / "logs" / f"{name.replace('/', '-')}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as console:
            done = subprocess.run(
                [sys.executable, *program],
                cwd=ROOT,
                stdout=console,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        if done.returncode:
            raise click.ClickException(f"{' '.join(program)} failed; see {log}")
        return program

    def teacher(self, name: str) -> Path:
        """A trained teacher."""
        run = self.output / "teachers" / name
        given = table.TEACHERS[name]
        options = [*self.filled(given), *self.more, "--output", str(run), "--resume"]
        if "--data" not in given:
            options += ["--data", self.data]
        self.command(f"teacher-{name}", ["-m", "stages", "train-teacher", *options])
        return run

    def cache(self, name: str) -> Path:
        """A complete cache; killed, its command continues."""
        cache, path = table.CACHES[name], self.output / "caches" / name
        if (path / "manifest.json").exists():
            return path
        if cache.of:
            given = [str(self.cache(cache.of)), str(path), *self.filled(cache.options)]
            self.command(f"cache-{name}", ["scripts/recode_cache.py", *given])
        else:
            teachers = [x for t in cache.teachers for x in ("--teacher", str(self.teacher(t)))]
            options = [*teachers, *self.filled(cache.options), "--output", str(path)]
            self.command(f"cache-{name}", ["-m", "stages", "cache-logits", *options])
        return path

    def filled(self, options: Sequence[str]) -> list[str]:
        """Options with the files and data of this study in the place of {names}."""
        with self.filling:  # several threads write the same files
            return inputs.fill(list(options), self.output, open_dataset([self.data], 0.1))

    def student(self, student: table.Student, seed: int, attempt: int) -> Path:
        """A trained student."""
        run = self.output / student.name / f"try-{attempt}" / f"seed-{seed}"
        if not (run / "finished").exists():
            how = table.METHODS[student.method]
            options = self.filled(student.options(seed, attempt))
            if how.cache:
                options += ["--cache", str(self.cache(how.cache))]
            elif "--data" not in options:
                options += ["--data", self.data]
            if how.teacher:
                options += ["--teacher", str(self.teacher(how.teacher))]
            options += [*self.more, "--output", str(run)]
            if how.timm:
                program = ["scripts/study_timm.py", *options]
            else:
                program = ["-m", "stages", "train-student", *options, "--resume"]
            self.command(f"{student.name}-{attempt}-{seed}", program)
            files.write_text(run / "finished", " ".join(program) + "\n")
        return run

    def students(
        self, student: table.Student, seeds: list[int], settings: Sequence[int]
    ) -> list[Path]:
        """A student of each seed, with the setting that is best on val with seed 0."""
        best = settings[0]
        if len(settings) > 1:
            best = max(settings, key=lambda attempt: val_top1(self.student(student, 0, attempt)))
        return [self.student(student, seed, best) for seed in seeds]

    def rows(
        self, student: table.Student, seeds: list[int], settings: Sequence[int]
    ) -> list[dict[str, Any]]:
        """The rows of `students`."""
        runs = self.students(student, seeds, settings)
        dataset = open_dataset([self.data], 0.1)
        return [
            {
                "arm": student.name,
                "epochs": student.epochs,
                "seed": seed,
                "tries": len(settings),
                "val_top1_pct": val_top1(run),
                **score(run, dataset),
                "minutes": round(run_folder.minutes(run) or 0, 2),
                "command": self.portable((run / "finished").read_text().strip()),
            }
            for seed, run in zip(seeds, runs, strict=True)
        ]

    def portable(self, program: str) -> str:
        """A command as it can be pasted elsewhere: with the default folders."""
        output = f"runs/{self.output.name}"
        return "python " + program.replace(str(self.output), output).replace(HOME, "~")

    def teacher_row(self, name: str) -> dict[str, Any]:
        """A teacher's row."""
        run = self.teacher(name)
        return {"arm": f"teacher/{name}", "seed": 0} | score(run, open_dataset([self.data], 0.1))


def val_top1(run: Path) -> float:
    """The best epoch's, by which the model was chosen."""
    with (run / "summary.csv").open() as lines:
        return max(float(row["val_top1_pct"]) for row in csv.DictReader(lines))


def score(run: Path, dataset: Dataset) -> dict[str, Any]:
    """Test top-1, and which of the split's images are right: a bit each, in hexadecimal digits."""
    model, device = models.load(run / "model"), torch.device("cpu")
    scored = scoring.score(model, dataset, "test", device=device, workers=0)
    hit_N = scored.hit_N[np.argsort(scored.rows_N)]
    return {
        "test_top1_pct": round(100 * float(hit_N.mean()), 4),
        "images": len(hit_N),
        "hits": np.packbits(hit_N).tobytes().hex(),
    }


@click.group()
def main() -> None:
    """Train the students of the study, or show what was found."""


@main.command()
@click.argument("names", nargs=-1)
@click.option("--output", type=click.Path(path_type=Path), default=Path("runs/study"))
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--tries", type=click.IntRange(1, len(table.TRIES)), default=len(table.TRIES))
@click.option(
    "--setting",
    type=click.IntRange(0, len(table.TRIES) - 1),
    help="Take this one, by its place in study_arms.py, and try no others.",
)
@click.option("--jobs", type=click.IntRange(1), default=1, help="Trainings at a time.")
@click.option("--data", default="icons", show_default=True, help="NAME or NAME:PATH.")
@click.option("--with", "more", multiple=True, help="Option of every training, as --epochs=1.")
def run(
    names: tuple[str, ...],
    output: Path,
    seeds: str,
    tries: int,
    setting: int | None,
    jobs: int,
    data: str,
    more: tuple[str, ...],
) -> None:
    """Train the students whose names match, as 'small/*/75'; none given: all of them."""
    study = Study(output.resolve(), data, more)
    numbers = [int(seed) for seed in seeds.split(",")]
    chosen = [
        student
        for student in table.STUDENTS
        if any(fnmatch.fnmatch(student.name, name) for name in names or ("*",))
    ]
    if not chosen:
        raise click.ClickException(f"no student is called {', '.join(names)}")
    settings = range(tries) if setting is None else [setting]
    place = study.output / "study.json"

    def read() -> list[dict[str, Any]]:
        return files.read_json(place, "study") if place.exists() else []

    def keep(made: list[dict[str, Any]]) -> None:
        def stays(row: dict[str, Any]) -> bool:
            """A row of another arm, or of another seed with as many tries."""
            same_arm = [new for new in made if new["arm"] == row["arm"]]
            return all(
                row["seed"] != new["seed"] and row.get("tries") == new.get("tries")
                for new in same_arm
            )

        there = read()  # again: another process may train other students
        files.write_json(place, [row for row in there if stays(row)] + made)
        for row in made:
            print(f"{row['arm']:<32} seed {row['seed']}  {row['test_top1_pct']:6.2f} %", flush=True)

    needed = {
        teacher
        for how in (table.METHODS[student.method] for student in chosen)
        for teacher in ((how.teacher,) if how.teacher else ())
        + (table.CACHES[how.cache].teachers if how.cache else ())
    }
    for teacher in sorted(needed - {row["arm"].removeprefix("teacher/") for row in read()}):
        keep([study.teacher_row(teacher)])
    for cache in {table.METHODS[student.method].cache for student in chosen} - {None}:
        study.cache(str(cache))
    missing = [s for s in chosen if not is_done(read(), s.name, numbers, len(settings))]
    with ThreadPoolExecutor(jobs) as pool:  # made in order, kept as they come
        # Other seeds than the first wait for the setting, if there are several.
        together = [[seed] for seed in numbers] if len(settings) == 1 else [numbers]
        parts = [
            [pool.submit(study.students, student, seeds, settings) for seeds in together]
            for student in missing
        ]
        for student, trained in zip(missing, parts, strict=True):
            for part in trained:
                part.result()
            keep(study.rows(student, numbers, settings))
    print(figures.tables(read()))


def is_done(rows: list[dict[str, Any]], arm: str, seeds: list[int], tries: int) -> bool:
    """Whether a student has its rows, of as many tries."""
    there = {row["seed"] for row in rows if row["arm"] == arm and row["tries"] >= tries}
    return there >= set(seeds)


@main.command()
@click.option(
    "--json", "place", type=click.Path(path_type=Path), default=ROOT / "scripts/study.json"
)
@click.option("--plot", type=click.Path(path_type=Path), help="An .svg or .png file to draw.")
def show(place: Path, plot: Path | None) -> None:
    """Print the tables of a file of rows, and draw its plot."""
    rows = files.read_json(place, "study")
    print(figures.tables(rows))
    if plot:
        figures.draw(rows, plot)


if __name__ == "__main__":
    main()
