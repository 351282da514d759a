"""How token states are laid out: packed `[M, d]` or padded `[R, L, d]`, behind one interface.

A block is called as `block(x, layout)` and need not know which of the two it gets unless it says so
(`padding_matters = True` asks for the padded form). Everything that depends on the form lives here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from lares_pl.data.histories import Histories


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
        return int(self.lengths.shape[0])

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
    def prefix(self, rows: int, tokens: int) -> Layout:
        """Layout of the first `rows` histories, which hold `tokens` real tokens; their states are `x[:shape[0]]`."""

    @abstractmethod
    def repeat(self, times: int) -> Layout:
        """Layout of the same histories, `times` times in a row."""

    @abstractmethod
    def pad(self, x: Tensor) -> Tensor:
        """`[*shape, d]` -> `[R, longest, d]`; what stands at padding is unspecified but finite."""

    @abstractmethod
    def unpad(self, x: Tensor) -> Tensor:
        """Inverse of `pad`."""

    @abstractmethod
    def real(self, x: Tensor) -> Tensor:
        """States of real tokens only: `[*shape, d]` -> `[M, d]`."""

    def causal_attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, dropout: float) -> Tensor:
        """Scaled dot-product attention of each token over itself and the tokens before it; padding is never attended to.

        Args:
            q, k, v: `[*shape, d]`.
            heads: number of heads; must divide d.
            dropout: probability of dropping an attention weight.

        Returns:
            `[*shape, d]`.
        """
        rows, longest, size = self.rows, self.longest, q.shape[-1]

        def split(x: Tensor) -> Tensor:  # [R, longest, d] -> [R, heads, longest, d / heads]
            return self.pad(x).view(rows, longest, heads, size // heads).transpose(1, 2)

        visible = self._visible_keys()
        if visible is None:
            out = F.scaled_dot_product_attention(split(q), split(k), split(v), dropout_p=dropout, is_causal=True)
        else:
            out = F.scaled_dot_product_attention(split(q), split(k), split(v), attn_mask=visible, dropout_p=dropout)
        return self.unpad(out.transpose(1, 2).reshape(rows, longest, size))

    def _visible_keys(self) -> Tensor | None:
        """Which keys each query sees, `[R, 1, longest, longest]`; None where the causal mask says it all.

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

    def prefix(self, rows: int, tokens: int) -> Layout:
        # keep `longest`: the slots stay valid and nothing has to be asked of the device
        return PackedLayout(self.lengths[:rows], self.longest, tokens)

    def repeat(self, times: int) -> Layout:
        return PackedLayout(self.lengths.repeat(times), self.longest, self.tokens * times)

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

    @property
    def mask(self) -> Tensor:
        """True at real tokens, `[R, L]`."""
        return torch.arange(self.longest, device=self.lengths.device) < self.lengths[:, None]

    def _visible_keys(self) -> Tensor | None:
        earlier = torch.ones(self.longest, self.longest, dtype=torch.bool, device=self.lengths.device).tril()
        return earlier & self.mask[:, None, None, :]  # a query at padding still sees the whole history

    def arrange(self, items: Tensor) -> Tensor:
        return items.new_zeros(self.shape).masked_scatter(self.mask, items)

    def last(self, x: Tensor) -> Tensor:
        return x[torch.arange(self.rows, device=x.device), self.lengths - 1]

    def prefix(self, rows: int, tokens: int) -> Layout:
        return PaddedLayout(self.lengths[:rows], self.longest)

    def repeat(self, times: int) -> Layout:
        return PaddedLayout(self.lengths.repeat(times), self.longest)

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
