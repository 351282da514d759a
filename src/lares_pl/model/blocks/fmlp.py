"""FMLP-Rec: a learned filter over positions instead of attention (docs/method.md "Block families").

Zhou et al. 2022, "Filter-enhanced MLP is All You Need for Sequential Recommendation", as the LARES reference uses it.
"""

from __future__ import annotations

from torch import Tensor, nn

from lares_pl.model.blocks.transformer import FeedForward
from lares_pl.model.dropout import Dropout
from lares_pl.model.layout import Layout
from lares_pl.model.spectral import SpectralFilter


class FMLPBlock(nn.Module):
    """`LN(x + dropout(irfft(rfft(x) * W)))`, then a feed-forward.

    Not causal: the filter mixes all positions, padding among them.

    Args:
        hidden_size: d.
        max_length: number of positions L; the backbone's where None.
        inner_size: inner size of the feed-forward; 4 d where None.
        dropout: on the filter's output and the feed-forward output; the backbone's where None.
        layer_norm_eps: epsilon of both normalisations.
    """

    padding_matters = True
    causal = False

    def __init__(
        self,
        hidden_size: int,
        max_length: int | None = None,
        inner_size: int | None = None,
        dropout: float | None = None,
        layer_norm_eps: float = 1e-12,
    ) -> None:
        super().__init__()
        if max_length is None:
            raise TypeError("FMLPBlock outside a backbone needs max_length")
        dropout = 0.0 if dropout is None else dropout
        self.filter = SpectralFilter(max_length, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.dropout = Dropout(dropout)
        self.feed_forward = FeedForward(hidden_size, inner_size or 4 * hidden_size, dropout, layer_norm_eps)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """`[R, L, d]` -> `[R, L, d]`."""
        y: Tensor = self.feed_forward(self.norm(x + self.dropout(self.filter(x))))
        return y
