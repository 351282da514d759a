"""Which steps of a trajectory the next-item loss reads, and with which weight.

The paper reads the last step alone. Reading earlier steps as well trains each of them to rank, so that a model gives good lists
at every depth. A choice is a small frozen value picked by `class_path`; to bring your own, derive a frozen dataclass from
`Supervision`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lares_pl.checks import check_fields
from lares_pl.errors import LaresError


class SupervisedStates(NamedTuple):
    """What the loss reads of a trajectory."""

    states: Tensor  # [S, R, d]
    weights: Tensor  # [S], their sum is 1


class Supervision(ABC):
    """Selects states of a trajectory for the next-item loss."""

    @abstractmethod
    def __call__(self, trajectory: Tensor, generator: torch.Generator | None = None) -> SupervisedStates:
        """Select.

        Args:
            trajectory: user states of steps 1 … T, `[T, R, d]`.
            generator: of draws, on the CPU.
        """


@dataclass(frozen=True)
class LastStep(Supervision):
    """The last step; the paper's."""

    def __call__(self, trajectory: Tensor, generator: torch.Generator | None = None) -> SupervisedStates:
        return SupervisedStates(trajectory[-1:], trajectory.new_ones(1))


@dataclass(frozen=True)
class EveryStep(Supervision):
    """All steps; costs T products with the catalogue.

    Args:
        decay: weight of a step relative to the one after it, above 0; 1 weighs all alike.
    """

    decay: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.decay <= 1:
            raise LaresError(f"EveryStep: decay must be within (0, 1], got {self.decay}")

    def __call__(self, trajectory: Tensor, generator: torch.Generator | None = None) -> SupervisedStates:
        steps = len(trajectory)
        weights = self.decay ** torch.arange(steps - 1, -1, -1, device=trajectory.device, dtype=torch.float32)
        return SupervisedStates(trajectory, weights / weights.sum())


@dataclass(frozen=True)
class LastAndRandomStep(Supervision):
    """The last step, and one drawn uniformly from those before it; costs two products with the catalogue.

    Args:
        last_weight: weight of the last step, within (0, 1); the other one has the rest.
    """

    last_weight: float = 0.5

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.last_weight < 1:
            raise LaresError(f"LastAndRandomStep: last_weight must be within (0, 1), got {self.last_weight}")

    def __call__(self, trajectory: Tensor, generator: torch.Generator | None = None) -> SupervisedStates:
        if len(trajectory) == 1:
            return LastStep()(trajectory)
        earlier = int(torch.randint(len(trajectory) - 1, (), generator=generator))
        weights = torch.full((2,), self.last_weight, device=trajectory.device)
        weights[0] = 1 - self.last_weight
        return SupervisedStates(torch.stack([trajectory[earlier], trajectory[-1]]), weights)
