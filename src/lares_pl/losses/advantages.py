"""Advantages: how much better than a baseline a trajectory did (docs/method.md, "Stage 2, RPT").

A choice is a small frozen value picked by `class_path`; to bring your own, derive a frozen dataclass from `Advantage`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


class Advantage(ABC):
    """Turns rewards into advantages."""

    #: whether an instance's advantages depend on its own trajectories alone
    within_groups = False

    @abstractmethod
    def __call__(self, rewards: Tensor, total: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Compare.

        Args:
            rewards: of G trajectories of B instances, `[B, G]`, G at least 2.
            total: adds a tensor up over all processes; None: there is one.

        Returns:
            `[B, G]`.
        """


@dataclass(frozen=True)
class GroupAdvantage(Advantage):
    """`(r - mean_G r) / (std_G r + 1e-4)`, std unbiased, within the trajectories of an instance; the paper's.

    Sums to zero over each group, and is zero where all its trajectories agree.
    """

    within_groups = True

    def __call__(self, rewards: Tensor, total: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        rewards = rewards - rewards[:, :1]  # equal ones are exactly 0 then, and so is their mean
        spread = rewards.std(dim=1, keepdim=True)
        return (rewards - rewards.mean(dim=1, keepdim=True)) / (spread + 1e-4)


@dataclass(frozen=True)
class BatchAdvantage(Advantage):
    """`(r - mean r) / (std r + 1e-4)` over all trajectories of the batch, std unbiased.

    Groups whose trajectories agree count as well: instances that the model ranks well are reinforced, others are weakened.
    """

    def __call__(self, rewards: Tensor, total: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        def added(x: Tensor) -> Tensor:
            return x if total is None else total(x)

        count = torch.full_like(rewards[0, 0], rewards.numel())
        sum_, count = added(torch.stack([rewards.sum(), count])).unbind()
        centred = rewards - sum_ / count
        return centred / ((added(centred.square().sum()) / (count - 1)).sqrt() + 1e-4)
