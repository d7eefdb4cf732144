"""What every stage does around its work: signals, device, console lines, the banner."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import click
from click.core import ParameterSource

from fgkd import config, distributed, files
from fgkd import device as devices
from fgkd.distributed import failures
from fgkd.errors import FgkdError


class Interrupted(Exception):
    """Work was saved after a signal; `command` continues it."""

    def __init__(self, number: int, command: str) -> None:
        super().__init__(number, command)
        self.number, self.command = number, command


class StoppedAtOnce(KeyboardInterrupt):
    """A second signal came before work was saved; `command` continues from what was saved last."""

    def __init__(self, number: int, command: str) -> None:
        super().__init__(number, command)
        self.number, self.command = number, command


class StopSignal:
    """While entered, SIGINT and SIGTERM set a flag; a second one ends the process at once.

    resume: whether the command that continues needs --resume.
    """

    def __init__(self, resume: bool) -> None:
        self.number, self.resume = 0, resume

    def __enter__(self) -> StopSignal:
        self._old = {n: signal.signal(n, self._handle) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            raise StoppedAtOnce(number, own_command(self.resume))
        self.number = number
        echo("stopping after this step (once more to stop at once)")

    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.number > 0

    def check(self) -> None:
        """Raise Interrupted with the command that continues, if a signal has come."""
        if self.number:
            raise Interrupted(self.number, own_command(self.resume))


def own_command(resume: bool) -> str:
    """This process's command line, ready to paste; with --resume where the stage has it."""
    import shlex

    name = Path(sys.argv[0]).name
    program = "python -m stages" if name == "__main__.py" else name
    if "TORCHELASTIC_RUN_ID" in os.environ:
        program = f"torchrun {_torchrun_options()} {program.removeprefix('python ')}"
    args = [a for a in sys.argv[1:] if a not in ("--resume", "--overwrite")]
    return " ".join([program, *map(shlex.quote, args), *(["--resume"] if resume else [])])


def _torchrun_options() -> str:
    local, world = int(os.environ["LOCAL_WORLD_SIZE"]), distributed.world()
    nodes = f"--nnodes {world // local} --node-rank N --master-addr HOST " if world > local else ""
    return f"{nodes}--nproc-per-node {local}"


def echo(line: str) -> None:
    """Print a line from rank 0, above the progress bar if there is one."""
    if distributed.rank() == 0:
        if sys.stderr.isatty():
            from tqdm import tqdm

            tqdm.write(line, file=sys.stdout)
        else:
            click.echo(line)


def start_device(name: str, deterministic: bool | None = None) -> tuple[Any, str]:
    """Choose the device, join the process group; also a line that says what was chosen and why.

    deterministic: as of --deterministic; None: wherever a GPU can.
    """
    import torch

    device, why = devices.pick(name)
    distributed.start(device)
    failures.watch()
    if device.type == "cpu":
        devices.keep_memory()
    else:
        devices.set_up_gpu(deterministic)
    ranks = f", {distributed.world()} processes" if distributed.world() > 1 else ""
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return device, f"{device} ({why}){threads}{ranks}"


def banner(title: str, lines: dict[str, str]) -> list[str]:
    """The start-up banner: what will happen, in aligned lines."""
    return [title, *(f"  {name:<8} {text}" for name, text in lines.items()), ""]


def describe_data(dataset: Any) -> str:
    """`icons: 85 classes; 5,114 train, 715 val, 1,433 test images`."""
    counts = ", ".join(f"{len(s):,} {name}" for name, s in dataset.splits.items())
    notes = "".join(f"\n           {note_line(note)}" for note in dataset.notes)
    return f"{dataset.name}: {len(dataset.classes)} classes; {counts} images{notes}"


def note_line(note: str) -> str:
    """A note of a dataset as a line; a warning says so itself."""
    return note if note.startswith("warning: ") else f"note: {note}"


def with_leaks(dataset: Any) -> Any:
    """The dataset with notes on images that its splits share; rank 0 alone looks, as it prints."""
    from fgkd.data import duplicates

    if distributed.rank():
        return dataset
    return dataclasses.replace(dataset, notes=[*dataset.notes, *duplicates.warnings(dataset)])


def describe_recipe(recipe: Any) -> str:
    """The fields of a view recipe that do something, on one line."""
    whole = "bounding box" if recipe.bbox_crop else "area"
    parts = [f"crop {recipe.crop_scale[0]:g}-{recipe.crop_scale[1]:g} of the {whole}"]
    for name in ("hflip", "color_jitter", "erasing", "mixup", "cutmix"):
        if value := getattr(recipe, name):
            parts.append(f"{name} {value:g}")
    if recipe.rand_aug_ops:
        magnitude = f"{recipe.rand_aug_magnitude:g}"
        parts.append(f"RandAugment n{recipe.rand_aug_ops} m{magnitude}")
    return ", ".join(parts)


def absolute_specs(specs: Sequence[str]) -> list[str]:
    """`--data` values with their paths made absolute, for the stages that come after."""
    out = []
    for spec in specs:
        name, colon, path = spec.partition(":")
        out.append(f"{name}:{os.path.abspath(os.path.expanduser(path))}" if colon else name)
    return out


