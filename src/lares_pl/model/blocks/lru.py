"""A gated linear-recurrent block (LRURec): no attention, cost linear in the length.

Yue et al. 2024, "Linear Recurrent Units for Sequential Recommendation"; the unit is Orvieto et al. 2023, "Resurrecting
Recurrent Neural Networks for Long Sequences"; the gate on the output is that of the gated variants since.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lares_pl.errors import LaresError
from lares_pl.model.blocks.transformer import FeedForward
from lares_pl.model.dropout import Dropout
from lares_pl.model.layout import Layout


def linear_scan(x: Tensor, decay: Tensor) -> Tensor:
    """`h_t = decay * h_(t-1) + x_t` from `h_(-1) = 0`, in log2(L) steps.

    After a step with shift s, position t holds the sum over its last 2 s positions; the decay is squared from step to step.

    Args:
        x: `[R, L, d]`, real or complex.
        decay: `[d]`.

    Returns:
        `[R, L, d]`.
    """
    shift = 1
    while shift < x.shape[1]:
        x = torch.cat([x[:, :shift], x[:, shift:] + decay * x[:, :-shift]], dim=1)
        shift, decay = 2 * shift, decay * decay
    return x


class LRUBlock(nn.Module):
    """`LN(x + dropout(silu(gate) * C h))` with a diagonal complex recurrence h, then a feed-forward.

    Args:
        hidden_size: d; the recurrence has as many complex channels.
        inner_size: inner size of the feed-forward; 4 d where None.
        slowest: largest absolute value of an initial decay.
        fastest: smallest absolute value of an initial decay.
        dropout: on the recurrence's output and the feed-forward output; the backbone's where None.
        layer_norm_eps: epsilon of both normalisations.
    """

    padding_matters = False
    causal = True

    def __init__(
        self,
        hidden_size: int,
        inner_size: int | None = None,
        slowest: float = 0.99,
        fastest: float = 0.8,
        dropout: float | None = None,
        layer_norm_eps: float = 1e-12,
    ) -> None:
        super().__init__()
        if not 0 < fastest <= slowest < 1:
            raise LaresError(f"LRUBlock: 0 < fastest <= slowest < 1 is needed, got fastest={fastest}, slowest={slowest}")
        dropout = 0.0 if dropout is None else dropout
        # decay = exp(-exp(nu) + i exp(theta)); |decay|^2 uniform within [fastest^2, slowest^2], angles within a tenth of a turn
        squared = fastest**2 + torch.rand(hidden_size) * (slowest**2 - fastest**2)
        self.nu = nn.Parameter(torch.log(-0.5 * torch.log(squared)))
        self.theta = nn.Parameter(torch.log(torch.rand(hidden_size).clamp(min=1e-3) * (math.pi / 5)))
        self.scale = nn.Parameter(0.5 * torch.log1p(-squared))  # log sqrt(1 - |decay|^2): states start at the inputs' size
        self.into = nn.Linear(hidden_size, 3 * hidden_size)  # real part, imaginary part, gate
        self.output = nn.Linear(2 * hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.dropout = Dropout(dropout)
        self.feed_forward = FeedForward(hidden_size, inner_size or 4 * hidden_size, dropout, layer_norm_eps)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """`[*layout.shape, d]` -> `[*layout.shape, d]`."""
        size = x.shape[-1]
        parts, gate = self.into(x).split([2 * size, size], dim=-1)
        exact = torch.float64 if x.dtype == torch.float64 else torch.float32  # no complex numbers in half precision
        real, imaginary = layout.pad(parts.to(exact)).chunk(2, dim=-1)
        scale, decay = self.scale.to(exact).exp(), (-self.nu.to(exact).exp()).exp()
        inputs = torch.complex(real * scale, imaginary * scale)
        states = linear_scan(inputs, torch.polar(decay, self.theta.to(exact).exp()))
        recurrent = layout.unpad(torch.cat([states.real, states.imag], dim=-1)).to(gate.dtype)
        y: Tensor = self.norm(x + self.dropout(self.output(recurrent) * F.silu(gate)))
        y = self.feed_forward(y)
        return y
