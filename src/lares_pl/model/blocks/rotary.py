"""A transformer layer with rotary positions, RMS normalisation and SwiGLU, as language models use them today.

Su et al. 2021, "RoFormer"; Shazeer 2020, "GLU Variants Improve Transformer". Post-norm: repeated any number of times, the
state keeps its size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lares_pl.errors import LaresError
from lares_pl.model.dropout import Dropout
from lares_pl.model.layout import Layout


def rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """Turn each pair of channels (i, i + d / 2) by the angle `position * base^(-2 i / d)`.

    Args:
        x: `[*, heads, d]`, d even.
        positions: `[*]`.
        base: the slowest pair turns once in about `2 pi base` positions.

    Returns:
        `[*, heads, d]`.
    """
    half = x.shape[-1] // 2
    rates = base ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = (positions[..., None] * rates)[..., None, :]  # [*, 1, d / 2]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class RotaryBlock(nn.Module):
    """`RMS(x + dropout(attention(x)))`, then `RMS(x + dropout(W3 (silu(W1 x) * W2 x)))`.

    Args:
        hidden_size: d.
        heads: attention heads; `hidden_size / heads` must be an even number.
        inner_size: inner size of the SwiGLU; 8/3 d where None, which has as many weights as a feed-forward of 4 d.
        base: base of the rotary angles.
        dropout: on the attention output and the SwiGLU output; the backbone's where None.
        attention_dropout: on the attention weights; `dropout` where None.
        norm_eps: epsilon of both normalisations.
    """

    padding_matters = False
    causal = True

    def __init__(
        self,
        hidden_size: int,
        heads: int = 2,
        inner_size: int | None = None,
        base: float = 10_000.0,
        dropout: float | None = None,
        attention_dropout: float | None = None,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        if heads < 1 or hidden_size % (2 * heads):
            raise LaresError(f"RotaryBlock: hidden_size={hidden_size} is not an even number times heads={heads}")
        inner_size = inner_size or max(1, round(hidden_size * 8 / 3))
        dropout = 0.0 if dropout is None else dropout
        self.heads = heads
        self.base = base
        self.attention_dropout = dropout if attention_dropout is None else attention_dropout
        self.query_key_value = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.output = nn.Linear(hidden_size, hidden_size, bias=False)
        self.attention_norm = nn.RMSNorm(hidden_size, eps=norm_eps)
        self.gate_and_value = nn.Linear(hidden_size, 2 * inner_size, bias=False)
        self.outer = nn.Linear(inner_size, hidden_size, bias=False)
        self.outer_norm = nn.RMSNorm(hidden_size, eps=norm_eps)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """`[*layout.shape, d]` -> `[*layout.shape, d]`."""
        size = x.shape[-1]
        queries_keys, v = self.query_key_value(x).split([2 * size, size], dim=-1)
        both = queries_keys.unflatten(-1, (2 * self.heads, -1))  # the heads of the queries, then those of the keys
        q, k = rotate(both, layout.positions, self.base).flatten(-2).chunk(2, dim=-1)
        dropped = self.attention_dropout if self.training else 0.0
        attended = layout.causal_attention(q, k, v, self.heads, dropped)
        x = self.attention_norm(x + self.dropout(self.output(attended)))
        gate, value = self.gate_and_value(x).chunk(2, dim=-1)
        y: Tensor = self.outer_norm(x + self.dropout(self.outer(F.silu(gate) * value)))
        return y
