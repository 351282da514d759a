"""Items that a model was not trained on, known by text vectors."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from lares_pl.data.dataset.ids import ItemIndex, id_text
from lares_pl.data.loading.external_histories import Id
from lares_pl.errors import LaresError


def read_new_items(path: Path) -> tuple[list[Id], np.ndarray]:
    """Ids and text vectors `[n, p]` of a Parquet file with the columns `item_id` and `embedding`, such as `items.parquet`.

    Raises:
        LaresError: if it can't be read, or has no such columns.
    """
    try:
        table = pq.read_table(path, columns=["item_id", "embedding"]).combine_chunks()
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise LaresError(f"{path}: expected Parquet with the columns item_id and embedding: {reason}") from error
    try:
        sizes = set(pc.list_value_length(table["embedding"]).to_pylist())
        (size,) = sizes or {1}
        vectors = table["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        return table["item_id"].to_pylist(), vectors.reshape(-1, size)
    except (ValueError, TypeError, pa.ArrowException) as error:
        raise LaresError(f"{path}: embedding must have a list of numbers for each item, all of one length") from error


def unknown_items(index: ItemIndex, item_ids: Iterable[Id], vectors: np.ndarray) -> tuple[list[Id], Tensor]:
    """Ids and vectors `[n, p]` of items that are not in the catalogue and have text.

    Args:
        index: the catalogue.
        item_ids: original ids.
        vectors: their text vectors, zeros where there is no text.

    Raises:
        LaresError: if an id occurs twice, or the vectors are not finite numbers, one for each id.
    """
    ids = pd.Series(list(item_ids), dtype=object)
    vectors = np.asarray(vectors, dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) != len(ids) or not np.isfinite(vectors).all():
        raise LaresError(f"{len(ids):,} new items need as many vectors of finite numbers, got an array {list(vectors.shape)}")
    again = ids.map(id_text).duplicated()  # 99 and "99" are one id
    if again.any():
        raise LaresError(f"new item {ids[again].iloc[0]!r} occurs twice")
    chosen = (index.numbers(ids) == 0) & vectors.any(axis=1)
    return ids[chosen].tolist(), torch.from_numpy(vectors[chosen])
