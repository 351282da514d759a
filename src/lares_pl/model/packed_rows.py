"""Packed tokens in rows for attention: gathered head by head, in one operation each way.

Gradients are gathered as well instead of being scattered, which is slow. On a CPU short histories share rows of one width: a
few large products instead of many small ones, whatever the lengths. On other devices each history has a row of its own, so that
nothing is asked of the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lares_pl.model.attention import attention

SHARED = 40  # tokens of a row that histories share
SHORT = SHARED // 2  # histories of up to this length share rows
FILLING = 1 / 8  # longer ones of about one length stand in rows of one width, filled up by at most this share


class PackedRows:
    """Where packed tokens stand in rows.

    Args:
        groups: number of rows, their width, and what is seen in them (`[rows, 1, width, width]`; the past where None).
        token: the token at each place of the rows, `[P]`, and at least M where there is none.
        tokens: their number M.
    """

    def __init__(self, groups: Sequence[tuple[int, int, Tensor | None]], token: Tensor, tokens: int) -> None:
        self.groups = groups
        self.token = token
        self.tokens = tokens
        self._orders: dict[int, _Order] = {}  # by number of heads

    def prefix(self, rows: int, tokens: int) -> PackedRows:
        """The first rows, which hold the first `tokens`; all must be of one width."""
        ((_, width, mask),) = self.groups
        return PackedRows([(rows, width, mask)], self.token[: rows * width], tokens)

    def causal_attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, p: float) -> Tensor:
        """Attention of packed tokens `[M, d]`, each over its own history up to itself."""
        queries, keys, values = (self.rows(x, heads) for x in (q, k, v))
        of_groups = zip(queries, keys, values, self.groups, strict=True)
        parts = [attention(q, k, v, p, mask).flatten(0, 2) for q, k, v, (_, _, mask) in of_groups]
        by_head = torch.cat(parts) if len(parts) > 1 else parts[0]
        out: Tensor = _FromRows.apply(by_head, self._order(heads))  # type: ignore[no-untyped-call]
        return out

    def rows(self, x: Tensor, heads: int) -> list[Tensor]:
        """Packed tokens `[M, d]` in the rows of each group, `[rows, heads, width, d / heads]`.

        At an empty place stands some token. Nobody sees it, so that no gradient comes from there.
        """
        size = x.shape[1] // heads
        by_head: Tensor = _ToRows.apply(x, self._order(heads))  # type: ignore[no-untyped-call]
        sizes = [rows * heads * width for rows, width, _ in self.groups]
        parts = by_head.split(sizes) if len(sizes) > 1 else [by_head]  # gradients of parts are joined by a copy
        return [part.view(rows, heads, width, size) for part, (rows, width, _) in zip(parts, self.groups, strict=True)]

    def _order(self, heads: int) -> _Order:
        if heads not in self._orders:
            self._orders[heads] = _Order(self, heads)
        return self._orders[heads]


class _Order:
    """Which head of which token stands at each place of rows of heads, and the other way round.

    Args:
        rows: where the tokens stand.
        heads: number of heads.

    Attributes:
        head_or_none: `head + heads * token` at each place, `[P * heads]`, and `heads * M` where there is none.
        places: the place of each head of each token, `[M * heads]`.
    """

    def __init__(self, rows: PackedRows, heads: int) -> None:
        self.heads = heads
        self._rows = rows
        self._head = torch.arange(heads, device=rows.token.device)[:, None]
        self.head_or_none = self._at_each_place(rows.token, heads).clamp(max=rows.tokens * heads)
        number = torch.arange(len(self.head_or_none), device=rows.token.device)
        self.places = number.new_zeros(rows.tokens * heads + 1).index_copy_(0, self.head_or_none, number)[:-1]
        self._in_memory: dict[int, Tensor] = {}

    def in_memory(self, step: int) -> Tensor:
        """`head + step * token` at each place, for tokens that lie `step` heads apart; any token where there is none."""
        if step not in self._in_memory:
            self._in_memory[step] = self._at_each_place(self._rows.token.clamp(max=self._rows.tokens - 1), step)
        return self._in_memory[step]

    def _at_each_place(self, token: Tensor, step: int) -> Tensor:
        parts = token.split([rows * width for rows, width, _ in self._rows.groups])
        groups = zip(parts, self._rows.groups, strict=True)
        index = [(part.view(rows, 1, width) * step + self._head).flatten() for part, (rows, width, _) in groups]
        return torch.cat(index) if len(index) > 1 else index[0]


class _ToRows(torch.autograd.Function):
    """Heads of packed tokens `[M, d]` as rows need them, `[P * heads, d / heads]`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: _Order) -> Tensor:
        ctx.shape, ctx.order = x.shape, order
        size = x.shape[1] // order.heads
        if x.stride(1) != 1 or x.stride(0) % size:
            x = x.contiguous()
        step = x.stride(0) // size
        # x can be a part of wider states: what it lies among is indexed, so that it is not copied first
        memory = x.as_strided(((len(x) - 1) * step + order.heads, size), (size, 1))
        return memory.index_select(0, order.in_memory(step))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].index_select(0, ctx.order.places).view(ctx.shape), None


