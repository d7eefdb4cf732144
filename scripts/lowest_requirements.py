"""Prints the lowest versions that pyproject.toml names, as a requirements file.

Packages that only the tests need are as in requirements.txt; those that only the examples need are
left out, as they ask for later versions than fgkd does.
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PIN = re.compile(r"([A-Za-z0-9_.-]+)\s*(?:>=|==)\s*([0-9][^,;\s]*)")


def main() -> None:
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = found["project"]
    extras = project["optional-dependencies"].values()
    ranges = [*project["dependencies"], *(one for extra in extras for one in extra)]
    pinned = (ROOT / "requirements.txt").read_text()
    lowest = dict(PIN.findall(pinned.partition("# development\n")[2]))
    for one in [*ranges, *found["build-system"]["requires"]]:
        lowest |= dict(PIN.findall(one))
    print("\n".join(f"{name}=={version}" for name, version in lowest.items()))


if __name__ == "__main__":
    main()
