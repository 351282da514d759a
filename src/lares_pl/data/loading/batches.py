"""A batch of instances, and histories cut from the flat array without a Python loop over rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lares_pl.data.dataset.instances import ranges
from lares_pl.data.loading.histories import Histories
from lares_pl.data.loading.item_pairs import ItemPairs, items_read


@dataclass  # not frozen: Lightning's true-precision plugins rebuild a batch field by field
class Batch:
    """B instances.

    Args:
        histories: their histories, B of them; or, with `target_positions`, windows of which each holds several.
        targets: target items, `[B]`; 0 if there is none to predict.
        instances: index of each instance in its split, `[B]`.
        valid: False for rows that only pad the last batch of a process, `[B]`.
        target_positions: tokens of `histories` (indices into its items) at which the instances' histories end, `[B]`,
            ascending; None: the last of each history.
        aligned: histories of the S instances that are aligned; None: those of all instances.
        aligned_targets: their targets, `[S]`; None: those of all instances.
        partners: for each aligned history, that of another training instance with the same target.
        seen_rows, seen_items: pairs (row, item) of the items of each user before the target, rows ascending, `[E]` each.
        read_rows, read_items: pairs (row, item) of the different items of each history, rows ascending, `[E]` each.
    """

    histories: Histories
    targets: Tensor
    instances: Tensor
    valid: Tensor
    target_positions: Tensor | None = None
    aligned: Histories | None = None
    aligned_targets: Tensor | None = None
    partners: Histories | None = None
    seen_rows: Tensor | None = None
    seen_items: Tensor | None = None
    read_rows: Tensor | None = None
    read_items: Tensor | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def note_read(self) -> None:
        """Add what has been read at each instance, while the batch is on the host."""
        pairs = items_read(self.histories, self.target_positions)
        self.read_rows, self.read_items = pairs.rows, pairs.items

    @property
    def read(self) -> ItemPairs | None:
        """What has been read at each instance, if it was noted."""
        return None if self.read_rows is None or self.read_items is None else ItemPairs(self.read_rows, self.read_items)

    def _each(self, move: Callable[[Any], Any]) -> Batch:
        moved = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: move(value) for name, value in moved.items() if value is not None})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on another device."""
        return self._each(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory."""
        return self._each(lambda value: value.pin_memory())


def cut_histories(items: np.ndarray, starts: np.ndarray, ends: np.ndarray, max_length: int) -> Histories:
    """Cut the histories `items[max(start, end - max_length):end]`, packed.

    Args:
        items: flat array.
        starts, ends: positions of each user's first item and of the target, `[B]`.
        max_length: maximum history length L.
    """
    starts = np.maximum(starts, ends - max_length)
    index, lengths = ranges(starts, ends)
    return Histories(torch.from_numpy(items[index].astype(np.int64)), torch.from_numpy(lengths), int(lengths.max(initial=0)))
