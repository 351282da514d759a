"""The notebooks run, and their committed outputs are current."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ABSOLUTE_PATH = re.compile(r"""(?:^|[\s"'(=>])(/[\w.-]+/[\w./-]+|[A-Z]:\\\w+)""")
of_each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(cell: NotebookNode) -> list[str]:
    """Everything visible in a cell, except images."""
    shown = [cell.source]
    for output in cell.get("outputs", []):
        shown.append(output.get("text", ""))
        shown += [text for kind, text in output.get("data", {}).items() if kind.startswith("text/")]
    return shown


def kinds(cell: NotebookNode) -> set[str]:
    """The output of a cell: streams, and the types of results and images."""
    return {kind for output in cell.outputs for kind in output.get("data", [output.get("name", output.output_type)])}


def test_notebooks_exist() -> None:
    assert {"quick_start", "steps", "own_block"} <= {path.stem for path in NOTEBOOKS}


@of_each_notebook
def test_committed_outputs_are_clean(path: Path) -> None:
    """The notebook was run once from top to bottom; outputs have no errors, warnings, progress bars or local paths."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))
    for cell in notebook.cells:
        for text in texts(cell):
            assert not ABSOLUTE_PATH.findall(text), text
    for cell in code_cells(notebook):
        assert not kinds(cell) & {"stderr", "error"}, cell.source


def shortened(notebook: NotebookNode) -> NotebookNode:
    """The notebook with 40 updates a training: what it shows comes from the run that was committed."""
    count = 0
    for cell in code_cells(notebook):
        cell.source, here = re.subn(r"\b(updates = (?:\d+, )?)\d+", r"\g<1>40", cell.source)
        count += here
    assert count == 1
    return notebook


@pytest.mark.slow
@of_each_notebook
def test_notebook_runs_and_its_outputs_are_committed(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))  # no start-up files of a person's own
    notebook = shortened(nbformat.read(path, as_version=4))
    committed = [kinds(cell) for cell in code_cells(notebook)]
    # no folders to look for kernels in: what is left is that of the running interpreter
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    assert manager.format_kernel_cmd()[0] == sys.executable
    client = NotebookClient(notebook, km=manager, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(cleanup_kc=True)  # raises where a cell does
    assert [kinds(cell) for cell in code_cells(notebook)] == committed
