"""Builds a dataset of emoji in colour, split by designer, from packages of the npm registry.

    pip install resvg-py fsspec aiohttp
    python scripts/emoji.py runs/emoji
    fgkd train-teacher --data folder:runs/emoji ...

A class is an emoji of an animal, a plant, food or drink that eight of the ten sets of drawings
have; with --all, an emoji of anything that seven of them have. The sets of one designer are in one
split: training, val and test show different hands. The folder has LICENSES.md; the drawings are not
in this repository.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import shutil
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from fgkd.download import download
from fgkd.errors import FgkdError
from fgkd.packages import require

REGISTRY = "https://registry.npmjs.org"
CATEGORIES = ("Animals & Nature", "Food & Drink")
NAMES = "noto"  # whose metadata sort the emoji into categories


@dataclass(frozen=True)
class Set:
    """A set of drawings, a package of Iconify's. sha512: of its archive, as npm states it."""

    version: str
    split: str
    licence: str
    sha512: str

    def url(self, name: str, registry: str) -> str:
        """Where its archive is."""
        return f"{registry}/@iconify-json/{name}/-/{name}-{self.version}.tgz"


SETS = {
    "noto": Set(
        *("1.2.9", "train", "Apache-2.0"),
        "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
    ),
    "noto-v1": Set(
        *("1.2.5", "train", "Apache-2.0"),
        "/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
    ),
    "fluent-emoji": Set(
        *("1.2.7", "train", "MIT"),
        "D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA==",
    ),
    "fluent-emoji-flat": Set(
        *("1.2.6", "train", "MIT"),
        "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
    ),
    "fxemoji": Set(
        *("1.2.2", "train", "Apache-2.0"),
        "UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ==",
    ),
    "streamline-emojis": Set(
        *("1.2.4", "train", "CC-BY-4.0"),
        "iNr9T9XuZVTyQPJO8ZlLxBzPkpi7qMl+z1l0C31vpEMqhPMelth3n7CeWQYtixdetDPdI81yeG4ROqjWpYJE6A==",
    ),
    "emojione": Set(
        *("1.2.3", "val", "CC-BY-4.0"),
        "T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
    ),
    "emojione-v1": Set(
        *("1.2.3", "val", "CC-BY-SA-4.0"),
        "UjI2VQEXVtGlPBvQuxEizro7QCgBcJDOYwKUupquvvZ8UV4xOlvm45IU82JYWegiAWLerY79gFLMZ26U6Ms+ww==",
    ),
    "twemoji": Set(
        *("1.2.5", "test", "CC-BY-4.0"),
        "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
    ),
    "openmoji": Set(
        *("1.2.29", "test", "CC-BY-SA-4.0"),
        "vXdhkqcXVSO6suy+m9LbcUM3OdVyuNOtpV8/als/WqfkQIRxevL5Geb/g+6GH/Qwnq1OqksEmaDGTCmZ5nFKJQ==",
    ),
}
LEAST_SETS = 8  # that have a drawing of each class; fxemoji and streamline-emojis have few
LEAST_OF_ALL = 7  # the same with --all: 1,054 classes


@dataclass(frozen=True)
class Drawings:
    """A set's content. icons: SVG elements by name. size: (width, height) of those without."""

    icons: dict[str, dict[str, Any]]
    aliases: dict[str, dict[str, Any]]
    size: tuple[float, float]
    categories: dict[str, list[str]]

    def svg(self, name: str) -> str | None:
        """A drawing as an SVG document; None if there is none of this name."""
        name = self.aliases.get(name, {}).get("parent", name)
        icon = self.icons.get(name)
        if icon is None:
            return None
        left, top = icon.get("left", 0), icon.get("top", 0)
        width, height = icon.get("width", self.size[0]), icon.get("height", self.size[1])
        box = f"{left} {top} {width} {height}"
        return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{icon["body"]}</svg>'


def fetch(name: str, given: Set, registry: str, folder: Path) -> Drawings:
    """Download a set and read it. Raises: ClickException when it is not the archive expected."""
    path = folder / f"{name}.tgz"
    download(given.url(name, registry), path)
    found = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if found != given.sha512:
        raise click.ClickException(f"{given.url(name, registry)} has another sha512: {found}")
    with tarfile.open(path) as archive:
        icons, metadata = (_member(archive, one) for one in ("icons.json", "metadata.json"))
    size = (icons.get("width", 16), icons.get("height", 16))
    categories = metadata.get("categories", {})
    return Drawings(icons["icons"], icons.get("aliases", {}), size, categories)


def _member(archive: tarfile.TarFile, name: str) -> dict[str, Any]:
    try:
        file = archive.extractfile(f"package/{name}")
    except KeyError:
        return {}
    assert file is not None
    content: dict[str, Any] = json.load(file)
    return content


def classes(sets: dict[str, Drawings], everything: bool) -> list[str]:
    """Emoji of the two categories, or of all of them, that so many sets have, by name."""
    categories, least = sets[NAMES].categories, LEAST_OF_ALL if everything else LEAST_SETS
    chosen = categories if everything else CATEGORIES
    names = {name for one in chosen for name in categories.get(one, [])}
    counts = {name: sum(one.svg(name) is not None for one in sets.values()) for name in names}
    return sorted(name for name, count in counts.items() if count >= least)


@click.command(help=(__doc__ or "").splitlines()[0])
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--size", type=click.IntRange(16), default=96, show_default=True, help="In pixels.")
@click.option("--all", "everything", is_flag=True, help="Of everything, not of nature and food.")
@click.option("--registry", default=REGISTRY, show_default=True, help="URL of an npm registry.")
def main(output: Path, size: int, everything: bool, registry: str) -> None:
    if output.exists():
        raise click.ClickException(f"{output} exists; name a new folder")
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{output.name}.", dir=output.parent))
    try:
        print(build(partial, size, everything, registry))
        partial.chmod(0o755)
        partial.rename(output)
    except FgkdError as error:
        raise click.ClickException(error.message) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def build(folder: Path, size: int, everything: bool, registry: str) -> str:
    """Fill an empty folder; a line that says with what."""
    require("drawing SVG", "resvg_py")
    import resvg_py

    with tempfile.TemporaryDirectory() as archives:
        sets = {name: fetch(name, one, registry, Path(archives)) for name, one in SETS.items()}
    chosen, count = classes(sets, everything), dict.fromkeys(("train", "val", "test"), 0)
    for (name, drawings), label in itertools.product(sets.items(), chosen):
        if svg := drawings.svg(label):
            path = folder / SETS[name].split / label / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = resvg_py.svg_to_bytes(
                svg_string=svg, width=size, background="#ffffff", skip_system_fonts=True
            )
            path.write_bytes(bytes(image))
            count[SETS[name].split] += 1
    lines = [f"* {name} {one.version}: {one.licence}\n" for name, one in SETS.items()]
    text = "Drawn from the npm packages @iconify-json/NAME:\n\n" + "".join(lines)
    (folder / "LICENSES.md").write_text(text)
    images = ", ".join(f"{number} {split}" for split, number in count.items())
    return f"{len(chosen)} classes; {images} images of {size} px"


if __name__ == "__main__":
    main()
