"""Weights for a newer catalogue: items are matched by their original ids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from lares_pl.data.dataset.ids import ItemIndex

ITEM_TABLE, TEXT_TABLE = "embedding.item.weight", "embedding.text.vectors"  # what a backbone has by item


@dataclass(frozen=True)
class CatalogueChange:
    """From one catalogue to another.

    Args:
        rows: index in the old catalogue of each item of the new one, 0 where it has none, `[N + 1]` int64.
        gone: number of old items that the new catalogue lacks.
    """

    rows: Tensor
    gone: int

    @property
    def matched(self) -> int:
        """Number of items in both."""
        return int((self.rows > 0).sum())

    @property
    def new(self) -> int:
        """Number of items that only the new catalogue has."""
        return len(self.rows) - 1 - self.matched

    def __str__(self) -> str:
        return (
            f"{self.matched:,} items matched by id, {self.new:,} new (they start from the mean of the item embeddings), "
            f"{self.gone:,} gone"
        )


def match_catalogues(old: pa.Array, new: pa.Array) -> CatalogueChange:
    """Match items by id.

    Args:
        old, new: original ids of items 1 … N of each.
    """
    found = ItemIndex(old).numbers(new.to_pylist())
    return CatalogueChange(torch.from_numpy(np.concatenate([[0], found])), len(old) - int((found > 0).sum()))


def grown_table(table: Tensor, change: CatalogueChange) -> Tensor:
    """Rows of the matched items and of padding; the mean of all items for new ones.

    Args:
        table: of the old catalogue, `[N_old + 1, d]`.
        change: to the new one.
    """
    grown = table[change.rows]
    grown[1:][change.rows[1:] == 0] = table[1:].mean(dim=0)
    return grown
