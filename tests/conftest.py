"""Where the shared read-only material lies, and how a test says that it is missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


def golden_files() -> list[Path]:
    folder = Path(os.environ.get("LARES_GOLDEN_DIR", SHARED / "golden"))
    return sorted(folder.glob("*.npz"))


@pytest.fixture(scope="session")
def ml_100k() -> Path:
    return _shared("ml-100k/ml-100k.inter")


@pytest.fixture(scope="session")
def beauty() -> Path:
    return _shared("beauty/Beauty.txt")


def _shared(name: str) -> Path:
    path = SHARED / "data" / name
    if not path.exists():
        pytest.skip(f"real data is missing: {path}")
    return path
