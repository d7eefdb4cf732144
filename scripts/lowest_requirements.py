"""Prints the lowest versions that pyproject.toml names, as a requirements file.

Packages that only tests and examples need are as in requirements.txt.
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PIN = re.compile(r"([A-Za-z0-9_.-]+)\s*(?:>=|==)\s*([0-9][^,;\s]*)")


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    ranges = [*project["dependencies"], *(one for extra in extras for one in extra)]
    lowest = dict(found.groups() for one in ranges if (found := PIN.match(one)))
    tested = dict(PIN.findall((ROOT / "requirements.txt").read_text()))
    known = {name.lower() for name in lowest}
    lowest |= {name: version for name, version in tested.items() if name.lower() not in known}
    print("\n".join(f"{name}=={version}" for name, version in lowest.items()))


if __name__ == "__main__":
    main()
