"""Ranked items of users, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd
import pyarrow as pa

from lares_pl.data.dataset.ids import id_text
from lares_pl.data.loading.external_histories import Id


@dataclass(frozen=True)
class Recommendations:
    """Ranked items of U users.

    Args:
        users: their ids; 0 … U - 1 where the histories had none.
        item_ids: for each the items, best first; none where nothing of the history is known.
        scores: for each their scores, beside the items.
        steps: number of reasoning steps made for each.
        unknown: for each the items of the history that the model does not know, and skipped.
        unknown_candidates: candidates that the model does not know, and can't rank, each once.
        item_type: Arrow's type of the catalogue's ids.
    """

    users: list[Id]
    item_ids: list[list[Id]]
    scores: list[list[float]]
    steps: list[float]
    unknown: list[list[Id]]
    unknown_candidates: list[Id] = field(default_factory=list)
    item_type: pa.DataType = field(default_factory=pa.string)

    def __len__(self) -> int:
        return len(self.users)

    def to_arrow(self) -> pa.Table:
        """A row a user: `user_id` (as text where users are called by text and by numbers), `item_ids`, `scores`, `steps`,
        `unknown` (as text)."""
        unknown = [[str(item) for item in items] for items in self.unknown]
        columns = {
            "user_id": _arrow_ids(self.users),
            "item_ids": pa.array(self.item_ids, pa.list_(self.item_type)),
            "scores": pa.array(self.scores, pa.list_(pa.float32())),
            "steps": pa.array(self.steps, pa.float64()),
            "unknown": pa.array(unknown, pa.list_(pa.string())),
        }
        return pa.table(columns)

    def to_pandas(self) -> pd.DataFrame:
        """A row a recommendation: `user_id`, `rank` (1 is best), `item_id`, `score`."""
        lists = zip(self.users, self.item_ids, self.scores, strict=True)
        rows = [
            (user, rank, item, score)
            for user, items, scores in lists
            for rank, (item, score) in enumerate(zip(items, scores, strict=True), start=1)
        ]
        return pd.DataFrame(rows, columns=["user_id", "rank", "item_id", "score"])


def _arrow_ids(ids: Sequence[Id]) -> pa.Array:
    """Ids of users, as text where they are of several types."""
    try:
        array = pa.array(ids)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([id_text(part) for part in ids], pa.string())
    return array.cast(pa.string()) if pa.types.is_null(array.type) else array
