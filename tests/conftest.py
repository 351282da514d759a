"""Where the shared read-only material lies, and how a test says that it is missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from lares_pl.data.prepare.command import prepare
from lares_pl.data.synthetic import Process, write_interactions

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

torch.set_num_threads(1)  # small tensors, and a test process a core
os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start


def golden_folder() -> Path:
    return Path(os.environ.get("LARES_GOLDEN_DIR", SHARED / "golden"))


def golden_files() -> list[Path]:
    return sorted(golden_folder().glob("*.npz"))


@pytest.fixture(scope="session")
def ml_100k() -> Path:
    return _shared("ml-100k/ml-100k.inter")


@pytest.fixture(scope="session")
def ml_100k_part(ml_100k: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every fifth user of ML-100K: 189 users, 1,390 items, where all of them would only take longer."""
    header, *rows = ml_100k.read_text().splitlines(keepends=True)
    path = tmp_path_factory.mktemp("part") / ml_100k.name
    path.write_text(header + "".join(row for row in rows if int(row.split("\t", 1)[0]) % 5 == 2))
    return path


@pytest.fixture(scope="session")
def beauty() -> Path:
    return _shared("beauty/Beauty.txt")


@pytest.fixture(scope="session")
def scientific() -> Path:
    return _shared("scientific")


def _shared(name: str) -> Path:
    path = SHARED / "data" / name
    if not path.exists():
        pytest.skip(f"real data is missing: {path}")
    return path


@pytest.fixture(scope="session")
def toy_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small prepared dataset of the embedded process: 61 users (an odd number), 40 items."""
    folder = tmp_path_factory.mktemp("toy")
    process = Process(users=61, stations=36, kinds=2, min_length=2, max_length=14)
    write_interactions(process, folder / "toy.tsv")
    prepare(str(folder / "toy.tsv"), str(folder / "dataset"))
    return folder / "dataset"
