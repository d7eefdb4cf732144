"""Recipes that come with fgkd, by name, and `fgkd recipes`, which lists them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from fgkd.errors import near

FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Recipe:
    """A file of options. Its first two lines are the command that uses it and a summary."""

    name: str
    text: str

    @property
    def command(self) -> str:
        return self.text.splitlines()[0].removeprefix("# ")

    @property
    def summary(self) -> str:
        return self.text.splitlines()[1].removeprefix("# ").removesuffix(".")


def path(name: str) -> Path | None:
    """The file of a recipe; None if there is none of this name."""
    place = FOLDER / f"{name}.yaml"
    return place if "/" not in name and place.is_file() else None


def all_recipes() -> list[Recipe]:
    """All recipes, by name."""
    return [Recipe(file.stem, file.read_text()) for file in sorted(FOLDER.glob("*.yaml"))]


def show(name: str | None) -> None:
    """List the recipes with a line each, or print one."""
    known = all_recipes()
    if name is not None:
        recipe = next((one for one in known if one.name == name), None)
        if recipe is None:
            names = [one.name for one in known]
            raise click.UsageError(f"no recipe is called {name!r}{near(name, names)}")
        click.echo(recipe.text, nl=False)
        return
    width = max(len(one.name) for one in known)
    commands = dict.fromkeys(one.command.split()[1] for one in known)
    for command in sorted(commands, key=("train-teacher cache-logits train-student").find):
        click.echo(f"fgkd {command} -c NAME")
        for one in known:
            if one.command.split()[1] == command:
                click.echo(f"  {one.name:<{width}}  {one.summary}")
        click.echo()
    click.echo("Percentages are the seed project's test top-1, not results of these files.")
    click.echo("fgkd recipes NAME prints a recipe.")