class _FromRows(torch.autograd.Function):
    """Inverse of `_ToRows`; gradients at empty places are 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: _Order) -> Tensor:
        ctx.size, ctx.order = x.shape[1], order
        return x.index_select(0, order.places).view(-1, order.heads * ctx.size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        with_zeros = F.pad(gradients[0].reshape(-1, ctx.size), (0, 0, 0, 1))
        return with_zeros.index_select(0, ctx.order.head_or_none), None


def shared_rows(lengths: Tensor) -> PackedRows:
    """Rows for histories of these lengths `[R]`, of which short ones share some; for a CPU."""
    order = torch.argsort(lengths, stable=True)
    ascending = lengths[order]
    counts = lengths.bincount()
    short = int(counts[: SHORT + 1].sum())
    widths = torch.tensor(_widths(counts.tolist()))[ascending]  # of the rows in which they stand
    fitting = torch.where(ascending <= SHORT, SHARED // ascending, 1)  # histories side by side in a row
    number = torch.arange(len(lengths)) - (counts.cumsum(0) - counts)[ascending]  # among those of its length
    new_row = number % fitting == 0
    row = new_row.cumsum(0) - 1
    width_of_row = widths[new_row]
    start_of_row = width_of_row.cumsum(0) - width_of_row
    first_place = torch.empty_like(lengths).index_copy_(0, order, start_of_row[row] + number % fitting * ascending)

    tokens, places = int(lengths.sum()), int(width_of_row.sum())
    start = lengths.cumsum(0) - lengths
    place = torch.repeat_interleave(first_place - start, lengths, output_size=tokens) + torch.arange(tokens)
    token = torch.full((places,), tokens).index_copy_(0, place, torch.arange(tokens))

    groups: list[tuple[int, int, Tensor | None]] = []
    shared = int(row[short - 1]) + 1 if short else 0
    rows_of_width, kinds = width_of_row[shared:].unique_consecutive(return_counts=True)
    if shared:
        history = torch.full((places,), -1).index_copy_(0, place, torch.repeat_interleave(lengths))
        of_row = history[: shared * SHARED].view(shared, 1, SHARED)
        seen = (of_row[..., None] == of_row[..., None, :]) & torch.ones(SHARED, SHARED, dtype=torch.bool).tril()
        groups.append((shared, SHARED, torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)))
    groups += [(rows, width, None) for width, rows in zip(rows_of_width.tolist(), kinds.tolist(), strict=True)]
    return PackedRows(groups, token, tokens)


def _widths(counts: Sequence[int]) -> list[int]:
    """How wide the rows are in which histories of each length stand.

    Args:
        counts: number of histories of each length from 0 on.
    """
    widths, width = [SHARED] * len(counts), 0
    for length in range(len(counts) - 1, SHORT, -1):
        if counts[length] and (width == 0 or width * (1 - FILLING) > length):
            width = length
        widths[length] = width
    return widths
