"""Compute at test time: how long a trained model reasons about each history, and from how many initial states.

Depth is the same for all histories unless a `StopRule` ends each trajectory once it has arrived; what has arrived leaves the
batch. Scores can be averaged: over all steps of a trajectory, and over trajectories from different initial states.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lares_pl.checks import check_fields
from lares_pl.data.loading.histories import Histories
from lares_pl.errors import LaresError
from lares_pl.model.architecture import BackboneConfig
from lares_pl.model.backbone import RecurrentBackbone
from lares_pl.model.catalogue_head import CatalogueHead
from lares_pl.model.recurrence import KeyedNoise, Noise
from lares_pl.model.similarity import Similarity

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
        check_fields(self)
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

    states: Tensor  # [B, d]: user states that rank by the mean score over what is averaged
    steps: Tensor  # [B] float32: mean number of steps of the trajectories


@dataclass(frozen=True)
class Reasoning:
    """What a model may spend on a history.

    Args:
        depth: number of steps; with a rule the largest.
        stop: ends each trajectory by itself; None lets all go to the full depth.
        trajectories: number of trajectories from different initial states, whose scores are averaged (K).
        average_steps: average the scores of all steps instead of taking those of the last one.
    """

    depth: int
    stop: StopRule | None = None
    trajectories: int = 1
    average_steps: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.depth < 0 or self.trajectories < 1:
            raise LaresError(
                f"depth must not be negative and trajectories at least 1, got {self.depth} and {self.trajectories}"
            )

    def check(self, config: BackboneConfig) -> None:
        """Whether a model of this architecture can reason so.

        Raises:
            LaresError: if several trajectories are asked of a model that starts them all alike, or averages of one that adds a
                bias of repeats to cosines, which would have to be scaled as they are.
        """
        start = config.initial_state
        if self.trajectories > 1 and not start.random(training=False):
            raise LaresError(
                f"trajectories: {self.trajectories} asked of a model that starts all of them alike ({type(start).__name__})"
            )
        state = torch.ones(1)
        if self._averages and config.repeat_bias and config.similarity.normalise(state) is not state:
            raise LaresError("trajectories, average_steps: a model of cosines and repeat_bias can't average its scores")

    @property
    def _averages(self) -> bool:
        return self.average_steps or self.trajectories > 1

    def __call__(self, backbone: RecurrentBackbone, histories: Histories) -> Reasoned:
        """Reason about B histories; the noise of initial states is a function of each history and the trajectory's number.

        Args:
            backbone: the model, in evaluation mode.
            histories: B of them.

        Raises:
            LaresError: if a depth above 0 is asked of a model without core-block; as `check`.
        """
        self.check(backbone.config)
        noises = [KeyedNoise(histories, seed) for seed in range(self.trajectories)]
        read = backbone.config.similarity.normalise if self._averages else _as_it_is
        if self.stop is None:
            paths = backbone.rollout(histories, [self.depth] * self.trajectories, noises)
            ends = torch.stack([read(path).mean(dim=0) if self.average_steps else read(path[-1]) for path in paths])
            steps = torch.full(ends.shape[:2], float(self.depth), device=ends.device)
        else:
            ends, steps = _until_arrived(backbone, histories, self.depth, noises, self.stop, read, self.average_steps)
        return Reasoned(ends.mean(dim=0), steps.mean(dim=0))


def mean_up_to_each(similarity: Similarity, path: Tensor) -> Tensor:
    """What ranks by the mean score of steps 1 … t, for each t: `[T, B, d]` -> `[T, B, d]`.

    Scores are dot products of what the similarity normalises. That the mean of cosines is scaled once more changes no rank.
    """
    counts = torch.arange(1, len(path) + 1, device=path.device)
    return similarity.normalise(path).cumsum(dim=0) / counts[:, None, None]


def _as_it_is(states: Tensor) -> Tensor:
    return states


def _until_arrived(
    backbone: RecurrentBackbone,
    histories: Histories,
    depth: int,
    noises: Sequence[Noise],
    stop: StopRule,
    read: Callable[[Tensor], Tensor],
    average_steps: bool,
) -> tuple[Tensor, Tensor]:
    """What is read at the step at which each trajectory ends (or on the way to it), `[K, B, d]`, and its number, `[K, B]`."""
    backbone.check_depth(depth)
    count = len(noises)
    context, layout = backbone.encode(histories)
    context, layout = context.repeat(count, *[1] * (context.ndim - 1)), layout.repeat(count)
    state = backbone.initial_state([histories] * count, noises, context)
    rows = torch.arange(layout.rows, device=context.device)  # of those that still reason
    now = layout.last(context)
    head = backbone.head(histories).repeat(count, len(histories))
    ends, steps = read(now).clone(), torch.zeros(layout.rows, device=context.device)
    for step in range(1, depth + 1):
        state = backbone.step(state, context, layout)
        before, now = now, layout.last(state)
        found = read(now)
        if average_steps and step > 1:
            found = torch.lerp(ends[rows], found, 1 / step)  # the mean so far
        ends[rows], steps[rows] = found, float(step)
        if stop.least <= step < depth:
            moving = stop.change(head, before, now) >= stop.threshold
            if not bool(moving.any()):
                break
            layout, tokens = layout.keep(moving)
            context, state = context[tokens], state[tokens]
            rows, now, head = rows[moving], now[moving], head.select(moving)
    return ends.view(count, len(histories), -1), steps.view(count, -1)
