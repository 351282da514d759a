"""Real tokens only, one history after the other, without padding."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from lares_pl.data.loading.histories import Histories
from lares_pl.model.causal_filter import causal_filter
from lares_pl.model.layout import Layout
from lares_pl.model.packed_rows import PackedRows, shared_rows


class PackedLayout(Layout):
    """Real tokens only, one history after the other: token states are `[M, d]`."""

    def __init__(self, lengths: Tensor, longest: int, tokens: int) -> None:
        super().__init__(lengths, longest)
        self.tokens = tokens
        self._full = tokens == self.rows * longest
        self._reaches: dict[int, Tensor] = {}  # of filters by width

    @cached_property
    def _last(self) -> Tensor:
        return self.lengths.cumsum(0) - 1

    @cached_property
    def _starts(self) -> Tensor:
        return self._last - self.lengths + 1

    @cached_property
    def _row(self) -> Tensor:
        if self._full:
            return torch.arange(self.rows, device=self.lengths.device).repeat_interleave(self.longest)
        return torch.repeat_interleave(self.lengths, output_size=self.tokens)

    @cached_property
    def _positions(self) -> Tensor:
        return torch.arange(self.tokens, device=self.lengths.device) - self._starts[self._row]

    @cached_property
    def _slot(self) -> Tensor:
        """Index into `[R * longest]`, `[M]`."""
        return self._row * self.longest + self._positions

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

    def places(self, tokens: Tensor) -> Tensor:
        return tokens

    def causal_filter(self, x: Tensor, weight: Tensor) -> Tensor:
        width = len(weight)
        if width not in self._reaches:
            backs = torch.arange(1, width, device=x.device)
            self._reaches[width] = (self._positions >= backs[:, None])[..., None]
        return causal_filter(x, weight, self._reaches[width])

    def prefix(self, rows: int, tokens: int) -> Layout:
        # keep `longest`: the slots stay valid and nothing has to be asked of the device
        layout = PackedLayout(self.lengths[:rows], self.longest, tokens)
        known = {"mask": rows, "_last": rows, "_starts": rows, "_row": tokens, "_positions": tokens, "_slot": tokens}
        layout.__dict__ |= {name: self.__dict__[name][:size] for name, size in known.items() if name in self.__dict__}
        if "_one_width" in self.__dict__:
            layout.__dict__["_one_width"] = self._one_width.prefix(rows, tokens)
        layout._reaches = {width: reaches[:, :tokens] for width, reaches in self._reaches.items()}
        return layout

    def suffix(self, rows: int, tokens: int) -> Layout:
        return PackedLayout(self.lengths[self.rows - rows :], self.longest, tokens)

    def repeat(self, times: int) -> Layout:
        return PackedLayout(self.lengths.repeat(times), self.longest, self.tokens * times)

    def keep(self, rows: Tensor) -> tuple[Layout, Tensor]:
        tokens = rows[self._row].nonzero()[:, 0]
        return PackedLayout(self.lengths[rows], self.longest, len(tokens)), tokens

    def causal_attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, p: float) -> Tensor:
        if self._full:
            return super().causal_attention(q, k, v, heads, p)
        return (self._shared_rows if q.device.type == "cpu" else self._one_width).causal_attention(q, k, v, heads, p)

    def _rows_of_heads(self, x: Tensor, heads: int) -> Tensor:
        return super()._rows_of_heads(x, heads) if self._full else self._one_width.rows(x, heads)[0]

    @cached_property
    def _shared_rows(self) -> PackedRows:
        return shared_rows(self.lengths)

    @cached_property
    def _one_width(self) -> PackedRows:
        """Each history in a row of its own."""
        token = self._starts[:, None] + torch.arange(self.longest, device=self.lengths.device)
        return PackedRows([(self.rows, self.longest, None)], token.where(self.mask, self.tokens).flatten(), self.tokens)

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
