"""Packed histories, the native form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass  # not frozen: Lightning's true-precision plugins rebuild a batch field by field
class Histories:
    """B item histories, oldest item first, packed (concatenated) without padding.

    Args:
        items: item indices of all histories, `[M]` (M = sum of lengths); 0 is padding and never occurs.
        lengths: number of items of each history, `[B]`, each at least 1.
        longest: the largest length, as a Python number, so that reading it needs no device synchronisation.
    """

    items: Tensor
    lengths: Tensor
    longest: int

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
        )

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
            return Histories(self.items, self.lengths, longest)
        lengths = torch.full((more,), missing // more)
        lengths[: missing % more] += 1
        items = torch.cat([self.items, self.items.new_ones(missing)])
        return Histories(items, torch.cat([self.lengths, lengths]), longest)

    @staticmethod
    def from_lists(histories: Sequence[Sequence[int]]) -> Histories:
        """Pack plain lists of item indices.

        Raises:
            ValueError: if a history is empty.
        """
        lengths = [len(history) for history in histories]
        if not lengths or min(lengths) == 0:
            raise ValueError("each history needs at least one item")
        items = [item for history in histories for item in history]
        return Histories(torch.tensor(items), torch.tensor(lengths), max(lengths))

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
        )
