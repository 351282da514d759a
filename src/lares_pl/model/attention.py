"""Scaled dot-product attention: over padded rows, and over packed tokens on a CPU.

Packed short histories are laid next to each other on shelves of one width: a few large products instead of many small ones,
whatever the lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lares_pl.model.dropout import dropout

SHELF = 40  # tokens that lie on a shelf
SHORT = SHELF // 2  # histories of up to this length share shelves
FEW = 32  # up to so many tokens a row, weights of attention are written down in a CUDA graph, where launches cost nothing
FILLING = 1 / 8  # longer ones of about one length stand in rows of one width, filled up by at most this share


def causal_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, p: float, mask: Tensor | None = None) -> Tensor:
    """Causal attention of rows.

    Args:
        q, k, v: `[R, L, d]`.
        heads: number of heads.
        p: probability of dropping an attention weight.
        mask: 0 where a query sees a key and -inf elsewhere, `[R, 1, L, L]`; where None each sees all up to itself.

    Returns:
        `[R, L, d]`.
    """
    rows, length, size = q.shape
    q, k, v = (x.reshape(rows, length, heads, size // heads).transpose(1, 2) for x in (q, k, v))
    mask = None if mask is None else mask.to(q.dtype)
    # on a CPU PyTorch's own path would write the weights down as well, and draw them dearly; that of CUDA launches one kernel,
    # which for rows of 20 takes two to three times as long as several would: it computes blocks of 64
    written = p > 0 if q.device.type == "cpu" else q.is_cuda and length <= FEW and torch.cuda.is_current_stream_capturing()
    if written:
        if mask is None:
            mask = torch.full((length, length), -torch.inf, dtype=q.dtype, device=q.device).triu(1)
        scores = (q * (size // heads) ** -0.5) @ k.transpose(-1, -2) + mask
        out = dropout(scores.softmax(dim=-1), p) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p, is_causal=mask is None)
    return out.transpose(1, 2).reshape(rows, length, size)


class _Arrange(torch.autograd.Function):
    """Rows in another order; gradients come back the same way instead of being scattered, which is slow on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return F.pad(gradients[0], (0, 0, 0, 1)).index_select(0, back), None, None


@dataclass(frozen=True)
class PackedRows:
    """Packed tokens, put on shelves.

    Args:
        groups: number of rows, their width, and what is seen in them (`[rows, 1, width, width]`; the past where None).
        token: the token at each place, `[P]`; any one where there is none.
        token_or_none: the same, with M where there is none.
        place: the place of each token, `[M]`.
    """

    groups: Sequence[tuple[int, int, Tensor | None]]
    token: Tensor
    token_or_none: Tensor
    place: Tensor

    def causal_attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, p: float) -> Tensor:
        """Attention of packed tokens `[M, d]`, each over its own history up to itself."""
        # what stands at empty places is seen by nobody, so that no gradient comes from there
        q, k, v = (_Arrange.apply(x, self.token, self.place) for x in (q, k, v))  # type: ignore[no-untyped-call]
        parts, start = [], 0
        for rows, width, mask in self.groups:
            part = slice(start, start := start + rows * width)
            rows_q, rows_k, rows_v = (x[part].view(rows, width, -1) for x in (q, k, v))
            parts.append(causal_attention(rows_q, rows_k, rows_v, heads, p, mask).flatten(0, 1))
        out: Tensor = _Arrange.apply(torch.cat(parts), self.place, self.token_or_none)  # type: ignore[no-untyped-call]
        return out


def packed_rows(lengths: Tensor) -> PackedRows:
    """Put histories of these lengths `[R]` on shelves."""
    order = torch.argsort(lengths, stable=True)
    ascending = lengths[order]
    counts = lengths.bincount()
    short = int(counts[: SHORT + 1].sum())
    widths = torch.tensor(_widths(counts.tolist()))[ascending]  # of the rows in which they stand
    fitting = torch.where(ascending <= SHORT, SHELF // ascending, 1)  # histories side by side in a row
    number = torch.arange(len(lengths)) - (counts.cumsum(0) - counts)[ascending]  # among those of its length
    new_row = number % fitting == 0
    row = new_row.cumsum(0) - 1
    width_of_row = widths[new_row]
    start_of_row = width_of_row.cumsum(0) - width_of_row
    first_place = torch.empty_like(lengths).index_copy_(0, order, start_of_row[row] + number % fitting * ascending)

    tokens, places = int(lengths.sum()), int(width_of_row.sum())
    start = lengths.cumsum(0) - lengths
    place = torch.repeat_interleave(first_place - start, lengths, output_size=tokens) + torch.arange(tokens)
    token_or_none = torch.full((places,), tokens).index_copy_(0, place, torch.arange(tokens))

    groups: list[tuple[int, int, Tensor | None]] = []
    shelved = int(row[short - 1]) + 1 if short else 0
    rows_of_width, kinds = width_of_row[shelved:].unique_consecutive(return_counts=True)
    if shelved:
        history = torch.full((places,), -1).index_copy_(0, place, torch.repeat_interleave(lengths))
        of_row = history[: shelved * SHELF].view(shelved, 1, SHELF)
        seen = (of_row[..., None] == of_row[..., None, :]) & torch.ones(SHELF, SHELF, dtype=torch.bool).tril()
        groups.append((shelved, SHELF, torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)))
    groups += [(rows, width, None) for width, rows in zip(rows_of_width.tolist(), kinds.tolist(), strict=True)]
    return PackedRows(groups, token_or_none.clamp(max=tokens - 1), token_or_none, place)


def _widths(counts: Sequence[int]) -> list[int]:
    """How wide the rows are in which histories of each length stand.

    Args:
        counts: number of histories of each length from 0 on.
    """
    widths, width = [SHELF] * len(counts), 0
    for length in range(len(counts) - 1, SHORT, -1):
        if counts[length] and (width == 0 or width * (1 - FILLING) > length):
            width = length
        widths[length] = width
    return widths
