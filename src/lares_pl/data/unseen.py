"""Histories from outside a prepared dataset, in terms of its catalogue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from lares_pl.data.dataset import SequenceDataset
from lares_pl.data.formats import Columns, read_interactions
from lares_pl.errors import LaresError


def read_histories(path: Path, columns: Columns, known: SequenceDataset) -> SequenceDataset:
    """Sequences of a file of interactions, with the item indices of a prepared dataset.

    Args:
        path: the file, in a format `lares prepare` reads.
        columns: names of its columns.
        known: the dataset whose catalogue counts.

    Raises:
        LaresError: if the file can't be read or names an item that the catalogue does not hold.
    """
    table = pd.concat(list(read_interactions(path, columns)), ignore_index=True)
    index_of = pd.Index([str(item_id) for item_id in known.item_ids.to_pylist()])
    items = index_of.get_indexer(pd.Index(table["item"].astype(str))) + 1
    unknown = items == 0
    if unknown.any():
        row = table.iloc[int(np.argmax(unknown))]
        raise LaresError(
            f"{path}: item {row['item']!r} of user {row['user']!r} is not in the catalogue of {known.path} "
            f"({int(unknown.sum())} of {len(table)} rows are unknown). Leave such rows out, or train on data that has them."
        )
    users, user_ids = pd.factorize(table["user"])
    order = np.lexsort((table["time"], users)) if "time" in table.columns else np.argsort(users, kind="stable")
    offsets = np.concatenate([[0], np.bincount(users).cumsum()])
    return SequenceDataset.of_arrays(items[order].astype(np.int32), offsets, pa.array(user_ids), known.item_ids, str(path))
