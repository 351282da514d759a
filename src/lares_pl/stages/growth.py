"""Weights for a larger or newer catalogue: items are matched by their original ids, and new ones start from known ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from lares_pl.data.dataset.ids import ItemIndex
from lares_pl.errors import LaresError
from lares_pl.model import tiles
from lares_pl.model.backbone import RecurrentBackbone
from lares_pl.model.embedding import ItemText
from lares_pl.model.tiles import slices

ITEM_TABLE, TEXT_TABLE = "embedding.item.weight", "embedding.text.vectors"  # what a backbone has by item


def nearest_by_text(known: Tensor, asked: Tensor) -> Tensor:
    """The known item whose text vector has the greatest cosine with each given one, `[n]` int64; 0 if either has no text.

    Args:
        known: text vectors of items 1 … N behind that of padding, `[N + 1, p]`; zeros are no text.
        asked: `[n, p]`.
    """
    known = F.normalize(known.float(), dim=1)
    without = ~known.any(dim=1)
    nearest = torch.zeros(len(asked), dtype=torch.int64, device=asked.device)
    for rows in slices(len(asked), max(1, tiles.CHUNK // len(known))):
        vectors = asked[rows].float()
        cosines = (F.normalize(vectors, dim=1) @ known.T).masked_fill(without, -torch.inf)
        nearest[rows] = cosines.argmax(dim=1).where(vectors.any(dim=1), 0)
    return nearest


@dataclass(frozen=True)
class CatalogueChange:
    """From one catalogue to another.

    Args:
        rows: index in the old catalogue of each item of the new one, 0 where it has none, `[N + 1]` int64.
        gone: number of old items that the new catalogue lacks.
        nearest: for new items that have text, the old item nearest by it; 0 for the others, `[N + 1]`. None: there is no text.
    """

    rows: Tensor
    gone: int
    nearest: Tensor | None = None

    @property
    def matched(self) -> int:
        """Number of items in both."""
        return int((self.rows > 0).sum())

    @property
    def new(self) -> int:
        """Number of items that only the new catalogue has."""
        return len(self.rows) - 1 - self.matched

    def with_text(self, known: Tensor, text: Tensor) -> CatalogueChange:
        """The same with the nearest old items, from the text vectors of both, `[N_old + 1, p]` and `[N + 1, p]`."""
        new = (self.rows == 0).nonzero().squeeze(1)
        nearest = torch.zeros_like(self.rows)
        nearest[new] = nearest_by_text(known, text[new])
        return replace(self, nearest=nearest)

    def __str__(self) -> str:
        mean = "from the mean of the item embeddings"
        start = f"they start {mean}"
        if self.nearest is not None:
            with_text = int((self.nearest > 0).sum())
            start = f"{with_text:,} start from the item nearest by text, {self.new - with_text:,} {mean}"
        return f"{self.matched:,} items matched by id, {self.new:,} new ({start}), {self.gone:,} gone"


def match_catalogues(old: pa.Array, new: pa.Array) -> CatalogueChange:
    """Match items by id.

    Args:
        old, new: original ids of items 1 … N of each.
    """
    found = ItemIndex(old).numbers(new.to_pylist())
    return CatalogueChange(torch.from_numpy(np.concatenate([[0], found])), len(old) - int((found > 0).sum()))


def grown_table(table: Tensor, change: CatalogueChange) -> Tensor:
    """Rows of the matched items and of padding; for new ones that of the nearest by text, or the mean of all items.

    Args:
        table: of the old catalogue, `[N_old + 1, d]`.
        change: to the new one.
    """
    rows = change.rows if change.nearest is None else torch.maximum(change.rows, change.nearest)
    grown = table[rows]
    grown[1:][rows[1:] == 0] = table[1:].mean(dim=0)
    return grown


def with_new_items(backbone: RecurrentBackbone, text: Tensor) -> RecurrentBackbone:
    """The same model with further items, known by their text alone: their embeddings are those of the items nearest by text.

    Args:
        backbone: a model that reads text, not sharded.
        text: text vectors of the new items, `[n, p]`, from the encoder of the others.

    Returns:
        A model of N + n items on the same device, in evaluation mode; the new ones come last.

    Raises:
        LaresError: if the model reads no text, the vectors have another size, or one is all zeros.
    """
    weights = backbone.state_dict()
    known = weights.get(TEXT_TABLE)
    if known is None:
        raise LaresError("new items are ranked from their text, and this model reads none; train one with tedrec.yaml")
    if text.shape[1] != known.shape[1]:
        raise LaresError(f"text vectors of {text.shape[1]} values; the model reads {known.shape[1]}: use the same encoder")
    text = text.to(known)
    nearest = nearest_by_text(known, text)
    if not nearest.all():
        raise LaresError(f"{int((nearest == 0).sum()):,} of {len(text):,} new items have no text (only zeros): leave them out")
    text, table = torch.cat([known, text]), weights[ITEM_TABLE]
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn before the others replace them
        grown = RecurrentBackbone(len(text) - 1, backbone.max_length, backbone.config, ItemText(text))
    grown.load_state_dict({**weights, ITEM_TABLE: torch.cat([table, table[nearest]]), TEXT_TABLE: text})
    return grown.to(table.device).eval()
