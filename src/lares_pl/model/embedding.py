"""Item and position embeddings (METHOD "Backbone", step 1)."""

from __future__ import annotations

from torch import Tensor, nn

from lares_pl.model.layout import Layout


class ItemPositionEmbedding(nn.Module):
    """`dropout(LN(item_embedding[history] + position_embedding))`.

    Args:
        items: catalogue size N; index 0 is padding.
        max_length: longest history L.
        hidden_size: d.
        dropout: probability of dropping a value.
        layer_norm_eps: epsilon of the normalisation.
    """

    def __init__(self, items: int, max_length: int, hidden_size: int, dropout: float, layer_norm_eps: float) -> None:
        super().__init__()
        self.item = nn.Embedding(items + 1, hidden_size, padding_idx=0)
        self.position = nn.Embedding(max_length, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, items: Tensor, layout: Layout) -> Tensor:
        """Items `[*layout.shape]` -> token states `[*layout.shape, d]`."""
        x: Tensor = self.dropout(self.norm(self.item(items) + self.position(layout.positions)))
        return x
