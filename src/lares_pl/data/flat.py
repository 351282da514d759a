"""Flat copies of a prepared dataset's sequences, which every process of a machine maps instead of decoding Parquet for itself.

`sequences.parquet` is what counts: the copies are used only if they were made from it as it stands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

ITEMS, OFFSETS = "flat-items.npy", "flat-offsets.npy"
RECORD = "flat_of_bytes"  # in dataset.json: the size of the file they were made from


def write_flat(folder: Path, items: np.ndarray, offsets: np.ndarray) -> dict[str, int]:
    """Write the copies beside `sequences.parquet`.

    Args:
        folder: of the dataset.
        items: of all users one after the other, `[n]` int32.
        offsets: where each user's items begin, and the end, `[users + 1]` int64.

    Returns:
        What `dataset.json` is to say about them.
    """
    np.save(folder / ITEMS, items)
    np.save(folder / OFFSETS, offsets)
    return {RECORD: (folder / "sequences.parquet").stat().st_size}


def map_flat(folder: Path, description: dict[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
    """Items and offsets, mapped read-only; None where there are no copies, or not of this file.

    Args:
        folder: of the dataset.
        description: its `dataset.json`.
    """
    try:
        if (folder / "sequences.parquet").stat().st_size != description[RECORD]:
            return None
        items, offsets = (np.load(folder / name, mmap_mode="r") for name in (ITEMS, OFFSETS))
    except (OSError, ValueError, KeyError):  # none, or damaged: Parquet is read
        return None
    kinds = items.dtype == np.int32 and offsets.dtype == np.int64
    counts = (len(offsets) - 1, len(items)) == (description.get("users"), description.get("interactions"))
    whole = kinds and counts and offsets[0] == 0 and offsets[-1] == len(items) and bool((np.diff(offsets) >= 0).all())
    return (items, offsets) if whole else None
