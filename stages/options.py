"""click options made from the config dataclasses, and the files that -c and --resume read.

One declaration of a field gives its flag, help text, range and key in a file.
"""

from __future__ import annotations

import functools
import re
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import cloup
from click.core import ParameterSource

from fgkd import config, distributed
from fgkd.config.schema import Leaf, expanded
from fgkd.errors import near

from . import help as help_pages
from . import recipe_files

T = TypeVar("T")


class Checked(click.ParamType):
    """A click type that also checks the field's range, and refuses nan and inf."""

    def __init__(self, base: click.ParamType, meta: typing.Mapping[str, Any]) -> None:
        self.base, self.meta, self.name = base, meta, base.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in self.meta["words"]:
            return value
        value = expanded(self.base.convert(value, param, ctx), self.meta)
        if problem := config.check(value, {**self.meta, "choices": ()}):
            self.fail(problem, param, ctx)
        return value

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        return self.base.get_metavar(param, ctx)


class NamedChoice(click.Choice[str]):
    """A choice that also accepts the old names of values, which `config.build` translates."""

    def __init__(self, choices: Sequence[str], renamed: Mapping[str, str]) -> None:
        super().__init__(choices)
        self.renamed = renamed

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value in self.renamed else super().convert(value, param, ctx)


class ConfigFile(click.Path):
    """The path of a YAML file of options, or the name of a recipe."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        given = str(value)
        if not Path(given).exists():
            new = re.sub(r"control(?=(\.ya?ml)?$)", "baseline", given)
            place = Path(new) if Path(new).exists() else recipe_files.path(new)
            if place and new != given:
                notice(f"{given} is now called {new}; the old name will be removed")
            if not place and not Path(given).suffix and Path(given).name == given:
                known = [recipe.name for recipe in recipe_files.all_recipes()]
                self.fail(f"no recipe is called {given!r}{near(given, known)}", param, ctx)
            value = place or given
        return super().convert(str(value), param, ctx)


class CommaList(click.ParamType):
    """`1,2,4` -> (1.0, 2.0, 4.0)."""

    name = "1,2,4"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return tuple(value)
        try:
            return tuple(float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers like 1,2,4", param, ctx)


BASES: dict[type, click.ParamType] = {int: click.INT, float: click.FLOAT, str: click.STRING}


def _option(leaf: Leaf, groups: dict[str, cloup.OptionGroup]) -> cloup.Option:
    field, kind = leaf.field, leaf.kind
    if isinstance(kind, types.UnionType):  # X | None
        kind = next(arg for arg in typing.get_args(kind) if arg is not type(None))
    flag, meta = "--" + field.name.replace("_", "-"), field.metadata
    common: dict[str, Any] = {"help": meta["help"], "default": field.default}
    if groups and (title := help_pages.group_of(leaf)):
        common["group"] = groups[title]
    common["show_default"] = field.default is not False and field.default not in (None, "", ())
    if kind is bool:
        declaration = f"{flag}/--no-{flag[2:]}" if field.default or not meta["free"] else flag
        return cloup.Option([declaration], is_flag=True, **common)
    if "on" in meta["choices"]:  # the option alone is `on`
        common.update(is_flag=False, flag_value="on")
    item, nargs, multiple = kind, 1, False
    if typing.get_origin(kind) is tuple:
        args = typing.get_args(kind)
        item, multiple = args[0], args == (str, Ellipsis)
        nargs = len(args) if Ellipsis not in args else 1
    base = NamedChoice(meta["choices"], meta["renamed"]) if meta["choices"] else BASES[item]
    if kind == tuple[float, ...]:
        base = CommaList()
    return cloup.Option([flag], type=Checked(base, meta), nargs=nargs, multiple=multiple, **common)


def notice(text: str) -> None:
    """Show a notice on the console, from rank 0."""
    if distributed.rank() == 0:
        click.echo(f"notice: {text}", err=True)


def build(cls: type[T], values: Mapping[str, Any], where: str | Path) -> T:
    """`config.build`, with a notice for each value that is given by its old name."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FutureWarning)
        found = config.build(cls, values, where)
    for one in caught:
        notice(str(one.message))
    return found


def _read_config(cls: type, ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value:
        _add_defaults(cls, ctx, Path(value), over=True)


def _read_resumed(cls: type, ctx: click.Context, param: click.Parameter, value: bool) -> bool:
    """On --resume, options not given are those of the run in --output."""
    output = ctx.params.get("output")
    if value and output and (Path(output) / "args.yaml").exists():
        _add_defaults(cls, ctx, Path(output) / "args.yaml", over=False)
    return value


def _add_defaults(cls: type, ctx: click.Context, path: Path, over: bool) -> None:
    """Make a file's options the defaults of the command line; over: in front of earlier files'."""
    from fgkd.config.args_file import Values, chain

    values: Values = {}
    for file, given in chain(path, recipe_files.FOLDER):
        checked = config.to_dict(build(cls, given, file))
        values |= {key: checked[key] for key in given}
    for own in ("output", "resume", "overwrite"):
        values.pop(own, None)
    before = dict(ctx.default_map or {})
    ctx.default_map = {**before, **values} if over else {**values, **before}


def _typed(names: Iterable[str]) -> set[str]:
    """Those of these options that are on the command line, and not from a file."""
    source = click.get_current_context().get_parameter_source
    return {name for name in names if source(name) is ParameterSource.COMMANDLINE}


def command(
    cls: type,
    function: Callable[..., None],
    name: str,
    help: str,
    arguments: str = "",
    metavar: str = "",
) -> click.Command:
    """A click command with an option for every field of `cls`, whose value it passes to `function`.

    arguments: the name of positional arguments, which are passed as a list after it. metavar: how
    usage shows them.
    """
    titles = help_pages.GROUPS if name in help_pages.EVERYDAY else ()
    groups = {title: cloup.OptionGroup(title) for title in titles}
    leaves = config.leaves(cls).values()
    options = [_option(leaf, groups) for leaf in leaves]
    order = [*help_pages.GROUPS, None]
    options.sort(key=lambda p: order.index(p.group.title if p.group is not None else None))
    params: list[click.Parameter] = [*options]
    for param in params:
        # --resume reads OUTPUT/args.yaml, so --output is parsed first.
        param.is_eager = param.name == "output"
        if param.name == "resume":
            param.callback = functools.partial(_read_resumed, cls)
    config_file = click.Option(
        ["-c", "--config"],
        type=ConfigFile(exists=True, dir_okay=False),
        is_eager=True,
        expose_value=False,
        callback=functools.partial(_read_config, cls),
        help="Recipe or YAML file; the command line overrides.",
    )
    if arguments:
        params.append(click.Argument([arguments], nargs=-1, metavar=metavar))

    def callback(**values: Any) -> None:
        positional = [list(values.pop(arguments))] if arguments else []
        found: Any = build(cls, values, "the command line")
        config.refuse_unused(found, _typed(values))
        function(found, *positional)

    return help_pages.Command(
        name,
        params=[*params, config_file],
        callback=callback,
        help=help,
        formatter_settings=help_pages.SETTINGS,
    )
