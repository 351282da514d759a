"""Left-aligned histories padded to one width."""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from lares_pl.data.loading.histories import Histories
from lares_pl.model.layout import Layout


class PaddedLayout(Layout):
    """Left-aligned histories padded to one width L: token states are `[R, L, d]`."""

    def __init__(self, lengths: Tensor, width: int) -> None:
        super().__init__(lengths, width)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rows, self.longest)

    @property
    def positions(self) -> Tensor:
        return torch.arange(self.longest, device=self.lengths.device).expand(self.shape)

    def row_of_token(self) -> Tensor:
        return torch.arange(self.rows, device=self.lengths.device)[:, None].expand(self.shape)

    @cached_property
    def _mask_of_keys(self) -> Tensor | None:
        earlier = torch.ones(self.longest, self.longest, dtype=torch.bool, device=self.lengths.device).tril()
        seen = earlier & self.mask[:, None, None, :]  # a query at padding still sees the whole history
        return torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, -torch.inf)

    def arrange(self, items: Tensor) -> Tensor:
        return items.new_zeros(self.shape).masked_scatter(self.mask, items)

    def last(self, x: Tensor) -> Tensor:
        return x[torch.arange(self.rows, device=x.device), self.lengths - 1]

    def places(self, tokens: Tensor) -> Tensor:
        ends = self.lengths.cumsum(0)
        rows = torch.searchsorted(ends, tokens, right=True)
        return rows * self.longest + tokens - (ends - self.lengths)[rows]

    def causal_filter(self, x: Tensor, weight: Tensor) -> Tensor:
        filtered = x * weight[0]
        for back, of_channels in enumerate(weight[1:], start=1):
            filtered = filtered + F.pad(x, (0, 0, back, 0))[:, : x.shape[1]] * of_channels
        return filtered

    def prefix(self, rows: int, tokens: int) -> Layout:
        return PaddedLayout(self.lengths[:rows], self.longest)

    def suffix(self, rows: int, tokens: int) -> Layout:
        return PaddedLayout(self.lengths[self.rows - rows :], self.longest)

    def repeat(self, times: int) -> Layout:
        return PaddedLayout(self.lengths.repeat(times), self.longest)

    def keep(self, rows: Tensor) -> tuple[Layout, Tensor]:
        return PaddedLayout(self.lengths[rows], self.longest), rows.nonzero()[:, 0]

    def pad(self, x: Tensor) -> Tensor:
        return x

    def unpad(self, x: Tensor) -> Tensor:
        return x

    def real(self, x: Tensor) -> Tensor:
        return x[self.mask]


def padded(histories: Histories, width: int) -> PaddedLayout:
    """Layout for blocks in which padding takes part: every history padded to the model's history length."""
    return PaddedLayout(histories.lengths, width)
