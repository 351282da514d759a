"""Rewards of a trajectory: a ranking metric of its target at its last step (docs/method.md "Stage 2, RPT")."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class Reward(ABC):
    """Turns ranks into rewards."""

    @abstractmethod
    def __call__(self, ranks: Tensor) -> Tensor:
        """Ranks (1 is best) of any shape -> rewards of that shape, float32."""


def recall(ranks: Tensor, k: int) -> Tensor:
    """1 where the one relevant item is among the first k."""
    return (ranks <= k).float()


def ndcg(ranks: Tensor, k: int) -> Tensor:
    """`1 / log2(1 + rank)` within the first k, else 0 (one relevant item: the ideal DCG is 1)."""
    return torch.where(ranks <= k, 1 / torch.log2(1 + ranks.float()), 0.0)


def reciprocal_rank(ranks: Tensor) -> Tensor:
    """`1 / rank`."""
    return 1 / ranks.float()


@dataclass(frozen=True)
class RecallReward(Reward):
    """Recall@k.

    Args:
        k: length of the list that counts.
    """

    k: int = 10

    def __call__(self, ranks: Tensor) -> Tensor:
        return recall(ranks, self.k)


@dataclass(frozen=True)
class NDCGReward(Reward):
    """NDCG@k.

    Args:
        k: length of the list that counts.
    """

    k: int = 10

    def __call__(self, ranks: Tensor) -> Tensor:
        return ndcg(ranks, self.k)
