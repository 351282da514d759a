"""What a card computes in a CUDA graph, on a CPU."""

from __future__ import annotations

import pytest
from torch import Tensor

from lares_pl.model import attention, catalogue_head, dropout, target_softmax
from lares_pl.model.packed_layout import PackedLayout


def as_on_a_card(patch: pytest.MonkeyPatch) -> None:
    """Take the ways of CUDA: rows of one width, written attention, all classes at once, PyTorch's own dropout."""

    def whole(states: Tensor, classes: int) -> tuple[int, int]:
        return len(states), classes

    patch.setattr(PackedLayout, "_shared_rows", PackedLayout._one_width)
    patch.setattr(attention, "_writes_weights", lambda q, length, p: True)
    patch.setattr(target_softmax, "_by_tiles", target_softmax._at_once)
    patch.setattr(target_softmax, "tile_shape", whole)
    patch.setattr(catalogue_head, "ranking_tile_shape", whole)
    patch.setattr(dropout, "_cheaply", lambda x: False)
