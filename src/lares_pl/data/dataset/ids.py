"""Original item ids: lookup, and packing into tensors for checkpoints, which are read without running code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from lares_pl.errors import LaresError


def id_text(item_id: Any) -> str:
    """Return an original id as text, by which ids are compared; it does not depend on the Python or numpy type of the id.

    A float with an integer value is written as an integer: pandas converts a column of integers to floats if one is missing.
    Timestamps are written as Python and pandas write them, also those of numpy.
    """
    if isinstance(item_id, str):
        return str(item_id)
    if isinstance(item_id, pa.Scalar):
        return id_text(item_id.as_py())
    if isinstance(item_id, np.datetime64):
        return str(pd.Timestamp(item_id))
    if isinstance(item_id, float | np.floating):
        number = float(item_id)
        return str(int(number)) if number.is_integer() else str(number)
    return str(item_id)


def packed_ids(ids: pa.Array) -> dict[str, Tensor]:
    """Pack N original ids as `numbers` `[N]` int64, or as `text` (concatenated UTF-8) and its `ends` `[N]`.

    Ids that are neither integers nor text become text (`id_text`).
    """
    if pa.types.is_integer(ids.type) and ids.type != pa.uint64():
        return {"numbers": torch.from_numpy(ids.cast(pa.int64()).to_numpy().copy())}
    encoded = [id_text(item_id).encode() for item_id in ids.to_pylist()]
    ends = np.cumsum([len(part) for part in encoded], dtype=np.int64)
    return {"text": torch.from_numpy(np.frombuffer(b"".join(encoded), dtype=np.uint8).copy()), "ends": torch.from_numpy(ends)}


def unpacked_ids(packed: Mapping[str, Tensor]) -> pa.Array:
    """Unpack ids packed by `packed_ids`: an array of int64 or of text.

    Raises:
        LaresError: if they are damaged.
    """
    if set(packed) == {"numbers"} and packed["numbers"].dtype == torch.int64 and packed["numbers"].ndim == 1:
        return pa.array(packed["numbers"].numpy())
    wanted = {"text": torch.uint8, "ends": torch.int64}
    if {name: part.dtype for name, part in packed.items()} != wanted or any(part.ndim != 1 for part in packed.values()):
        raise LaresError("its item ids are neither numbers nor text")
    text, offsets = packed["text"].numpy(), np.concatenate([[0], packed["ends"].numpy()])
    if offsets[-1] != len(text):
        raise LaresError("its item ids are truncated")
    buffers = [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(text.tobytes())]
    try:
        ids = pa.Array.from_buffers(pa.large_string(), len(offsets) - 1, buffers)
        ids.validate(full=True)
    except pa.ArrowInvalid as error:
        raise LaresError(f"its item ids are damaged: {error}") from error
    return ids


class ItemIndex:
    """Looks up items by their original ids.

    Args:
        ids: original ids of items 1 … N.
    """

    def __init__(self, ids: pa.Array) -> None:
        self._index = pd.Index([id_text(item_id) for item_id in ids.to_pylist()])

    def numbers(self, ids: Iterable[Any]) -> np.ndarray:
        """Return the item indices of original ids, compared as text, `[n]` int64; 0 for an unknown id."""
        found: np.ndarray = self._index.get_indexer(pd.Index([id_text(item_id) for item_id in ids], dtype=self._index.dtype))
        return found + 1
