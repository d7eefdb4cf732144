"""Optional packages, and errors that say how to install them."""

from __future__ import annotations

import importlib.util

from fgkd.errors import MissingPackage


def require(purpose: str, *packages: str) -> None:
    """Raise MissingPackage unless these packages are installed. purpose: what needs them."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            message = f"{purpose} needs the package {package}"
            raise MissingPackage(message, package=package, install=" ".join(packages))
