"""Imports go downwards only, lazy ones included; Lightning stays above the line; files stay short; public names are lazy."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

import lares_pl
from tests.conftest import ROOT

PACKAGE = ROOT / "src" / "lares_pl"
# from top to bottom; a module may import from its own layer and from those below
LAYERS = [
    "cli",
    "recommender",
    "export",
    "reference",
    "report",
    "callbacks",
    "stages",
    "evaluation",
    "losses",
    "model",
    "data.module",
    "data.trips",
    "data.synthetic",
    "data.loading",
    "data.prepare",
    "data.dataset",
    "runs",
    "parsing",
    "checks",
    "serialization",
    "atomic_io",
    "errors",
]
LIGHTNING = {"cli", "callbacks", "stages", "data.module", "reference"}  # the only layers that may import it
TORCHMETRICS = LIGHTNING | {"evaluation"}
PARSER = {"cli", "parsing", "callbacks"}  # jsonargparse
MOST_LINES = 300


def module_name(path: Path) -> str:
    """`data.module` for `data/module.py`; `model.blocks` for its `__init__.py`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def layer(module: str) -> str:
    """The layer of a module; empty for the package itself."""
    (*_, found) = ["", *(name for name in LAYERS if f"{module}.".startswith(f"{name}."))]
    return found


def imports(path: Path) -> set[str]:
    """Modules that a file imports anywhere: at the top, in functions, under `TYPE_CHECKING`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}  # `from lares_pl.model import tiles`
            submodules = {name for name in inner if name.removeprefix("lares_pl.") in MODULES}
            found |= submodules or {node.module}
    return found


def own_imports(module: str) -> set[str]:
    return {name.removeprefix("lares_pl.") for name in imports(MODULES[module]) if name.startswith("lares_pl.")}


def test_every_module_is_in_a_layer() -> None:
    packages = {name for name in LAYERS for _ in [0]} | {"", "__main__", "data"}
    assert not [module for module in MODULES if not layer(module) and module not in packages]


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downwards(module: str) -> None:
    if module in ("", "__main__"):
        return
    mine = LAYERS.index(layer(module)) if layer(module) else -1
    for name in own_imports(module):
        assert LAYERS.index(layer(name)) >= mine, f"{module} imports {name}, which is above it"


def test_there_are_no_import_cycles() -> None:
    """Lazy imports and those for type checkers count too."""
    TopologicalSorter({module: own_imports(module) - {module} for module in MODULES}).prepare()


@pytest.mark.parametrize("module", MODULES)
def test_frameworks_are_imported_only_by_their_layers(module: str) -> None:
    for name in imports(MODULES[module]):
        for framework, layers in (("lightning", LIGHTNING), ("torchmetrics", TORCHMETRICS), ("jsonargparse", PARSER)):
            assert name.split(".")[0] != framework or layer(module) in layers, f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_files_stay_short_and_have_a_purpose(module: str) -> None:
    path = MODULES[module]
    text = path.read_text()
    assert len(text.splitlines()) <= MOST_LINES, "one purpose a file"
    assert ast.get_docstring(ast.parse(text)), "a file's docstring states its purpose"


def test_public_names_exist_and_are_imported_at_first_use() -> None:
    for name in lares_pl.__all__:
        assert getattr(lares_pl, name).__name__ == name
    assert fresh("import lares_pl.cli.main", "torch", "pandas", "lightning", "jsonargparse") == ""


def test_the_model_needs_neither_a_command_line_nor_a_trainer() -> None:
    """Importing a model must not import the parser."""
    used = "import lares_pl; lares_pl.RecurrentBackbone, lares_pl.FMLPBlock, lares_pl.FullSoftmax, lares_pl.RecallReward"
    assert fresh(used, "jsonargparse", "lightning", "lares_pl.cli", "pandas", "wandb") == ""


def fresh(code: str, *modules: str) -> str:
    """Which of some modules a new interpreter has imported after running code."""
    code += f"\nimport sys; print(*(name for name in {modules} if name in sys.modules))"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_the_list_of_public_names_is_sorted_by_module() -> None:
    lines = [line for line in (PACKAGE / "__init__.pyi").read_text().splitlines() if line.startswith("from ")]
    assert all(first.split()[1] <= second.split()[1] for first, second in pairwise(lines))
