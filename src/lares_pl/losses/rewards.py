"""Rewards of a trajectory: a ranking metric of its target at its last step (docs/method.md, "Stage 2, RPT")."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from lares_pl.checks import check_fields
from lares_pl.errors import LaresError


class Reward(ABC):
    """Turns what a trajectory ended with into its reward."""

    #: whether it reads log-probabilities, which cost another product with the catalogue
    reads_log_probs = False

    @abstractmethod
    def __call__(self, ranks: Tensor, log_probs: Tensor | None = None) -> Tensor:
        """Rewards, float32.

        Args:
            ranks: of the targets at the last step, 1 is best; of any shape.
            log_probs: of the targets there, of the same shape; given where `reads_log_probs`.
        """


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
        k: length of the list that counts, at least 1.
    """

    k: int = 10

    def __post_init__(self) -> None:
        _check_k(self)

    def __call__(self, ranks: Tensor, log_probs: Tensor | None = None) -> Tensor:
        return recall(ranks, self.k)


@dataclass(frozen=True)
class NDCGReward(Reward):
    """NDCG@k.

    Args:
        k: length of the list that counts, at least 1.
    """

    k: int = 10

    def __post_init__(self) -> None:
        _check_k(self)

    def __call__(self, ranks: Tensor, log_probs: Tensor | None = None) -> Tensor:
        return ndcg(ranks, self.k)


@dataclass(frozen=True)
class LogProbReward(Reward):
    """Log-probability of the target: differs between trajectories even where ranks agree."""

    reads_log_probs = True

    def __call__(self, ranks: Tensor, log_probs: Tensor | None = None) -> Tensor:
        if log_probs is None:
            raise ValueError("LogProbReward needs log_probs")
        return log_probs.float()


def _check_k(reward: RecallReward | NDCGReward) -> None:
    check_fields(reward)
    if reward.k < 1:
        raise LaresError(f"{type(reward).__name__}: k must be at least 1, got {reward.k}")
