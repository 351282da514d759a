"""What turns a history into token states: items and positions, and TedRec's fusion with item text.

docs/method.md "Backbone", step 1, and "Block families", TedRec. An embedder is a small frozen value chosen by `class_path`; it
builds the module.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lares_pl.checks import check_fields
from lares_pl.errors import LaresError
from lares_pl.model.dropout import Dropout
from lares_pl.model.layout import Layout
from lares_pl.model.sharding import is_sharded, rows_of, sharded
from lares_pl.model.spectral import SpectralFilter, signal, spectrum

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class ItemText(nn.Module):
    """Frozen text vectors of the catalogue, kept in the precision they come in.

    Args:
        vectors: `[N + 1, p]`; row 0 is padding, items without text are zero.
    """

    vectors: Tensor

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.register_buffer("vectors", vectors)

    def forward(self, items: Tensor) -> Tensor:
        """Items `[*]` -> vectors `[*, p]`."""
        return rows_of(self.vectors).look_up(items)

    def shard(self, mesh: DeviceMesh) -> None:
        """Keep this process's rows only; does nothing the second time (several backbones share one text)."""
        if not is_sharded(self.vectors):
            self.vectors = sharded(self.vectors, mesh)


class ItemTable(nn.Embedding):
    """A vector for each item, whole or by rows over processes; row 0 (padding) gets no gradient from lookups."""

    def forward(self, items: Tensor) -> Tensor:
        """Items `[*]` -> vectors `[*, d]`."""
        return rows_of(self.weight).look_up(items, self.padding_idx)

    def shard(self, mesh: DeviceMesh) -> None:
        """Keep this process's rows only; does nothing the second time."""
        if not is_sharded(self.weight):
            self.weight = sharded(self.weight, mesh)


class ItemPositionEmbedding(nn.Module):
    """`dropout(LN(item_embedding[history] + position_embedding))`.

    Args:
        items: catalogue size N; index 0 is padding.
        max_length: longest history L.
        hidden_size: d.
        dropout: probability of dropping a value.
        layer_norm_eps: epsilon of the normalisation.
        positions: whether there is a position embedding.
    """

    padding_matters = False
    causal = True

    def __init__(
        self, items: int, max_length: int, hidden_size: int, dropout: float, layer_norm_eps: float, positions: bool = True
    ) -> None:
        super().__init__()
        self.item = ItemTable(items + 1, hidden_size, padding_idx=0)
        self.position = nn.Embedding(max_length, hidden_size) if positions else None
        self.norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.dropout = Dropout(dropout)

    def represent(self, items: Tensor) -> Tensor:
        """What stands for each item before its position is added, `[*layout.shape]` -> `[*layout.shape, d]`."""
        vectors: Tensor = self.item(items)
        return vectors

    def forward(self, items: Tensor, layout: Layout) -> Tensor:
        """Items `[*layout.shape]` -> token states `[*layout.shape, d]`."""
        x = self.represent(items)
        if self.position is not None:
            x = x + self.position(layout.positions)
        y: Tensor = self.dropout(self.norm(x))
        return y


class Expert(nn.Module):
    """`W (dropout(e) - bias[position])`, W without a bias of its own.

    Args:
        text_size: p.
        max_length: number of positions L.
        hidden_size: d.
        dropout: probability of dropping a value of a text vector.
    """

    def __init__(self, text_size: int, max_length: int, hidden_size: int, dropout: float) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(max_length, text_size))
        self.linear = nn.Linear(text_size, hidden_size, bias=False)
        self.dropout = Dropout(dropout)

    def forward(self, text: Tensor) -> Tensor:
        """`[R, L, p]` -> `[R, L, d]`."""
        adapted: Tensor = self.linear(self.dropout(text) - self.bias)
        return adapted


class ExpertMixture(nn.Module):
    """Text vectors adapted by a mixture of experts.

    Gates are `softmax(e W_g)`, in training `softmax(e W_g + randn * (softplus(e W_n) + 0.01))`.

    Args:
        text_size: p.
        max_length: number of positions L.
        hidden_size: d.
        experts: number of experts.
        dropout: probability of dropping a value of a text vector, for each expert anew.
    """

    def __init__(self, text_size: int, max_length: int, hidden_size: int, experts: int, dropout: float) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(text_size, experts))
        self.gate_noise = nn.Parameter(torch.zeros(text_size, experts))
        self.experts = nn.ModuleList(Expert(text_size, max_length, hidden_size, dropout) for _ in range(experts))

    def forward(self, text: Tensor) -> Tensor:
        """`[R, L, p]` -> `[R, L, d]`."""
        logits = text @ self.gate  # [R, L, experts]
        if self.training:
            logits = logits + torch.randn_like(logits) * (F.softplus(text @ self.gate_noise) + 0.01)
        shares = logits.softmax(dim=-1)
        adapted: Tensor = shares[..., :1] * self.experts[0](text)
        for k, expert in enumerate(list(self.experts)[1:], start=1):
            adapted = adapted + shares[..., k : k + 1] * expert(text)
        return adapted


