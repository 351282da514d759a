"""The house rules: imports go downwards, and Lightning stays above the line."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lares_pl
from tests.conftest import ROOT

PACKAGE = ROOT / "src" / "lares_pl"
# from the top of the house to the bottom; a file may import from its own room and from those below
ROOMS = [
    "cli",
    "recommender",
    "export",
    "reference",
    "report",
    "callbacks",
    "stages",
    "evaluation",
    "objectives",
    "model",
    "data",
    "device",
    "runs",
    "parsing",
    "serialization",
    "atomic_io",
    "errors",
]
LIGHTNING = {"cli", "callbacks", "stages", "reference"}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    inside = path.relative_to(PACKAGE)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def imports(path: Path) -> set[str]:
    """Modules imported when the file is imported (not under TYPE_CHECKING, not inside functions)."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(path: Path) -> None:
    if room(path) in ("__init__", "__main__"):
        return
    mine = ROOMS.index(room(path))
    for module in imports(path):
        if module.startswith("lares_pl."):
            theirs = module.split(".")[1]
            assert ROOMS.index(theirs) >= mine, f"{path.name} imports {module}, which lies above it"
        if module.split(".")[0] in ("lightning", "torchmetrics") and room(path) not in LIGHTNING:
            allowed = (room(path), path.name) == ("data", "module.py") or room(path) == "evaluation"
            assert allowed, f"{path.name} imports {module} below the line"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_readable(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= 450, "one purpose a file"
    assert ast.get_docstring(ast.parse(path.read_text())), "a file says what it is for"


def test_public_names_are_there_and_lazy() -> None:
    assert sorted(lares_pl.__all__) == sorted(lares_pl._MODULE_OF)
    for name in lares_pl.__all__:
        assert getattr(lares_pl, name).__name__ == name
    code = "import sys, lares_pl.cli.main; sys.exit(any(name in sys.modules for name in ('torch', 'pandas', 'lightning')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
