"""A causal filter over the last few positions, then a transformer layer.

Frequency filters over positions (FMLP-Rec, BSARec) lift sequential recommenders, but mix all positions, later ones too. A short
filter that looks back alone keeps a block causal, so that every prefix of a history is read in one pass. Four numbers a channel
by default. Not part of the LARES paper.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lares_pl.errors import LaresError
from lares_pl.model.blocks.transformer import TransformerBlock
from lares_pl.model.dropout import Dropout
from lares_pl.model.layout import Layout


class CausalFilter(nn.Module):
    """`LN(x + dropout(sum_k w_k * x_(t - k)))`: each channel over its own last values; nothing stands before a history.

    Args:
        hidden_size: d.
        width: number of positions K that are read, the own one among them.
        dropout: probability of dropping a value of the filter's output.
        layer_norm_eps: epsilon of the normalisation.
    """

    def __init__(self, hidden_size: int, width: int, dropout: float, layer_norm_eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, hidden_size) * 0.02)
        self.norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """`[*layout.shape, d]` -> `[*layout.shape, d]`."""
        y: Tensor = self.norm(x + self.dropout(layout.causal_filter(x, self.weight)))
        return y


class ConvTransformerBlock(nn.Module):
    """A causal filter over the last positions before a post-norm, causal transformer layer.

    Args:
        hidden_size: d.
        heads: attention heads; must divide `hidden_size`.
        inner_size: inner size of the feed-forward.
        width: positions that the filter reads, the own one among them.
        dropout: on the outputs of filter, attention and feed-forward; the backbone's where None.
        attention_dropout: on the attention weights; `dropout` where None.
        layer_norm_eps: epsilon of all normalisations.
    """

    padding_matters = False
    causal = True

    def __init__(
        self,
        hidden_size: int,
        heads: int = 2,
        inner_size: int = 256,
        width: int = 4,
        dropout: float | None = None,
        attention_dropout: float | None = None,
        layer_norm_eps: float = 1e-12,
    ) -> None:
        super().__init__()
        if width < 1:
            raise LaresError(f"ConvTransformerBlock: width must be at least 1, got {width}")
        self.filter = CausalFilter(hidden_size, width, 0.0 if dropout is None else dropout, layer_norm_eps)
        self.layer = TransformerBlock(hidden_size, heads, inner_size, dropout, attention_dropout, layer_norm_eps)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """`[*layout.shape, d]` -> `[*layout.shape, d]`."""
        y: Tensor = self.layer(self.filter(x, layout), layout)
        return y

    def last(self, x: Tensor, layout: Layout) -> Tensor:
        """The same at the last position of each history alone: `[*layout.shape, d]` -> `[R, d]`."""
        return self.layer.last(self.filter(x, layout), layout)
