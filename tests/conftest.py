"""Data shared by tests: reference values, real data if the machine has it, and generated logs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from lares_pl.data.prepare.command import prepare
from lares_pl.data.synthetic import Process, write_interactions

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
REAL_DATA = Path(os.environ.get("LARES_DATA_DIR", ROOT.parent / "shared" / "data"))  # no test needs it, some use it

torch.set_num_threads(1)  # small tensors, and a test process a core
os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest test, so that in the end no process works on it alone."""
    items.sort(key=lambda item: "test_wheel" not in item.nodeid)


def golden_files() -> list[Path]:
    """The committed reference values, and those of the directory LARES_GOLDEN_DIR, if set."""
    further = os.environ.get("LARES_GOLDEN_DIR")
    return sorted(GOLDEN.glob("*.npz")) + (sorted(Path(further).glob("*.npz")) if further else [])


@pytest.fixture(scope="session")
def ml_100k() -> Path:
    return _real("ml-100k/ml-100k.inter")


@pytest.fixture(scope="session")
def interactions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log with an odd number of users (189) and an even number of items (600), each at least five times."""
    path = tmp_path_factory.mktemp("log") / "interactions.tsv"
    write_interactions(Process(users=189, topics=30, topic_size=20, min_length=20, max_length=100, noise=0.3), path)
    return path


@pytest.fixture(scope="session")
def beauty() -> Path:
    return _real("beauty/Beauty.txt")


@pytest.fixture(scope="session")
def scientific() -> Path:
    return _real("scientific")


def _real(name: str) -> Path:
    path = REAL_DATA / name
    if not path.exists():
        pytest.skip(f"real data is missing: {path} (LARES_DATA_DIR names the directory)")
    return path


@pytest.fixture(scope="session")
def toy_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small prepared dataset of the embedded process: 61 users (an odd number), 40 items."""
    folder = tmp_path_factory.mktemp("toy")
    process = Process(users=61, topics=4, topic_size=10, min_length=2, max_length=14)
    write_interactions(process, folder / "toy.tsv")
    prepare(str(folder / "toy.tsv"), str(folder / "dataset"))
    return folder / "dataset"
