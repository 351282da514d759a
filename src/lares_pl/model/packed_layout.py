"""Real tokens only, one history after the other, without padding."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from lares_pl.data.loading.histories import Histories
from lares_pl.model.attention import PackedRows, causal_attention, packed_rows
from lares_pl.model.causal_filter import causal_filter
from lares_pl.model.layout import Layout, never_compiled


class PackedLayout(Layout):
    """Real tokens only, one history after the other: token states are `[M, d]`."""

    def __init__(self, lengths: Tensor, longest: int, tokens: int) -> None:
        super().__init__(lengths, longest)
        self.tokens = tokens
        self._full = tokens == self.rows * longest
        ends = lengths.cumsum(0)
        self._last = ends - 1
        if self._full:
            self._row = torch.arange(self.rows, device=lengths.device).repeat_interleave(longest)
        else:
            self._row = torch.repeat_interleave(lengths, output_size=tokens)
        starts = ends - lengths
        self._positions = torch.arange(tokens, device=lengths.device) - starts[self._row]
        self._slot = self._row * longest + self._positions  # [M] -> index into [R * longest]
        self._reaches: dict[int, Tensor] = {}  # of filters by width

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.tokens,)

    @property
    def positions(self) -> Tensor:
        return self._positions

    def row_of_token(self) -> Tensor:
        return self._row

    def arrange(self, items: Tensor) -> Tensor:
        return items

    def last(self, x: Tensor) -> Tensor:
        return x.index_select(0, self._last)

    def at(self, x: Tensor, tokens: Tensor) -> Tensor:
        return x.index_select(0, tokens)

    def causal_filter(self, x: Tensor, weight: Tensor) -> Tensor:
        width = len(weight)
        if width not in self._reaches:
            backs = torch.arange(1, width, device=x.device)
            self._reaches[width] = (self._positions >= backs[:, None])[..., None]
        return causal_filter(x, weight, self._reaches[width])

    def prefix(self, rows: int, tokens: int) -> Layout:
        # keep `longest`: the slots stay valid and nothing has to be asked of the device
        return PackedLayout(self.lengths[:rows], self.longest, tokens)

    def suffix(self, rows: int, tokens: int) -> Layout:
        return PackedLayout(self.lengths[self.rows - rows :], self.longest, tokens)

    def repeat(self, times: int) -> Layout:
        return PackedLayout(self.lengths.repeat(times), self.longest, self.tokens * times)

    def keep(self, rows: Tensor) -> tuple[Layout, Tensor]:
        tokens = rows[self._row].nonzero()[:, 0]
        return PackedLayout(self.lengths[rows], self.longest, len(tokens)), tokens

    @never_compiled
    def causal_attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, p: float) -> Tensor:
        if self._full:
            return super().causal_attention(q, k, v, heads, p)
        if q.device.type == "cpu":
            return self._packed_rows.causal_attention(q, k, v, heads, p)
        q, k, v = self.pad(torch.cat([q, k, v], dim=-1)).chunk(3, dim=-1)  # one copy each way instead of three
        return self.unpad(causal_attention(q, k, v, heads, p))

    @cached_property
    def _packed_rows(self) -> PackedRows:
        return packed_rows(self.lengths)

    def pad(self, x: Tensor) -> Tensor:
        if self._full:
            return x.view(self.rows, self.longest, -1)
        padded = x.new_zeros(self.rows * self.longest, x.shape[-1])
        return padded.index_copy(0, self._slot, x).view(self.rows, self.longest, -1)

    def real(self, x: Tensor) -> Tensor:
        return x

    def unpad(self, x: Tensor) -> Tensor:
        flat = x.reshape(self.rows * self.longest, -1)
        return flat if self._full else flat.index_select(0, self._slot)


def packed(histories: Histories) -> PackedLayout:
    """Layout for blocks that look at real tokens only."""
    return PackedLayout(histories.lengths, histories.longest, histories.tokens)
