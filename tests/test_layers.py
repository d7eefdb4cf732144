"""Imports point down only, from the table of the layers."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = (
    ("fgkd.errors", "fgkd.rng"),
    (
        *("fgkd.fsio", "fgkd.schema", "fgkd.distributed", "fgkd.view_ops", "fgkd.weights"),
        *("fgkd.costs", "fgkd.device", "fgkd.trunk"),
    ),
    ("fgkd.results_config",),
    (
        *("fgkd.plan", "fgkd.data", "fgkd.views", "fgkd.targets", "fgkd.models", "fgkd.optim"),
        *(
            "fgkd.checkpoint",
            "fgkd.config",
            "fgkd.peers",
            "fgkd.report.page",
            "fgkd.cache.manifest",
        ),
    ),
    ("fgkd.image_store",),
    (
        *("fgkd.losses", "fgkd.metrics", "fgkd.rundir", "fgkd.fetch", "fgkd.export"),
        *("fgkd.cache.hdf5", "fgkd.cache.wds", "fgkd.cache.stats", "fgkd.report.quality"),
    ),
    (
        "fgkd.cache.store",
        "fgkd.workers",
        "fgkd.report.tables",
        "fgkd.intervals",
        "fgkd.report.findings",
        "fgkd.batch",
        "fgkd.report.thumbs",
    ),
    ("fgkd.cache.reader", "fgkd.report.plots"),
    ("fgkd.cache.remote",),
    ("fgkd.loader",),
    ("fgkd.engine", "fgkd.inference"),
    ("stages.session", "stages.options"),
    ("stages.assembly", "stages.board", "stages.capture"),
    ("stages.training", "stages.dry_run"),
    (
        *("stages.planner", "stages.verify", "stages.source", "stages.predict", "stages.export"),
        "stages.examples",
    ),
    ("stages.report_sections", "stages.gallery"),
    ("stages.report_page",),
    (
        *("stages.train_teacher", "stages.cache_logits", "stages.train_student"),
        *("stages.evaluate", "stages.inspect_cache"),
    ),
    ("stages.cli",),
    ("stages.__main__",),
)
LAYER_OF = {module: number for number, layer in enumerate(LAYERS) for module in layer}
EMPTY = {"fgkd", "fgkd.cache", "fgkd.report", "stages"}  # packages that only say what they are
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("fgkd", "stages")
    for path in sorted((ROOT / package).rglob("*.py"))
}


def place(module: str) -> str:
    """The table's entry for a module: itself, or the package that counts as one module."""
    return "fgkd.data" if module.startswith("fgkd.data.") else module


def imported(name: str) -> set[str]:
    """Modules that a module imports anywhere, absolute; `from . import x` gives x."""
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


@pytest.mark.parametrize("name", sorted(set(FILES) - EMPTY))
def test_imports_point_down(name: str) -> None:
    own = place(name)
    assert own in LAYER_OF, f"{name} is in no layer of the table"
    for other in map(place, imported(name) & set(FILES)):
        below = other == own or LAYER_OF[other] < LAYER_OF[own]
        assert below, f"{name} imports {other}, which is not below it"


def test_the_table_names_what_exists() -> None:
    assert set(LAYER_OF) <= set(FILES)
    assert not any(imported(name) for name in EMPTY)


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("fgkd")])
def test_the_library_neither_prints_nor_parses_arguments(name: str) -> None:
    roots = {module.split(".")[0] for module in imported(name)}
    assert not roots & {"stages", "click", "argparse"}
    names = {n.id for n in ast.walk(ast.parse(FILES[name].read_text())) if isinstance(n, ast.Name)}
    assert "print" not in names