class TextFusionEmbedding(ItemPositionEmbedding):
    """Items fused with their text in the frequency domain over positions (TedRec), then positions, norm and dropout.

    With `item_conv = irfft(rfft(item) W)` and `fusion = irfft(rfft(text) rfft(item))`, an item is represented by
    `2 (item_conv sigmoid(g1(item_conv)) + fusion sigmoid(g2(fusion)))`. Not causal: frequencies mix all positions.

    Args:
        items, max_length, hidden_size, dropout, layer_norm_eps: as `ItemPositionEmbedding`.
        text: vectors of the items.
        experts: number of experts that adapt the text.
        expert_dropout: dropout of the text vectors before each expert.
    """

    padding_matters = True
    causal = False

    def __init__(
        self,
        items: int,
        max_length: int,
        hidden_size: int,
        dropout: float,
        layer_norm_eps: float,
        text: ItemText,
        experts: int,
        expert_dropout: float,
    ) -> None:
        super().__init__(items, max_length, hidden_size, dropout, layer_norm_eps)
        self.text = text
        self.mixture = ExpertMixture(text.vectors.shape[1], max_length, hidden_size, experts, expert_dropout)
        self.item_filter = SpectralFilter(max_length, hidden_size)
        self.item_gate = nn.Linear(hidden_size, 1)
        self.fusion_gate = nn.Linear(hidden_size, 1)

    def represent(self, items: Tensor) -> Tensor:
        item = self.item(items)
        text = self.mixture(self.text(items).to(item.dtype))
        convolved = self.item_filter(item)
        fused = signal(spectrum(text) * spectrum(item), item)
        gated: Tensor = convolved * self.item_gate(convolved).sigmoid() + fused * self.fusion_gate(fused).sigmoid()
        return 2 * gated


# ---------------------------------------------------------------- the choice


class Embedder(ABC):
    """Builds the module that turns a history into token states."""

    #: whether it needs text vectors of the items
    reads_text = False

    @abstractmethod
    def build(
        self,
        items: int,
        max_length: int,
        hidden_size: int,
        dropout: float,
        layer_norm_eps: float,
        text: ItemText | None,
    ) -> ItemPositionEmbedding:
        """A module called as `module(items, layout)`, for a catalogue of `items` items and their `text`."""

    def with_dropout(self, dropout: float) -> Embedder:
        """The same with this dropout wherever it has one of its own."""
        return self


@dataclass(frozen=True)
class ItemEmbedder(Embedder):
    """Items and their positions; the paper's.

    Args:
        positions: whether there is a position embedding; blocks that know positions themselves can do without.
    """

    positions: bool = True

    def build(
        self, items: int, max_length: int, hidden_size: int, dropout: float, layer_norm_eps: float, text: ItemText | None
    ) -> ItemPositionEmbedding:
        return ItemPositionEmbedding(items, max_length, hidden_size, dropout, layer_norm_eps, self.positions)


@dataclass(frozen=True)
class TedRecEmbedder(Embedder):
    """Items fused with their text, and positions (TedRec); needs a dataset with item text.

    Args:
        experts: number of experts that adapt the text vectors.
        expert_dropout: dropout of the text vectors before each expert.
    """

    experts: int = 8
    expert_dropout: float = 0.2
    reads_text = True

    def __post_init__(self) -> None:
        check_fields(self)
        if self.experts < 1 or not 0 <= self.expert_dropout < 1:
            raise LaresError(
                "TedRecEmbedder: experts must be at least 1 and expert_dropout within [0, 1), "
                f"got experts={self.experts}, expert_dropout={self.expert_dropout}"
            )

    def build(
        self, items: int, max_length: int, hidden_size: int, dropout: float, layer_norm_eps: float, text: ItemText | None
    ) -> ItemPositionEmbedding:
        if text is None:
            raise LaresError("TedRecEmbedder reads item text and there is none: RecurrentBackbone(…, text=ItemText(vectors))")
        return TextFusionEmbedding(
            items, max_length, hidden_size, dropout, layer_norm_eps, text, self.experts, self.expert_dropout
        )

    def with_dropout(self, dropout: float) -> TedRecEmbedder:
        return replace(self, expert_dropout=dropout)
