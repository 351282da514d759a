"""Original item ids: lookup, and packing into tensors for checkpoints, which are read without running code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
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
    if isinstance(item_id, Decimal) and item_id.is_finite():
        return format(item_id.normalize(), "f")
    return str(item_id)


def plain_ids(ids: pd.Series) -> pd.Series:
    """Ids in one of two types: int64 where all are numbers, whole and of 64 bits; else text (`id_text`).

    So an id has one spelling, whether a file has it as a whole number, a floating-point number or a decimal.
    """
    if isinstance(ids.dtype, pd.CategoricalDtype):
        ids = ids.astype(ids.cat.categories.dtype)
    if isinstance(ids.dtype, pd.StringDtype):
        return ids.astype("str")
    try:
        array = pa.array(ids, from_pandas=True)
        if pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_decimal(array.type):
            return pd.Series(array.cast(pa.int64()).to_numpy(zero_copy_only=False), index=ids.index)
        if pa.types.is_string(array.type):  # of pandas 2
            return ids.astype("str")
    except pa.ArrowException:  # of several types, with fractions, too large
        pass
    return ids.map(id_text).astype("str")


def zero_fraction(text: str) -> str | None:
    """The `.0` (or `.00`, …) at the end of a whole number as floating point and decimals are written; None elsewhere."""
    found = re.fullmatch(r"-?\d+(\.0+)", text)
    return found[1] if found else None


def without_zero_fraction(ids: pd.Series) -> pd.Series:
    """Text that is all whole numbers with the same zeros behind the point (`15.0`) as whole numbers; else as it is."""
    if pd.api.types.is_numeric_dtype(ids) or ids.empty or (fraction := zero_fraction(ids.iloc[0])) is None:
        return ids
    if not ids.str.fullmatch(rf"-?\d+{re.escape(fraction)}").all():
        return ids
    return ids.str[: -len(fraction)]


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
        self._index = pd.Index([id_text(item_id) for item_id in ids.to_pylist()], dtype="str")
        self._whole = bool(self._index.str.fullmatch(r"-?\d+").all())  # so that `11.0` can only mean 11

    def numbers(self, ids: Iterable[Any]) -> np.ndarray:
        """Item indices of original ids, compared as text, `[n]` int64; 0 where there is no such item.

        In a catalogue of whole numbers `11.0` is 11: so files have it where a program held ids in floating point.
        """
        asked = pd.Index([id_text(item_id) for item_id in ids], dtype="str")
        found: np.ndarray = self._index.get_indexer(asked)
        if self._whole and len(asked):
            floating = (found < 0) & np.asarray(asked.str.fullmatch(r"-?\d+\.0+"), dtype=bool)
            found[floating] = self._index.get_indexer(asked[floating].str.replace(r"\.0+$", "", regex=True))
        return found + 1
