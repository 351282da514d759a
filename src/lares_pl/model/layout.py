"""How token states are laid out: packed `[M, d]` or padded `[R, L, d]`, behind one interface.

A block is called as `block(x, layout)` and need not know which of the two it gets unless it says so
(`padding_matters = True` asks for the padded form). Everything that depends on the form lives here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from lares_pl.data.loading.histories import Histories
from lares_pl.model.attention import Shelves, causal_attention, shelves
from lares_pl.model.dropout import dropout

Attention = TypeVar("Attention", bound=Callable[..., Tensor])


def _never_compiled(attention: Attention) -> Attention:
    """Left out where the block around it is compiled: its shapes are the batch's, and each would be compiled anew."""
    return cast(Attention, torch.compiler.disable(attention))


class Layout(ABC):
    """Where the tokens of R histories lie in a tensor of token states.

    Args:
        lengths: real tokens of each history, `[R]`.
        longest: the largest length.
    """

    def __init__(self, lengths: Tensor, longest: int) -> None:
        self.lengths = lengths
        self.longest = longest

    @property
    def rows(self) -> int:
        """Number of histories (R)."""
        return self.lengths.shape[0]  # while a program is exported this is a symbol, no number

    @cached_property
    def mask(self) -> Tensor:
        """True at real tokens of the padded form, `[R, longest]`."""
        return torch.arange(self.longest, device=self.lengths.device) < self.lengths[:, None]

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Leading dimensions of token states: `(M,)` packed, `(R, L)` padded."""

    @property
    @abstractmethod
    def positions(self) -> Tensor:
        """Position of each token in its history, counted from 0, of shape `self.shape`."""

    @abstractmethod
    def row_of_token(self) -> Tensor:
        """Row index of each token, of shape `self.shape`."""

    @abstractmethod
    def arrange(self, items: Tensor) -> Tensor:
        """Put packed item indices `[M]` into this layout (padding is item 0)."""

    @abstractmethod
    def last(self, x: Tensor) -> Tensor:
        """State at the last real position of each history: `[*shape, d]` -> `[R, d]`."""

    @abstractmethod
    def at(self, x: Tensor, tokens: Tensor) -> Tensor:
        """States of some tokens, counted over all histories without padding: `[*shape, d]`, `[R]` -> `[R, d]`."""

    @abstractmethod
    def shifted(self, x: Tensor, back: int) -> Tensor:
        """The state `back` positions earlier in the same history, 0 where there is none: `[*shape, d]` -> `[*shape, d]`."""

    @abstractmethod
    def prefix(self, rows: int, tokens: int) -> Layout:
        """Layout of the first `rows` histories, which hold `tokens` real tokens; their states are `x[:shape[0]]`."""

    @abstractmethod
    def suffix(self, rows: int, tokens: int) -> Layout:
        """Layout of the last `rows` histories, which hold `tokens` real tokens; their states are `x[-shape[0]:]`."""

    @abstractmethod
    def repeat(self, times: int) -> Layout:
        """Layout of the same histories, `times` times in a row."""

    @abstractmethod
    def keep(self, rows: Tensor) -> tuple[Layout, Tensor]:
        """Layout of some of the histories, and the index of their states along the first dimension of `x`.

        Args:
            rows: mask of those that stay, `[R]`, at least one.
        """

    @abstractmethod
    def pad(self, x: Tensor) -> Tensor:
        """`[*shape, d]` -> `[R, longest, d]`; what stands at padding is unspecified but finite."""

    @abstractmethod
    def unpad(self, x: Tensor) -> Tensor:
        """Inverse of `pad`."""

    @abstractmethod
    def real(self, x: Tensor) -> Tensor:
        """States of real tokens only: `[*shape, d]` -> `[M, d]`."""

    @_never_compiled
    def causal_attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, p: float) -> Tensor:
        """Scaled dot-product attention of each token over itself and the tokens before it; padding is never attended to.

        Args:
            q, k, v: `[*shape, d]`.
            heads: number of heads; must divide d.
            p: probability of dropping an attention weight.

        Returns:
            `[*shape, d]`.
        """
        return self.unpad(causal_attention(self.pad(q), self.pad(k), self.pad(v), heads, p, self._mask_of_keys))

    @_never_compiled
    def last_attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, p: float) -> Tensor:
        """Attention of the last token of each history over the whole of it.

        Args:
            q: of the last tokens, `[R, d]`.
            k, v: of all tokens, `[*shape, d]`.
            heads: number of heads; must divide d.
            p: probability of dropping an attention weight.

        Returns:
            `[R, d]`.
        """
        rows, size = q.shape
        split = (rows, self.longest, heads, size // heads)
        queries = q.view(rows, heads, 1, size // heads) * (size // heads) ** -0.5
        keys, values = self.pad(k).view(split).transpose(1, 2), self.pad(v).view(split).transpose(1, 2)
        scores = (queries @ keys.transpose(-1, -2)).masked_fill(~self.mask[:, None, None], -torch.inf)  # [R, heads, 1, L]
        return (dropout(scores.softmax(dim=-1), p) @ values).view(rows, size)

    @cached_property
    def _mask_of_keys(self) -> Tensor | None:
        """-inf at what a query does not see, `[R, 1, longest, longest]`; None where the causal mask says it all.

        It does unless states at padding are looked at: histories are left-aligned, so no real token sees padding.
        """
        return None


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

    def shifted(self, x: Tensor, back: int) -> Tensor:
        earlier = F.pad(x, (0, 0, back, 0))[: x.shape[0]]
        return torch.where((self._positions >= back)[:, None], earlier, 0)

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

    @_never_compiled
    def causal_attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, p: float) -> Tensor:
        if q.device.type != "cpu" or self._full:
            return super().causal_attention(q, k, v, heads, p)
        return self._shelves.causal_attention(q, k, v, heads, p)

    @cached_property
    def _shelves(self) -> Shelves:
        return shelves(self.lengths)

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

    def at(self, x: Tensor, tokens: Tensor) -> Tensor:
        ends = self.lengths.cumsum(0)
        rows = torch.searchsorted(ends, tokens, right=True)
        return x[rows, tokens - (ends - self.lengths)[rows]]

    def shifted(self, x: Tensor, back: int) -> Tensor:
        return F.pad(x, (0, 0, back, 0))[:, : x.shape[1]]

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


def packed(histories: Histories) -> PackedLayout:
    """Layout for blocks that look at real tokens only."""
    return PackedLayout(histories.lengths, histories.longest, histories.tokens)


def padded(histories: Histories, width: int) -> PaddedLayout:
    """Layout for blocks in which padding takes part: every history padded to the model's history length."""
    return PaddedLayout(histories.lengths, width)
