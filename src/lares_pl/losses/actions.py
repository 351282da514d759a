"""What the policy of RPT chooses from at each step (docs/method.md, "Stage 2, RPT"); the scored action is always the target.

A choice is a small frozen value picked by `class_path`; to bring your own, derive a frozen dataclass from `Actions`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from lares_pl.checks import check_fields
from lares_pl.errors import LaresError
from lares_pl.model.catalogue_head import CatalogueHead


class Actions(ABC):
    """The items that a policy chooses from."""

    @abstractmethod
    def items(self, head: CatalogueHead, states: Tensor, targets: Tensor) -> Tensor | None:
        """Items that the policy chooses from, the target first, `[R, C]` (0: none); None stands for the whole catalogue.

        Args:
            head: scores of the states against the catalogue.
            states: ends of trajectories, `[R, d]`.
            targets: `[R]`.
        """


@dataclass(frozen=True)
class WholeCatalogue(Actions):
    """All items; the paper's."""

    def items(self, head: CatalogueHead, states: Tensor, targets: Tensor) -> Tensor | None:
        return None


@dataclass(frozen=True)
class TargetAmongBest(Actions):
    """The target and the k items that the policy ranks highest at the end of the trajectory: its hardest negatives.

    Args:
        k: how many, at least 1.
    """

    k: int = 50

    def __post_init__(self) -> None:
        check_fields(self)
        if self.k < 1:
            raise LaresError(f"TargetAmongBest: k must be at least 1, got {self.k}")

    @torch.no_grad()
    def items(self, head: CatalogueHead, states: Tensor, targets: Tensor) -> Tensor | None:
        best = head.top_k(states, min(self.k, len(head.vectors) - 1))[1]
        return torch.cat([targets[:, None], best.masked_fill(best == targets[:, None], 0)], dim=1)
