"""click options made from the config dataclasses, and the files that -c and --resume read.

One declaration of a field gives its flag, help text, range and key in a file.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from fgkd import config, distributed

T = TypeVar("T")


class Checked(click.ParamType):
    """A click type that also checks the field's range, and refuses nan and inf."""

    def __init__(self, base: click.ParamType, meta: typing.Mapping[str, Any]) -> None:
        self.base, self.meta, self.name = base, meta, base.name
        self.many: str = meta["many"]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        value = self.base.convert(value, param, ctx)
        if problem := config.check(value, {**self.meta, "choices": ()}):
            self.fail(problem, param, ctx)
        return value

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        return self.many or self.base.get_metavar(param, ctx)


class NamedChoice(click.Choice[str]):
    """A choice that also accepts the old names of values, which `config.build` translates."""

    def __init__(self, choices: Sequence[str], renamed: Mapping[str, str]) -> None:
        super().__init__(choices)
        self.renamed = renamed

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value in self.renamed else super().convert(value, param, ctx)


class ConfigFile(click.Path):
    """The path of a YAML file of options; a recipe is also found by the name it had before."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        old = str(value)
        new = re.sub(r"control(?=\.ya?ml$)", "baseline", old)
        if not Path(old).exists() and Path(new).exists():
            notice(f"{old} is now called {new}; the old name will be removed")
            value = new
        return super().convert(value, param, ctx)


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


class Spreading(click.Command):
    """A command whose options of many values take every word up to the next option.

    `--predict a b` means `--predict a --predict b`.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        flags = {p.opts[0] for p in self.params if isinstance(p.type, Checked) and p.type.many}
        spread: list[str] = []
        flag = ""
        for arg in args:
            if arg.startswith("-") and len(arg) > 1:
                _refuse_empty(flag, spread, ctx)
                name = arg.partition("=")[0]
                flag = name if name in flags else ""
            elif flag and spread[-1] != flag:
                spread.append(flag)
            spread.append(arg)
        _refuse_empty(flag, spread, ctx)
        return super().parse_args(ctx, spread)


def _refuse_empty(flag: str, before: list[str], ctx: click.Context) -> None:
    """Refuse `--predict --json x`, which click would read as a path named --json."""
    if flag and before[-1] == flag:
        raise click.UsageError(f"Option '{flag}' requires an argument.", ctx)


BASES: dict[type, click.ParamType] = {int: click.INT, float: click.FLOAT, str: click.STRING}


def _option(field: dataclasses.Field[Any], kind: Any) -> click.Option:
    if isinstance(kind, types.UnionType):  # X | None
        kind = next(arg for arg in typing.get_args(kind) if arg is not type(None))
    flag, meta = "--" + field.name.replace("_", "-"), field.metadata
    common: dict[str, Any] = {"help": meta["help"], "default": field.default}
    common["show_default"] = field.default is not False and field.default not in (None, "", ())
    if kind is bool:
        declaration = f"{flag}/--no-{flag[2:]}" if field.default or not meta["free"] else flag
        return click.Option([declaration], is_flag=True, **common)
    item, nargs, multiple = kind, 1, False
    if typing.get_origin(kind) is tuple:
        args = typing.get_args(kind)
        item, multiple = args[0], args == (str, Ellipsis)
        nargs = len(args) if Ellipsis not in args else 1
    base = NamedChoice(meta["choices"], meta["renamed"]) if meta["choices"] else BASES[item]
    if kind == tuple[float, ...]:
        base = CommaList()
    return click.Option([flag], type=Checked(base, meta), nargs=nargs, multiple=multiple, **common)


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
    from fgkd.config.args_file import load_yaml

    values = load_yaml(path)
    checked = config.to_dict(build(cls, values, path))
    own = ("output", "resume", "overwrite")
    values = {key: checked[key] for key in values if key not in own}
    before = dict(ctx.default_map or {})
    ctx.default_map = {**before, **values} if over else {**values, **before}


def command(
    cls: type,
    function: Callable[..., None],
    name: str,
    help: str,
    arguments: str = "",
) -> click.Command:
    """A click command with an option for every field of `cls`, whose value it passes to `function`.

    arguments: the name of positional arguments, which are passed as a list after it.
    """
    params: list[click.Parameter] = [
        _option(leaf.field, leaf.kind) for leaf in config.leaves(cls).values()
    ]
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
        help="YAML file of options; the command line overrides it.",
    )
    if arguments:
        params.append(click.Argument([arguments], nargs=-1, metavar=arguments.upper()[:-1] + "..."))

    def callback(**values: Any) -> None:
        positional = [list(values.pop(arguments))] if arguments else []
        function(build(cls, values, "the command line"), *positional)

    return Spreading(name, params=[config_file, *params], callback=callback, help=help)
