"""Depth schedules: how many reasoning steps a forward pass makes (docs/method.md "Backbone"; paper, section on recurrence).

A schedule is a small frozen value, chosen by `class_path`. `mean` is also the depth of evaluation.
To bring your own, derive a frozen dataclass from `DepthSchedule`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from lares_pl.checks import check_fields
from lares_pl.errors import LaresError


class DepthSchedule(ABC):
    """Draws the depth T of one training pass; `evaluation_depth` is used where nothing is drawn."""

    #: the lowest depth that can be drawn
    least = 0

    @abstractmethod
    def sample(self, generator: torch.Generator | None = None) -> int:
        """One depth, drawn with a CPU generator (the global one where None)."""

    @property
    @abstractmethod
    def evaluation_depth(self) -> int:
        """Depth in validation, test and prediction unless another one is asked for."""


def _poisson(rate: float, generator: torch.Generator | None) -> int:
    return int(torch.poisson(torch.tensor(rate, dtype=torch.float64), generator=generator))


@dataclass(frozen=True)
class _MeanDepth(DepthSchedule):
    """Schedules around a mean depth.

    Args:
        mean: mean depth, at least 1; also the depth of evaluation.
    """

    mean: int = 4
    least = 1

    def __post_init__(self) -> None:
        check_fields(self)
        if self.mean < 1:
            raise LaresError(f"mean depth must be at least 1, got {self.mean}")

    @property
    def evaluation_depth(self) -> int:
        return self.mean


@dataclass(frozen=True)
class PoissonLogNormal(_MeanDepth):
    """`T = min(Poisson(lambda) + 1, 3 * mean)`, `lambda ~ LogNormal(ln(mean) - sigma^2 / 2, sigma)`; the paper's.

    Args:
        mean: mean of lambda; also the depth of evaluation.
        sigma: spread of the log-normal.
    """

    sigma: float = 0.5

    def sample(self, generator: torch.Generator | None = None) -> int:
        normal = float(torch.randn((), generator=generator, dtype=torch.float64))
        rate = math.exp(math.log(self.mean) - self.sigma**2 / 2 + self.sigma * normal)
        return min(_poisson(rate, generator) + 1, 3 * self.mean)


@dataclass(frozen=True)
class Poisson(_MeanDepth):
    """`T ~ Poisson(mean)`, at least 1 (a pass without a step has no reasoning to train).

    Args:
        mean: mean of the Poisson draw; also the depth of evaluation.
    """

    def sample(self, generator: torch.Generator | None = None) -> int:
        return max(1, _poisson(self.mean, generator))


@dataclass(frozen=True)
class BoundedPoisson(_MeanDepth):
    """`T ~ Poisson(mean)`, kept within 1 and 2 * mean.

    Args:
        mean: mean of the Poisson draw; also the depth of evaluation.
    """

    def sample(self, generator: torch.Generator | None = None) -> int:
        return min(max(1, _poisson(self.mean, generator)), 2 * self.mean)


@dataclass(frozen=True)
class UniformDepth(_MeanDepth):
    """`T` uniform on 1 … 2 * mean.

    Args:
        mean: half of the largest depth; also the depth of evaluation.
    """

    def sample(self, generator: torch.Generator | None = None) -> int:
        return int(torch.randint(1, 2 * self.mean + 1, (), generator=generator))


@dataclass(frozen=True)
class ConstantDepth(DepthSchedule):
    """Always the same depth.

    Args:
        depth: number of steps; 0 leaves recurrence out (the pre-block's output is the user state), 1 is the
            reference's schedule `none`.
    """

    depth: int = 4

    def __post_init__(self) -> None:
        check_fields(self)
        if self.depth < 0:
            raise LaresError(f"depth must not be negative, got {self.depth}")

    def sample(self, generator: torch.Generator | None = None) -> int:
        return self.depth

    @property
    def least(self) -> int:  # type: ignore[override]
        return self.depth

    @property
    def evaluation_depth(self) -> int:
        return self.depth
