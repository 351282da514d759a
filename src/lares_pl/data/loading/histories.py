"""Packed histories, the native form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lares_pl.checks import whole
from lares_pl.errors import LaresError


@dataclass  # not frozen: Lightning's true-precision plugins rebuild a batch field by field
class Histories:
    """B item histories, oldest item first, packed (concatenated) without padding.

    Args:
        items: item indices of all histories, `[M]` (M = sum of lengths); 0 is padding and never occurs.
        lengths: number of items of each history, `[B]`, each at least 1.
        longest: the largest length, as a Python number, so that reading it needs no device synchronisation.
        largest: the largest item, for the same reason; 0 where it is not known.
    """

    items: Tensor
    lengths: Tensor
    longest: int
    largest: int = 0

    def __len__(self) -> int:
        return int(self.lengths.shape[0])

    @property
    def tokens(self) -> int:
        """Number of items of all histories together (M)."""
        return int(self.items.shape[0])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Histories:
        """The same histories on another device."""
        return Histories(
            self.items.to(device, non_blocking=non_blocking),
            self.lengths.to(device, non_blocking=non_blocking),
            self.longest,
            self.largest,
        )

    def with_largest(self) -> list[int]:
        """The first history that holds the largest item, for messages; waits for the device."""
        histories = self.items.split(self.lengths.tolist())
        return next(history.tolist() for history in histories if self.largest in history)

    def filled(self, rows: int, tokens: int, longest: int) -> Histories | None:
        """The same histories, with others of item 1 after them, so that numbers of histories and tokens are these.

        Args:
            rows: number of histories.
            tokens: number of items of all histories together.
            longest: largest length that is allowed, and that the result names.

        Returns:
            None if there are too many already, or no histories of these lengths can fill the rest.
        """
        more, missing = rows - len(self), tokens - self.tokens
        if more < 0 or not more <= missing <= more * longest:
            return None
        if more == 0:
            return Histories(self.items, self.lengths, longest, self.largest)
        lengths = torch.full((more,), missing // more)
        lengths[: missing % more] += 1
        items = torch.cat([self.items, self.items.new_ones(missing)])
        return Histories(items, torch.cat([self.lengths, lengths]), longest, self.largest)

    @staticmethod
    def from_lists(histories: Sequence[Sequence[int]]) -> Histories:
        """Pack plain lists of item indices.

        Raises:
            LaresError: if an item is no whole number from 1 on; names the history and the item.
            ValueError: if a history is empty.
        """
        lengths = [len(history) for history in histories]
        if not lengths or min(lengths) == 0:
            raise ValueError("each history needs at least one item")
        items = np.array([item for history in histories for item in history])
        if items.dtype.kind != "i" or items.min() < 1:  # otherwise nothing is looked at one by one
            _check_items(histories)
        return Histories(
            torch.from_numpy(items.astype(np.int64, copy=False)), torch.tensor(lengths), max(lengths), int(items.max())
        )

    @staticmethod
    def from_padded(padded: Tensor) -> Histories:
        """Pack left-aligned, zero-padded histories `[B, L]`.

        Raises:
            ValueError: if a history is empty or not left-aligned.
        """
        real = padded != 0
        lengths = real.sum(dim=1)
        left_aligned = torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]
        if not torch.equal(real, left_aligned) or bool((lengths == 0).any()):
            raise ValueError("padded histories must be left-aligned (item, item, …, 0, 0) and not empty")
        return Histories(padded[real], lengths, int(lengths.max()))

    @staticmethod
    def concatenate(parts: Sequence[Histories]) -> Histories:
        """All histories of all parts, in order."""
        if len(parts) == 1:
            return parts[0]
        return Histories(
            torch.cat([part.items for part in parts]),
            torch.cat([part.lengths for part in parts]),
            max(part.longest for part in parts),
            max(part.largest for part in parts),
        )


def _check_items(histories: Sequence[Sequence[int]]) -> None:
    """Raise for the first item that is no index of an item."""
    wanted = "a whole number from 1 on"
    for index, history in enumerate(histories):
        for item in history:
            name = f"an item of histories[{index}]"
            if not 1 <= whole(name, item, wanted) < 2**63:
                raise LaresError(f"{name} must be {wanted}; got {item!r}")
