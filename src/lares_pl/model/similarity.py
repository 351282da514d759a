"""How a state and an item are compared: by dot products, or by cosines over a temperature."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from lares_pl.checks import check_fields
from lares_pl.errors import LaresError


class Similarity(ABC):
    """`normalise(state) · normalise(item) / tau`."""

    tau: float = 1.0

    @abstractmethod
    def normalise(self, x: Tensor) -> Tensor:
        """What is done to each side before the dot product, `[*, d]` -> `[*, d]`."""

    def transform(self, states: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """States `[R, d]` and item vectors `[n, d]` such that their dot products are the scores."""
        states = self.normalise(states)
        return states if self.tau == 1 else states / self.tau, self.normalise(items)


@dataclass(frozen=True)
class DotSimilarity(Similarity):
    """`state · item`."""

    def normalise(self, x: Tensor) -> Tensor:
        return x


@dataclass(frozen=True)
class CosineSimilarity(Similarity):
    """`cos(state, item) / tau`.

    Args:
        tau: temperature, above 0.
    """

    tau: float = 0.07

    def __post_init__(self) -> None:
        check_fields(self)
        if self.tau <= 0:
            raise LaresError(f"tau must be above 0, got {self.tau}")

    def normalise(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)
