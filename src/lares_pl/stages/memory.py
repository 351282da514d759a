"""Memory that the C library keeps: batches have ever new sizes, whose freed blocks glibc does not give back by itself.

Without this the resident memory of training on a CPU grows for as long as it runs (`benchmarks/memory.py`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

EVERY = 300  # batches; giving back takes milliseconds


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    """The function of glibc; other C libraries have none."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None


def trim(batch: int) -> None:
    """Give freed memory back to the system after every 300th batch.

    Args:
        batch: number of the batch, from 0.
    """
    if (batch + 1) % EVERY == 0 and (give_back := _malloc_trim()) is not None:
        give_back(0)
