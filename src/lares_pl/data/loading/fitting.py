"""Batches of one shape: histories and instances that do not count are added on the host until all batches have the same sizes.

A CUDA graph is recorded for tensors of certain shapes. The sizes follow from the first batches of the first epoch, so that they
are a function of data and settings alone. Few batches exceed them; those stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lares_pl.data.loading.batches import Batch

SAMPLE = 32  # batches that sizes are taken from
MARGIN = 4.0  # standard deviations of their sizes
STEP = 64  # sizes are multiples of it


@dataclass(frozen=True)
class BatchSizes:
    """Sizes of a fitted batch.

    Args:
        longest: the largest length of a history that is allowed.
        rows: number of histories.
        tokens: number of their items.
        instances: number of instances; 0 where each history is one.
        pairs: number of pairs of what was read.
        aligned_rows: number of aligned histories, and of partners.
        aligned_tokens, partner_tokens: number of their items.
    """

    longest: int
    rows: int
    tokens: int
    instances: int
    pairs: int
    aligned_rows: int
    aligned_tokens: int
    partner_tokens: int

    @staticmethod
    def of(batches: Sequence[Batch], longest: int) -> BatchSizes:
        """Sizes that nearly all batches keep within.

        Args:
            batches: some, of the same number of histories.
            longest: maximum history length L.
        """
        batch = batches[0]
        tokens = _range([part.histories.tokens for part in batches])
        aligned = _range([0 if part.aligned is None else part.aligned.tokens for part in batches])
        partner = _range([0 if part.partners is None else part.partners.tokens for part in batches])
        apart = batch.target_positions is not None
        # partners stand beside the aligned histories, which are all of them if each instance has its own
        more = _rows_for(longest, aligned, partner) if apart else _rows_for(longest, tokens, partner)
        more_histories = _rows_for(longest, tokens) if apart else more
        aligned_rows = _range([0 if part.aligned is None else len(part.aligned) for part in batches])[1]
        return BatchSizes(
            longest,
            len(batch.histories) + more_histories,
            _above(tokens[1] + more_histories),
            _above(_range([len(part) for part in batches])[1] + 1) if apart else 0,
            0 if batch.read_rows is None else _above(_range([_pairs(part) for part in batches])[1]),
            (aligned_rows if apart else len(batch.histories)) + more,
            _above(aligned[1] + more),
            _above(partner[1] + more),
        )

    def fit(self, batch: Batch) -> Batch:
        """The batch with what does not count after what does; as it is, if it is too large."""
        histories = batch.histories.filled(self.rows, self.tokens, self.longest)
        instances, pairs = self.instances or self.rows, self.pairs - _pairs(batch)
        if histories is None or instances <= len(batch) or pairs < 0:
            return batch
        fitted = replace(
            batch,
            histories=histories,
            targets=_padded(batch.targets, instances, 1),
            instances=_padded(batch.instances, instances, -1),
            valid=_padded(batch.valid, instances),
            real=len(batch),
        )
        if batch.target_positions is not None:
            fitted.target_positions = _padded(batch.target_positions, instances, histories.tokens - 1)
        if batch.read_rows is not None and batch.read_items is not None:
            fitted.read_rows = F.pad(batch.read_rows, (0, pairs), value=instances - 1)
            fitted.read_items = F.pad(batch.read_items, (0, pairs))
        if batch.aligned is not None and batch.aligned_targets is not None:
            fitted.aligned = batch.aligned.filled(self.aligned_rows, self.aligned_tokens, self.longest)
            if fitted.aligned is None:
                return batch
            fitted.aligned_targets = _padded(batch.aligned_targets, self.aligned_rows)
        if batch.partners is not None:
            fitted.partners = batch.partners.filled(self.aligned_rows, self.partner_tokens, self.longest)
            if fitted.partners is None:
                return batch
        return fitted


def _pairs(batch: Batch) -> int:
    return 0 if batch.read_rows is None else len(batch.read_rows)


def _range(sizes: Sequence[int]) -> tuple[int, int]:
    """Between which numbers nearly all such sizes lie."""
    mean, spread = float(np.mean(sizes)), MARGIN * float(np.std(sizes))
    return max(0, int(mean - spread)), int(np.ceil(mean + spread))


def _rows_for(longest: int, *ranges: tuple[int, int]) -> int:
    """Number of histories that fill each range up, whatever is missing; each has 1 … `longest` items."""
    widest = max(high - low for low, high in ranges)
    return -(-(widest + STEP) // max(1, longest - 1)) + 1


def _above(size: int) -> int:
    return -(-size // STEP) * STEP


def _padded(values: Tensor, size: int, value: int = 0) -> Tensor:
    return torch.cat([values, values.new_full((size - len(values),), value)])