def view_overrides(options: Any) -> dict[str, Any]:
    """The single view options that were given."""
    from fgkd.config import ViewSpec

    names = [f.name for f in dataclasses.fields(ViewSpec) if f.name != "aug_recipe"]
    return {n: v for n in names if (v := getattr(options, n)) is not None}


def resolve_recipe(options: Any, own: dict[str, Any] | None, chiral: bool) -> Any:
    """The view recipe of --aug-recipe, else `own` (a teacher's), else light; options over it."""
    from fgkd.views import recipes

    overrides = view_overrides(options)
    if options.aug_recipe or own is None:
        return recipes.recipe_from(options.aug_recipe or "light", overrides, chiral)
    return recipes.ViewRecipe.from_dict(own | overrides | ({"hflip": 0.0} if chiral else {}))


class Pace:
    """Rate, data-wait share and time left, over the steps since the last line."""

    def __init__(self, total: int, interval_s: float) -> None:
        self.total, self.interval_s = total, interval_s
        self.images, self.units, self.wait_s, self.busy_s = 0, 0, 0.0, 0.0
        self._last = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty() and distributed.rank() == 0:
            from tqdm import tqdm

            self._bar = tqdm(total=total, file=sys.stderr, leave=False, dynamic_ncols=True)

    def add(
        self, done: int, images: int, wait_s: float, step_s: float, units: int = 1
    ) -> str | None:
        """Count a step, of `units` of the total; the text of a console line when one is due."""
        self.images, self.units = self.images + images, self.units + units
        self.wait_s, self.busy_s = self.wait_s + wait_s, self.busy_s + step_s
        if self._bar:
            self._bar.update(done - self._bar.n)
        now = time.monotonic()
        if now - self._last < self.interval_s and done < self.total:
            return None
        rate = self.images / max(self.busy_s, 1e-9)
        left = (self.total - done) * self.busy_s / self.units
        text = f"{rate:,.0f} img/s  data {100 * self.wait_s / max(self.busy_s, 1e-9):.0f}%"
        self._last, self.images, self.units, self.wait_s, self.busy_s = now, 0, 0, 0.0, 0.0
        return f"{text}  ETA {files.human_time(left)}"

    def close(self) -> None:
        """Remove the progress bar."""
        if self._bar:
            self._bar.close()


@contextlib.contextmanager
def counting(total: int) -> Iterator[Callable[[int], None]]:
    """A function to call with how many images are done: a progress bar, or a line at times."""
    pace, last, before = Pace(total, 10.0), time.perf_counter(), 0

    def progress(done: int) -> None:
        nonlocal last, before
        now, num = time.perf_counter(), done - before
        line = pace.add(done, num, 0.0, now - last, units=num)
        if line and done < total:
            echo(f"image {done:,}/{total:,}  {line}")
        last, before = now, done

    yield progress
    pace.close()


def started() -> float:
    """time.monotonic() when this command began, its imports included; else now."""
    context = click.get_current_context(silent=True)
    return float(context.meta["started"]) if context else time.monotonic()


def require(value: Any, option: str, example: str) -> None:
    """Raise a clear error when a required option or argument was not given."""
    if not value:
        hint = f"{option} {example}" if option.startswith("-") else example
        raise FgkdError(f"{option} is required", hint)


def refuse_unused(options: Any, names: Sequence[str], where: str, hint: str) -> None:
    """Raise for options that were changed and would be ignored, such as --json in a real run."""
    known = config.leaves(type(options))
    for name in names:
        if known[name].of(options) != known[name].field.default:
            raise FgkdError(f"--{name.replace('_', '-')} has no effect {where}", hint)


def refuse_typed(names: Sequence[str], where: str, hint: str) -> None:
    """Raise for options on the command line that would be ignored.

    Not for those of a -c file, which may be that of another run: a control's, its student's.
    """
    context = click.get_current_context(silent=True)
    for name in names:
        if context and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise FgkdError(f"--{name.replace('_', '-')} has no effect {where}", hint)


def check_json(options: Any) -> None:
    """The `--json` of a stage that can be planned: for a plan alone, and writable."""
    if not options.dry_run:
        refuse_unused(options, ["json"], "without --dry-run", "leave it out, or add --dry-run")
    files.claim_option(options.json, "json")


def model_folder(run: str | Path) -> Path:
    """The folder of a run's model; a timm local-dir folder is its own."""
    path = Path(run)
    return path if (path / "config.json").is_file() else path / "model"


def class_names(config: dict[str, Any], folder: Path) -> list[str]:
    """A model's class names, by index. Raises: FgkdError when its config has none."""
    names = config.get("label_names") or []
    if isinstance(names, dict):  # timm's other form: index -> name
        names = [names[key] for key in sorted(names, key=int)]
    if len(names) != config["num_classes"]:
        raise FgkdError(
            f"{folder}/config.json names {len(names)} classes of {config['num_classes']}",
            'add "label_names": ["name of class 0", ...] to it',
        )
    return list(names)
