"""BSARec: attention beside a rescaled high-frequency part (docs/method.md "Block families").

Shin et al. 2024, "An Attentive Inductive Bias for Sequential Recommendation beyond the Self-Attention", as the LARES
reference uses it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lares_pl.errors import LaresError
from lares_pl.model.blocks.transformer import FeedForward, SelfAttention
from lares_pl.model.dropout import Dropout
from lares_pl.model.layout import Layout
from lares_pl.model.spectral import signal, spectrum


class FrequencyRescaler(nn.Module):
    """`LN(x + dropout(low + beta^2 (x - low)))`, low = the lowest frequencies of x over positions.

    Args:
        hidden_size: d.
        cutoff: c; the first `c // 2 + 1` frequencies are low.
        dropout: probability of dropping a value.
        layer_norm_eps: epsilon of the normalisation.
    """

    def __init__(self, hidden_size: int, cutoff: int, dropout: float, layer_norm_eps: float) -> None:
        super().__init__()
        self.kept = cutoff // 2 + 1
        self.beta = nn.Parameter(torch.randn(hidden_size))
        self.norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """`[R, L, d]` -> `[R, L, d]`."""
        frequencies = spectrum(x)
        is_low = torch.arange(frequencies.shape[1], device=x.device)[:, None] < self.kept
        low = signal(frequencies * is_low, x)
        y: Tensor = self.norm(x + self.dropout(low + self.beta**2 * (x - low)))
        return y


class BSARecBlock(nn.Module):
    """`a * Frequency(x) + (1 - a) * Attention(x)`, then a feed-forward.

    Not causal: the frequency part mixes all positions, padding among them.

    Args:
        hidden_size: d.
        heads: attention heads; must divide `hidden_size`.
        inner_size: inner size of the feed-forward.
        frequency_share: a, the weight of the frequency part, within [0, 1].
        cutoff: c; the first `c // 2 + 1` frequencies are low.
        dropout: on each part's output; the backbone's where None.
        attention_dropout: on the attention weights; `dropout` where None.
        layer_norm_eps: epsilon of all normalisations.
    """

    padding_matters = True
    causal = False

    def __init__(
        self,
        hidden_size: int,
        heads: int = 2,
        inner_size: int = 256,
        frequency_share: float = 0.7,
        cutoff: int = 3,
        dropout: float | None = None,
        attention_dropout: float | None = None,
        layer_norm_eps: float = 1e-12,
    ) -> None:
        super().__init__()
        if not 0 <= frequency_share <= 1 or cutoff < 0:
            raise LaresError(
                "BSARecBlock: frequency_share must be within [0, 1] and cutoff at least 0, "
                f"got frequency_share={frequency_share}, cutoff={cutoff}"
            )
        dropout = 0.0 if dropout is None else dropout
        attention_dropout = dropout if attention_dropout is None else attention_dropout
        self.frequency_share = frequency_share
        self.frequency = FrequencyRescaler(hidden_size, cutoff, dropout, layer_norm_eps)
        self.attention = SelfAttention(hidden_size, heads, dropout, attention_dropout, layer_norm_eps)
        self.feed_forward = FeedForward(hidden_size, inner_size, dropout, layer_norm_eps)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """`[R, L, d]` -> `[R, L, d]`."""
        share = self.frequency_share
        y: Tensor = self.feed_forward(share * self.frequency(x) + (1 - share) * self.attention(x, layout))
        return y
