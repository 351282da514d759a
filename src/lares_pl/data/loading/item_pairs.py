"""Pairs of a row and an item: what each row has read, or must not be ranked for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lares_pl.data.loading.histories import Histories


@dataclass(frozen=True)
class ItemPairs:
    """Items of rows; a pair occurs at most once where pairs stand for score changes.

    Args:
        rows: row of each pair, ascending, `[E]`.
        items: item of each pair, `[E]`.
        counts: False for pairs that stand for nothing, `[E]` bool; None: there are none.
    """

    rows: Tensor
    items: Tensor
    counts: Tensor | None = None

    def within_rows(self, rows: slice) -> ItemPairs:
        """The pairs of a range of rows, counted from its start."""
        start, stop = torch.searchsorted(self.rows, self.rows.new_tensor([rows.start, rows.stop])).tolist()
        return ItemPairs(self.rows[start:stop] - rows.start, self.items[start:stop])

    def counted_within_rows(self, rows: slice) -> ItemPairs:
        """As `within_rows`, but all pairs, of which those of other rows do not count: nobody has to know how many there are.

        Nor do those of item 0, which only fill a batch up.
        """
        places, last = self.rows - rows.start, rows.stop - rows.start - 1
        return ItemPairs(places.clamp(0, last), self.items, (places >= 0) & (places <= last) & (self.items > 0))

    def add_to(self, scores: Tensor, value: Tensor) -> None:
        """Add a value to the scores `[R, classes]` of all pairs, in place."""
        if self.counts is None:
            scores[self.rows, self.items] += value
        else:
            scores.index_put_((self.rows, self.items), value * self.counts, accumulate=True)

    def sum_of(self, values: Tensor, factors: Tensor) -> Tensor:
        """Sum of the values `[R, classes]` of all pairs, times those of their rows, `[R]`."""
        of_pairs = values[self.rows, self.items] * factors.index_select(0, self.rows)
        return (of_pairs if self.counts is None else of_pairs * self.counts).sum()

    def by_rows(self, ranges: Sequence[slice]) -> list[ItemPairs]:
        """The pairs of each of several ranges of rows, counted from the range's start; the ranges follow one another."""
        if len(ranges) < 2:
            return [self]
        starts = torch.tensor([rows.start for rows in ranges[1:]], device=self.rows.device)
        ends = torch.searchsorted(self.rows, starts).cpu()
        parts = zip(ranges, self.rows.tensor_split(ends), self.items.tensor_split(ends), strict=True)
        return [ItemPairs(of_rows - rows.start, items) for rows, of_rows, items in parts]

    def within_classes(self, classes: slice) -> ItemPairs:
        """The pairs of a range of classes, counted from its start."""
        inside = (self.items >= classes.start) & (self.items < classes.stop)
        counts = None if self.counts is None else self.counts[inside]
        return ItemPairs(self.rows[inside], self.items[inside] - classes.start, counts)

    def by_classes(self, first: int, ranges: Sequence[slice]) -> list[ItemPairs]:
        """The pairs of each of several ranges of classes, counted from the range's start; pairs outside of all are left out.

        Args:
            first: class from which the ranges are counted.
            ranges: they follow one another from 0 on, all of one length, but that the last may be shorter.
        """
        step, count = ranges[0].stop, len(ranges)
        places = self.items.int() - first
        number = places.div(step, rounding_mode="floor").clamp(-1, count).masked_fill_(places >= ranges[-1].stop, count)
        # short integers are sorted several times as fast
        number, order = number.to(torch.int16 if count < 2**15 else torch.int32).sort()
        ends = torch.searchsorted(number, torch.arange(count + 1, dtype=number.dtype, device=number.device)).tolist()
        rows, items = self.rows.index_select(0, order), self.items.index_select(0, order)
        return [ItemPairs(rows[a:b], items[a:b] - first - i * step) for i, (a, b) in enumerate(pairwise(ends))]

    def repeat(self, times: int, rows: int) -> ItemPairs:
        """The same pairs for `times` copies of the rows, one copy after the other.

        Args:
            times: number of copies.
            rows: number of rows of one copy.
        """
        if times == 1:
            return self
        copies = torch.arange(times, device=self.rows.device).repeat_interleave(len(self.rows)) * rows
        return ItemPairs(self.rows.repeat(times) + copies, self.items.repeat(times))

    def select(self, rows: Tensor) -> ItemPairs:
        """The pairs of some of the rows, which are counted anew.

        Args:
            rows: mask of those that stay, `[R]`.
        """
        numbers = rows.cumsum(0) - 1
        kept = rows[self.rows]
        return ItemPairs(numbers[self.rows[kept]], self.items[kept])

    def rows_of(self, items: Tensor) -> Tensor:
        """Whether each row is paired with its own item of `[R]`, `[R]` bool."""
        hits = self.items == items.index_select(0, self.rows)
        hits = (hits if self.counts is None else hits & self.counts).int()
        return torch.zeros_like(items, dtype=torch.int32).index_add_(0, self.rows, hits) > 0

    def contain(self, items: Tensor, span: int) -> Tensor:
        """Whether each row is paired with each of some items of its own, `[R, n]` bool.

        Args:
            items: `[R, n]`.
            span: larger than any item.
        """
        numbers = torch.arange(len(items), device=items.device)[:, None]
        wanted, known = numbers * span + items, (self.rows * span + self.items).sort().values
        # `torch.isin` would wait for the device; past the end stands what is not wanted
        known = F.pad(known, (0, 1), value=-1)
        return known[torch.searchsorted(known[:-1], wanted)] == wanted

    def matches(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns of a matrix `[R, K]` whose column j is about item `columns[j]`, where row and item are paired."""
        ordered, order = columns.sort()
        first = torch.searchsorted(ordered, self.items)
        counts = torch.searchsorted(ordered, self.items, right=True) - first
        rows = self.rows.repeat_interleave(counts)
        number = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        return rows, order[first.repeat_interleave(counts) + number]


def items_read(histories: Histories, tokens: Tensor | None = None) -> ItemPairs:
    """What has been read at some tokens: the items of each one's history up to it, each item once, in the order of first reads.

    Computed on the host: many small operations, for which NumPy needs a third of PyTorch's time.

    Args:
        histories: B histories.
        tokens: indices `[R]` into `histories.items`; the last token of each history where None.
    """
    items, lengths = (values.cpu().numpy() for values in (histories.items, histories.lengths))
    ends = lengths.cumsum()
    asked = ends - 1 if tokens is None else tokens.cpu().numpy()
    row = np.repeat(np.arange(len(lengths)), lengths)
    first = _first_of_each(row * (int(items.max()) + 1) + items)
    so_far = first.cumsum()  # first reads up to each token, in all histories
    before = so_far[(ends - lengths)[row[asked]]] - 1  # the start of a history is one
    counts = so_far[asked] - before
    behind = counts.cumsum()
    number = np.arange(counts.sum()) - np.repeat(behind - counts - before, counts)
    rows = np.repeat(np.arange(len(asked)), counts)
    device = histories.items.device
    return ItemPairs(torch.from_numpy(rows).to(device), torch.from_numpy(items[first][number]).to(device))


def _first_of_each(values: np.ndarray) -> np.ndarray:
    """Whether a value has not occurred before, `[M]` bool."""
    order = values.argsort(kind="stable")
    ordered = values[order]
    first = np.ones(len(values), dtype=bool)
    first[order[1:]] = ordered[1:] != ordered[:-1]
    return first
