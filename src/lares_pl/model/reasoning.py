"""Compute at test time: how long a trained model reasons about each history, and from how many initial states.

Depth is the same for all histories unless a `StopRule` ends each trajectory once it has arrived; what has arrived leaves the
batch. A second axis runs several trajectories from different initial states and averages their scores.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lares_pl.data.loading.histories import Histories
from lares_pl.errors import LaresError
from lares_pl.model.backbone import RecurrentBackbone
from lares_pl.model.catalogue_head import CatalogueHead
from lares_pl.model.recurrence import KeyedNoise, Noise

# ---------------------------------------------------------------- when to stop


@dataclass(frozen=True)
class StopRule(ABC):
    """Ends a trajectory once a step changes less than a threshold; chosen by `class_path`.

    A rule of one's own derives from this class and defines `change`; further options are arguments of its constructor.

    Args:
        threshold: a smaller change ends the trajectory.
        least: number of steps that each trajectory makes in any case, at least 2: the first one starts from noise.

    Raises:
        LaresError: if threshold is negative or least below 2.
    """

    threshold: float
    least: int = 2

    def __post_init__(self) -> None:
        if not self.threshold >= 0 or self.least < 2:
            name = type(self).__name__
            raise LaresError(
                f"{name}: threshold must not be negative and least must be at least 2, got {self.threshold} and {self.least}"
            )

    @abstractmethod
    def change(self, head: CatalogueHead, before: Tensor, after: Tensor) -> Tensor:
        """How much a step changed user states.

        Args:
            head: what the states say about the catalogue.
            before, after: `[R, d]`.

        Returns:
            `[R]`.
        """


@dataclass(frozen=True)
class ResidualStop(StopRule):
    """Stop when the user state stands still: `|z_t - z_(t-1)| / |z_t|`; costs next to nothing.

    Args:
        threshold: a smaller change ends the trajectory.
        least: number of steps that each trajectory makes in any case, at least 2.
    """

    threshold: float = 0.05
    least: int = 2

    def change(self, head: CatalogueHead, before: Tensor, after: Tensor) -> Tensor:
        residual: Tensor = (after - before).norm(dim=-1) / after.norm(dim=-1).clamp(min=1e-12)
        return residual


@dataclass(frozen=True)
class DivergenceStop(StopRule):
    """Stop when the distribution over the catalogue stands still: `KL(p_t || p_(t-1))` in nats.

    Scores the whole catalogue twice a step, which for a large one costs more than the steps it saves; `ResidualStop` does not.

    Args:
        threshold: a smaller change ends the trajectory.
        least: number of steps that each trajectory makes in any case, at least 2.
    """

    threshold: float = 0.01
    least: int = 2

    def change(self, head: CatalogueHead, before: Tensor, after: Tensor) -> Tensor:
        return head.divergence(after, before)


# ---------------------------------------------------------------- reasoning


class Reasoned(NamedTuple):
    """Where reasoning about B histories ended."""

    states: Tensor  # [B, d]: user states that rank by the mean score over the trajectories
    steps: Tensor  # [B] float32: mean number of steps of the trajectories


@dataclass(frozen=True)
class Reasoning:
    """What a model may spend on a history.

    Args:
        depth: number of steps; with a rule the largest.
        stop: ends each trajectory by itself; None lets all go to the full depth.
        trajectories: number of trajectories from different initial states, whose scores are averaged (K).
    """

    depth: int
    stop: StopRule | None = None
    trajectories: int = 1

    def __post_init__(self) -> None:
        if self.depth < 0 or self.trajectories < 1:
            raise LaresError(
                f"depth must not be negative and trajectories at least 1, got {self.depth} and {self.trajectories}"
            )

    def __call__(self, backbone: RecurrentBackbone, histories: Histories) -> Reasoned:
        """Reason about B histories; the noise of initial states is a function of each history and the trajectory's number.

        Args:
            backbone: the model, in evaluation mode.
            histories: B of them.

        Raises:
            LaresError: if a depth above 0 is asked of a model without core-block.
        """
        noises = [KeyedNoise(histories, seed) for seed in range(self.trajectories)]
        if self.stop is None:
            paths = backbone.rollout(histories, [self.depth] * self.trajectories, noises)
            ends = torch.stack([path[-1] for path in paths])
            steps = torch.full(ends.shape[:2], float(self.depth), device=ends.device)
        else:
            ends, steps = _until_arrived(backbone, histories, self.depth, noises, self.stop)
        if self.trajectories > 1:
            if backbone.config.repeat_bias and backbone.config.similarity.normalise(ends) is not ends:
                raise LaresError("trajectories: a model with repeat_bias that compares by cosines can't average their scores")
            # scores are dot products of what `normalise` gives; that the mean of cosines is scaled once more changes no rank
            ends = backbone.config.similarity.normalise(ends)
        return Reasoned(ends.mean(dim=0), steps.mean(dim=0))


def _until_arrived(
    backbone: RecurrentBackbone, histories: Histories, depth: int, noises: Sequence[Noise], stop: StopRule
) -> tuple[Tensor, Tensor]:
    """User states `[K, B, d]` at which each trajectory ends, and how many steps it made, `[K, B]`."""
    backbone.check_depth(depth)
    count = len(noises)
    context, layout = backbone.encode(histories)
    context, layout = context.repeat(count, *[1] * (context.ndim - 1)), layout.repeat(count)
    state = backbone.initial_state([histories] * count, noises, context)
    rows = torch.arange(layout.rows, device=context.device)  # of those that still reason
    now = layout.last(context)
    head = backbone.head(histories).repeat(count, len(histories))
    ends, steps = now.clone(), torch.zeros(layout.rows, device=context.device)
    for step in range(1, depth + 1):
        state = backbone.step(state, context, layout)
        before, now = now, layout.last(state)
        ends[rows], steps[rows] = now, float(step)
        if stop.least <= step < depth:
            moving = stop.change(head, before, now) >= stop.threshold
            if not bool(moving.any()):
                break
            layout, tokens = layout.keep(moving)
            context, state = context[tokens], state[tokens]
            rows, now, head = rows[moving], now[moving], head.select(moving)
    return ends.view(count, len(histories), -1), steps.view(count, -1)
