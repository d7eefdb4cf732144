"""Help pages: options in groups, the everyday ones by --help and all of them by --help-all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import click
import cloup

from fgkd.config.schema import Leaf

# The groups in the order of a page, with the parts of a config (see fgkd/config/commands.py) whose
# options they show.
GROUPS: dict[str, tuple[str, ...]] = {
    "Teacher": ("targets", "teacher", "source"),
    "Data": ("data",),
    "Views": ("view",),
    "Model": ("model",),
    "Optimisation": ("optim",),
    "Distillation": ("loss",),
    "Cache": ("cache",),
    "Run": ("run", "capture"),
}
# Options of another group than the other options of their part.
MOVED = {
    ("targets", "views"): "Views",
    ("targets", "view_seed"): "Views",
    ("targets", "shard_size"): "Views",
    ("cache", "views"): "Views",
    ("cache", "seed"): "Views",
    ("cache", "img_size"): "Views",
    ("loss", "smoothing"): "Optimisation",
}
_RUN = ("output", "resume", "overwrite", "device", "workers", "dry_run")
_TRAINING = (
    *("model", "pretrained", "img_size", "epochs", "batch_size", "lr", "weight_decay", "amp"),
    "model_ema",
)
# Of commands with many options, those that --help shows: at most 60 lines of 80 columns.
EVERYDAY: dict[str, frozenset[str]] = {
    "train-teacher": frozenset(
        (*_RUN, *_TRAINING, "data", "val_fraction", "aug_recipe", "mixup", "drop_path", "smoothing")
    ),
    "cache-logits": frozenset(
        (
            *("teacher", "data", "views", "aug_recipe", "mixup", "encoding", "top_k", "format"),
            *("batch_size", "extend", "shard_range", "class_map", *_RUN),
        )
    )
    - {"resume"},
    "train-student": frozenset(
        (
            *("cache", "teacher", "data", "views", "distillation", "kd_loss", "temperature"),
            *("distill_loss_weight", "task_loss_weight", *_RUN, *_TRAINING),
        )
    )
    - {"img_size", "weight_decay", "overwrite"},
}


def group_of(leaf: Leaf) -> str | None:
    """The group of an option of a command with many; None in a config without parts."""
    moved = MOVED.get((leaf.spec, leaf.field.name))
    return moved or next((name for name, parts in GROUPS.items() if leaf.spec in parts), None)


class Command(cloup.Command):
    """A command whose --help shows its everyday options, and --help-all the others too."""

    def __init__(self, name: str, *, params: Sequence[click.Parameter], **more: Any) -> None:
        everyday = EVERYDAY.get(name)
        self.rare: list[click.Option] = []
        if everyday:
            self.rare = [
                param
                for param in params
                if isinstance(param, cloup.Option)
                and param.group is not None
                and param.name not in everyday
            ]
            params = [*params, self._help_all()]
        super().__init__(name, params=list(params), **more)
        self._hide(self.rare)

    def _help_all(self) -> click.Option:
        return click.Option(
            ["--help-all"],
            type=click.Choice(["all", *map(str.lower, GROUPS)], case_sensitive=False),
            is_flag=False,
            flag_value="all",
            is_eager=True,
            expose_value=False,
            callback=self._show_all,
            metavar="[GROUP]",
            help=f"Show all options, {len(self.rare)} more; or a group's.",
        )

    def _hide(self, hidden: Iterable[click.Option]) -> None:
        those = set(hidden)
        for group in self.option_groups:
            for option in group:
                option.hidden = option in those
            group.hidden = all(option.hidden for option in group)

    def _show_all(self, ctx: click.Context, param: click.Parameter, value: str | None) -> None:
        if value is None:
            return
        there = [group for group in self.option_groups if value in ("all", group.title.lower())]
        if not there:
            names = ", ".join(group.title.lower() for group in self.option_groups)
            raise click.BadParameter(f"{self.name} has the groups {names}.", ctx, param)
        self._hide(option for group in self.option_groups if group not in there for option in group)
        text = ctx.get_help()
        self._hide(self.rare)
        click.echo(text)
        ctx.exit()


SETTINGS = cloup.HelpFormatter.settings(col1_max_width=28, col2_min_width=40)
