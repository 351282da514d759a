"""The transformer layer of SASRec (docs/method.md "Block families")."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lares_pl.errors import LaresError
from lares_pl.model.dropout import Dropout
from lares_pl.model.layout import Layout


class SelfAttention(nn.Module):
    """`LN(x + dropout(W attention(x)))`: each position over itself and those before it, padding masked.

    Args:
        hidden_size: d.
        heads: attention heads; must divide `hidden_size`.
        dropout: on the output.
        attention_dropout: on the attention weights.
        layer_norm_eps: epsilon of the normalisation.
    """

    def __init__(self, hidden_size: int, heads: int, dropout: float, attention_dropout: float, layer_norm_eps: float) -> None:
        super().__init__()
        if heads < 1 or hidden_size % heads:
            raise LaresError(f"self-attention: heads={heads} does not divide hidden_size={hidden_size}")
        self.heads = heads
        self.attention_dropout = attention_dropout
        self.query_key_value = nn.Linear(hidden_size, 3 * hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """`[*layout.shape, d]` -> `[*layout.shape, d]`."""
        q, k, v = self.query_key_value(x).chunk(3, dim=-1)
        return self._joined(x, layout.causal_attention(q, k, v, self.heads, self._dropped()))

    def last(self, x: Tensor, layout: Layout) -> Tensor:
        """The same at the last position of each history alone: `[*layout.shape, d]` -> `[R, d]`."""
        size, own = x.shape[-1], layout.last(x)
        weight, bias = self.query_key_value.weight, self.query_key_value.bias
        q = F.linear(own, weight[:size], bias[:size])
        k, v = F.linear(x, weight[size:], bias[size:]).chunk(2, dim=-1)
        return self._joined(own, layout.last_attention(q, k, v, self.heads, self._dropped()))

    def _dropped(self) -> float:
        return self.attention_dropout if self.training else 0.0

    def _joined(self, x: Tensor, attended: Tensor) -> Tensor:
        y: Tensor = self.norm(x + self.dropout(self.output(attended)))
        return y


class FeedForward(nn.Module):
    """`LN(x + dropout(W2 gelu(W1 x)))`, GELU with erf.

    Args:
        hidden_size: d.
        inner_size: size between the two linear maps.
        dropout: probability of dropping a value of the second map's output.
        layer_norm_eps: epsilon of the normalisation.
    """

    def __init__(self, hidden_size: int, inner_size: int, dropout: float, layer_norm_eps: float) -> None:
        super().__init__()
        self.inner = nn.Linear(hidden_size, inner_size)
        self.outer = nn.Linear(inner_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """`[*, d]` -> `[*, d]`."""
        y: Tensor = self.norm(x + self.dropout(self.outer(F.gelu(self.inner(x)))))
        return y


class TransformerBlock(nn.Module):
    """One post-norm, causal transformer layer.

    Args:
        hidden_size: d.
        heads: attention heads; must divide `hidden_size`.
        inner_size: inner size of the feed-forward.
        dropout: on the attention output and the feed-forward output; the backbone's where None.
        attention_dropout: on the attention weights; `dropout` where None.
        layer_norm_eps: epsilon of both normalisations.
    """

    padding_matters = False
    causal = True

    def __init__(
        self,
        hidden_size: int,
        heads: int = 2,
        inner_size: int = 256,
        dropout: float | None = None,
        attention_dropout: float | None = None,
        layer_norm_eps: float = 1e-12,
    ) -> None:
        super().__init__()
        dropout = 0.0 if dropout is None else dropout
        attention_dropout = dropout if attention_dropout is None else attention_dropout
        self.attention = SelfAttention(hidden_size, heads, dropout, attention_dropout, layer_norm_eps)
        self.feed_forward = FeedForward(hidden_size, inner_size, dropout, layer_norm_eps)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """`[*layout.shape, d]` -> `[*layout.shape, d]`."""
        y: Tensor = self.feed_forward(self.attention(x, layout))
        return y

    def last(self, x: Tensor, layout: Layout) -> Tensor:
        """The same at the last position of each history alone: `[*layout.shape, d]` -> `[R, d]`."""
        y: Tensor = self.feed_forward(self.attention.last(x, layout))
        return y
