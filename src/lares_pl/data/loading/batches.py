"""A batch of instances, and histories cut from the flat array without a Python loop over rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import accumulate
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
        real: number of instances that count, where others, which are not valid, follow them so that all batches have the same
            shapes (`lares_pl.data.loading.fitting`); None: all count.
        buffer: where all tensors lie one after the other, if they do: `[*]` int64.
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
    real: int | None = None
    buffer: Tensor | None = None

    def __len__(self) -> int:
        return len(self.targets) if self.real is None else self.real

    def note_read(self) -> None:
        """Add what has been read at each instance, while the batch is on the host."""
        pairs = items_read(self.histories, self.target_positions)
        self.read_rows, self.read_items = pairs.rows, pairs.items

    @property
    def read(self) -> ItemPairs | None:
        """What has been read at each instance, if it was noted."""
        return None if self.read_rows is None or self.read_items is None else ItemPairs(self.read_rows, self.read_items)

    @property
    def shares(self) -> Tensor | None:
        """Share of each instance in a mean over those that count, `[B]`; None where all count."""
        return None if self.real is None else self.valid / self.valid.sum()

    @property
    def aligned_real(self) -> Tensor | None:
        """False for aligned histories that do not count, `[S]` bool; None where all count."""
        if self.real is None:
            return None
        return self.valid if self.aligned_targets is None else self.aligned_targets > 0

    @property
    def shapes(self) -> tuple[int, ...]:
        """Sizes of all tensors, and the largest lengths: what two batches of one program have in common."""
        longest = [part.longest for part in (self.histories, self.aligned, self.partners) if part is not None]
        return (*(len(tensor) for tensor in self._tensors()), *longest)

    def _tensors(self) -> Iterator[Tensor]:
        for name in _PARTS:
            value = getattr(self, name)
            if isinstance(value, Histories):
                yield from (value.items, value.lengths)
            elif value is not None:
                yield value

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with each tensor changed, in the order of `_tensors`."""
        changed: dict[str, Any] = {"buffer": None}
        for name in _PARTS:
            value = getattr(self, name)
            if isinstance(value, Histories):
                changed[name] = Histories(change(value.items), change(value.lengths), value.longest)
            elif value is not None:
                changed[name] = change(value)
        return replace(self, **changed)

    @property
    def is_in_buffer(self) -> bool:
        """Whether all tensors lie in the buffer; whoever changes a batch may put others in their place."""
        own = None if self.buffer is None else self.buffer.untyped_storage().data_ptr()
        return all(tensor.untyped_storage().data_ptr() == own for tensor in self._tensors() if tensor.numel())

    def within(self, buffer: Tensor) -> Batch:
        """The same batch with its tensors in another buffer, which holds what that of this one does."""
        ends = iter(accumulate(_words(tensor) for tensor in self._tensors()))
        return replace(self._each(lambda tensor: _view(buffer, next(ends), tensor)), buffer=buffer)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on another device; in one copy, if its tensors lie in one buffer."""
        if self.buffer is not None and self.is_in_buffer:
            return self.within(self.buffer.to(device, non_blocking=non_blocking))
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def in_one_buffer(self, pin: bool = False) -> Batch:
        """The same batch with its tensors one after the other, on their device.

        Args:
            pin: whether in page-locked memory.
        """
        size = sum(_words(tensor) for tensor in self._tensors())
        batch = self.within(torch.empty(size, dtype=torch.int64, pin_memory=pin, device=self.targets.device))
        for tensor, copy in zip(self._tensors(), batch._tensors(), strict=True):
            copy.copy_(tensor)
        return batch


#: what of a batch is tensors, each update needs the names several times
_PARTS = tuple(field.name for field in fields(Batch) if field.name not in ("real", "buffer"))


def _words(tensor: Tensor) -> int:
    """Numbers of 64 bits that hold a tensor of a batch."""
    return -(-tensor.numel() * tensor.element_size() // 8)


def _view(buffer: Tensor, end: int, like: Tensor) -> Tensor:
    """The part of a buffer that ends there, as a tensor of a batch."""
    part = buffer[end - _words(like) : end]
    return part if like.dtype == buffer.dtype else part.view(like.dtype)[: len(like)]


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
