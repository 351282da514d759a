"""How token states are laid out: packed `[M, d]` or padded `[R, L, d]`, behind one interface.

A block is called as `block(x, layout)` and need not know which of the two it gets unless it says so
(`padding_matters = True` asks for the padded form). Everything that depends on the form lives here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from lares_pl.data.histories import Histories
from lares_pl.model.dropout import dropout

FILLING = 256  # tokens that a group of histories may be filled up with in any case, on a CPU


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
    def prefix(self, rows: int, tokens: int) -> Layout:
        """Layout of the first `rows` histories, which hold `tokens` real tokens; their states are `x[:shape[0]]`."""

    @abstractmethod
    def suffix(self, rows: int, tokens: int) -> Layout:
        """Layout of the last `rows` histories, which hold `tokens` real tokens; their states are `x[-shape[0]:]`."""

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

    def causal_attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, p: float) -> Tensor:
        """Scaled dot-product attention of each token over itself and the tokens before it; padding is never attended to.

        Args:
            q, k, v: `[*shape, d]`.
            heads: number of heads; must divide d.
            p: probability of dropping an attention weight.

        Returns:
            `[*shape, d]`.
        """
        return self.unpad(_attention(self.pad(q), self.pad(k), self.pad(v), heads, p, self._visible_keys))

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
    def _visible_keys(self) -> Tensor | None:
        """Which keys each query sees, `[R, 1, longest, longest]`; None where the causal mask says it all.

        It does unless states at padding are looked at: histories are left-aligned, so no real token sees padding.
        """
        return None


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int, p: float, visible: Tensor | None) -> Tensor:
    """Causal attention of padded rows.

    Args:
        q, k, v: `[R, L, d]`.
        heads: number of heads.
        p: probability of dropping an attention weight.
        visible: which keys each query sees, `[R, 1, L, L]`; all up to itself where None.
    """
    rows, length, size = q.shape
    q, k, v = (x.view(rows, length, heads, size // heads).transpose(1, 2) for x in (q, k, v))
    if p > 0 and q.device.type == "cpu":  # PyTorch's own path would write the weights down as well, and draw them dearly
        scores = (q * (size // heads) ** -0.5) @ k.transpose(-1, -2)
        if visible is None:
            visible = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
        out = dropout(scores.masked_fill(~visible, -torch.inf).softmax(dim=-1), p) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=p, is_causal=visible is None)
    return out.transpose(1, 2).reshape(rows, length, size)


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

    def prefix(self, rows: int, tokens: int) -> Layout:
        # keep `longest`: the slots stay valid and nothing has to be asked of the device
        return PackedLayout(self.lengths[:rows], self.longest, tokens)

    def suffix(self, rows: int, tokens: int) -> Layout:
        return PackedLayout(self.lengths[self.rows - rows :], self.longest, tokens)

    def repeat(self, times: int) -> Layout:
        return PackedLayout(self.lengths.repeat(times), self.longest, self.tokens * times)

    def causal_attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, p: float) -> Tensor:
        if q.device.type != "cpu" or self._full:
            return super().causal_attention(q, k, v, heads, p)
        # histories of about one length together, so that hardly anything is padded
        groups, gather, scatter = self._by_length
        q, k, v = (x.index_select(0, gather) for x in (q, k, v))
        parts, start = [], 0
        for rows, length in groups:
            part = slice(start, start := start + rows * length)
            rows_q, rows_k, rows_v = (x[part].view(rows, length, -1) for x in (q, k, v))
            parts.append(_attention(rows_q, rows_k, rows_v, heads, p, None).flatten(0, 1))
        return torch.cat(parts).index_select(0, scatter)

    @cached_property
    def _by_length(self) -> tuple[list[tuple[int, int]], Tensor, Tensor]:
        """Rows sorted into groups of about one length.

        What fills a row up is its last token again: causal attention shows it to no real one.

        Returns:
            `(rows, length)` of each group; the token at each place of the groups; the place of each token.
        """
        lengths = self.lengths
        rounded = torch.tensor(_widths(lengths.bincount().tolist()))[lengths]
        order = torch.argsort(rounded, stable=True)
        widths, counts = rounded[order].unique_consecutive(return_counts=True)
        groups = list(zip(counts.tolist(), widths.tolist(), strict=True))
        width_of_row = rounded[order]
        row_of_place = torch.repeat_interleave(order, width_of_row)
        first_place = width_of_row.cumsum(0) - width_of_row
        position = torch.arange(len(row_of_place)) - torch.repeat_interleave(first_place, width_of_row)
        starts = self._last + 1 - lengths
        gather = starts[row_of_place] + torch.minimum(position, lengths[row_of_place] - 1)
        place_of_row = torch.empty_like(order).index_copy_(0, order, first_place)
        return groups, gather, place_of_row[self._row] + self._positions

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
    def _visible_keys(self) -> Tensor | None:
        earlier = torch.ones(self.longest, self.longest, dtype=torch.bool, device=self.lengths.device).tril()
        return earlier & self.mask[:, None, None, :]  # a query at padding still sees the whole history

    def arrange(self, items: Tensor) -> Tensor:
        return items.new_zeros(self.shape).masked_scatter(self.mask, items)

    def last(self, x: Tensor) -> Tensor:
        return x[torch.arange(self.rows, device=x.device), self.lengths - 1]

    def at(self, x: Tensor, tokens: Tensor) -> Tensor:
        ends = self.lengths.cumsum(0)
        rows = torch.searchsorted(ends, tokens, right=True)
        return x[rows, tokens - (ends - self.lengths)[rows]]

    def prefix(self, rows: int, tokens: int) -> Layout:
        return PaddedLayout(self.lengths[:rows], self.longest)

    def suffix(self, rows: int, tokens: int) -> Layout:
        return PaddedLayout(self.lengths[self.rows - rows :], self.longest)

    def repeat(self, times: int) -> Layout:
        return PaddedLayout(self.lengths.repeat(times), self.longest)

    def pad(self, x: Tensor) -> Tensor:
        return x

    def unpad(self, x: Tensor) -> Tensor:
        return x

    def real(self, x: Tensor) -> Tensor:
        return x[self.mask]


def _widths(counts: Sequence[int]) -> list[int]:
    """To which width histories of each length are filled up.

    Each group of histories costs a few dozen calls, each token that only fills up costs its arithmetic: a group may hold as
    many of those as are worth a group of its own.

    Args:
        counts: number of histories of each length from 0 on.
    """
    widths, width, real, filling = [0] * len(counts), len(counts) - 1, 0, 0
    for length in range(len(counts) - 1, 0, -1):
        real += counts[length] * length
        filling += counts[length] * (width - length)
        if filling > max(FILLING, real / 8):
            width, real, filling = length, counts[length] * length, 0
        widths[length] = width
    return widths


def packed(histories: Histories) -> PackedLayout:
    """Layout for blocks that look at real tokens only."""
    return PackedLayout(histories.lengths, histories.longest, histories.tokens)


def padded(histories: Histories, width: int) -> PaddedLayout:
    """Layout for blocks in which padding takes part: every history padded to the model's history length."""
    return PaddedLayout(histories.lengths, width)
