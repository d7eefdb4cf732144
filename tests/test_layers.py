"""The structure of the code: imports point one way, and the library neither prints nor parses."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Packages and modules of fgkd, from the ground up: each imports only what stands before it.
ORDER = (
    *(
        "errors",
        "packages",
        "rng",
        "comparison",
        "files",
        "download",
        "progress",
        "config",
        "distributed",
        "compilation",
        "device",
    ),
    *("losses", "data", "views", "models", "cache", "loading", "evaluation", "training"),
    *("distillation", "report", "estimate", "commands"),
)
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("fgkd", "stages")
    for path in sorted((ROOT / package).rglob("*.py"))
}
LIBRARY = [name for name in FILES if name.startswith("fgkd.")]


def imported(name: str) -> set[str]:
    """Modules of the project that a module imports anywhere; `from package import x` gives x."""
    path = FILES[name]
    parents = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            up = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*up, *([node.module] if node.module else [])])
            inside = {f"{base}.{alias.name}" for alias in node.names} & set(FILES)
            found |= inside or {base}
    return found


def package(name: str) -> str:
    """`fgkd.views.recipes` -> `views`."""
    return name.split(".")[1]


@pytest.mark.parametrize("name", LIBRARY)
def test_imports_point_one_way(name: str) -> None:
    own = ORDER.index(package(name))
    for other in imported(name) & set(LIBRARY):
        assert ORDER.index(package(other)) <= own, f"{name} imports {other}"


def test_no_two_modules_import_each_other() -> None:
    graph = {name: imported(name) & set(FILES) - {name} for name in FILES}
    done: set[str] = set()
    while ready := {name for name in graph if name not in done and graph[name] <= done}:
        done |= ready
    assert sorted(set(graph) - done) == []


def test_every_package_has_a_place_in_the_order() -> None:
    assert {package(name) for name in LIBRARY} <= set(ORDER)


@pytest.mark.parametrize("name", LIBRARY)
def test_the_library_neither_prints_nor_parses_arguments(name: str) -> None:
    roots = {module.split(".")[0] for module in imported(name)}
    assert not roots & {"stages", "click", "argparse", "rich"}
    tree = ast.parse(FILES[name].read_text())
    assert "print" not in {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
