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

from lares_pl.errors import LaresError


class SupervisedStates(NamedTuple):
    """What the loss reads of a trajectory."""

    states: Tensor  # [S, R, d]
    weights: Tensor  # [S], their sum is 1


class Supervision(ABC):
    """Selects states of a trajectory for the next-item loss."""

    #: whether it reads draws of each row, which batches then bring
    reads_draws = True

    @abstractmethod
    def __call__(
        self, trajectory: Tensor, generator: torch.Generator | None = None, of_rows: Tensor | None = None
    ) -> SupervisedStates:
        """Select.

        Args:
            trajectory: user states of steps 1 … T, `[T, R, d]`.
            generator: of draws that all rows share, on the CPU.
            of_rows: two uniform draws from (0, 1) of each row, `[R, 2]`; from `generator` where None.
        """


@dataclass(frozen=True)
class LastStep(Supervision):
    """The last step; the paper's."""

    reads_draws = False

    def __call__(
        self, trajectory: Tensor, generator: torch.Generator | None = None, of_rows: Tensor | None = None
    ) -> SupervisedStates:
        return SupervisedStates(trajectory[-1:], trajectory.new_ones(1))


@dataclass(frozen=True)
class EveryStep(Supervision):
    """All steps; costs T products with the catalogue.

    Args:
        decay: weight of a step relative to the one after it, above 0; 1 weighs all alike.
    """

    decay: float = 1.0
    reads_draws = False

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1:
            raise LaresError(f"EveryStep: decay must be within (0, 1], got {self.decay}")

    def __call__(
        self, trajectory: Tensor, generator: torch.Generator | None = None, of_rows: Tensor | None = None
    ) -> SupervisedStates:
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
    reads_draws = False

    def __post_init__(self) -> None:
        if not 0 < self.last_weight < 1:
            raise LaresError(f"LastAndRandomStep: last_weight must be within (0, 1), got {self.last_weight}")

    def __call__(
        self, trajectory: Tensor, generator: torch.Generator | None = None, of_rows: Tensor | None = None
    ) -> SupervisedStates:
        if len(trajectory) == 1:
            return LastStep()(trajectory)
        earlier = int(torch.randint(len(trajectory) - 1, (), generator=generator))
        weights = torch.full((2,), self.last_weight, device=trajectory.device)
        weights[0] = 1 - self.last_weight
        return SupervisedStates(torch.stack([trajectory[earlier], trajectory[-1]]), weights)


@dataclass(frozen=True)
class StepPerInstance(Supervision):
    """One step of each instance: the last one with some probability, else one drawn uniformly from all.

    Trains every step at the cost of one product with the catalogue, as each instance is read once.

    Args:
        last_probability: probability of the last step, within [0, 1].
    """

    last_probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.last_probability <= 1:
            raise LaresError(f"StepPerInstance: last_probability must be within [0, 1], got {self.last_probability}")

    def __call__(
        self, trajectory: Tensor, generator: torch.Generator | None = None, of_rows: Tensor | None = None
    ) -> SupervisedStates:
        steps, rows = trajectory.shape[:2]
        if of_rows is None:
            of_rows = torch.rand(rows, 2, generator=generator).to(trajectory.device)
        drawn = (of_rows[:, 0] * steps).long().clamp(max=steps - 1)
        chosen = torch.where(of_rows[:, 1] < self.last_probability, steps - 1, drawn)
        places = chosen * rows + torch.arange(rows, device=trajectory.device)
        states = trajectory.flatten(0, 1).index_select(0, places)  # its gradient is one scattering, indexing's sorts first
        return SupervisedStates(states[None], trajectory.new_ones(1))
