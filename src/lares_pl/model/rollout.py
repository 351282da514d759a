"""Several trajectories run together, each to its own depth: what `RecurrentBackbone.rollout` does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from lares_pl import checks
from lares_pl.data.loading.histories import Histories
from lares_pl.errors import LaresError
from lares_pl.model.layout import Layout
from lares_pl.model.recurrence import Noise, RandomNoise

_DEPTHS = "a list of the number of steps of each trajectory, at least one of them and none negative"


class Recurrent(Protocol):
    """What a rollout asks of a backbone."""

    training: bool

    def check_depth(self, depth: int) -> None: ...

    def check_causal(self) -> None: ...

    def encode(self, histories: Histories) -> tuple[Tensor, Layout]: ...

    def initial_state(self, histories: Sequence[Histories], sources: Sequence[Noise], like: Tensor) -> Tensor: ...

    def step(self, state: Tensor, context: Tensor, layout: Layout) -> Tensor: ...

    def last_step(self, state: Tensor, context: Tensor, layout: Layout) -> Tensor: ...


def rollout(
    backbone: Recurrent,
    histories: Histories | Sequence[Histories],
    depths: Sequence[int],
    noise: Noise | Sequence[Noise] | None = None,
    initial_states: Sequence[Tensor] | None = None,
    read: Tensor | Sequence[Tensor | None] | None = None,
) -> list[Tensor]:
    """User states of every step of several trajectories; arguments, result and errors as of `RecurrentBackbone.rollout`."""
    if not isinstance(depths, Sequence) or not depths or min(checks.whole("depths", depth, _DEPTHS) for depth in depths) < 0:
        raise LaresError(f"depths must be {_DEPTHS}; got {depths!r}")
    backbone.check_depth(max(depths))
    count = len(depths)
    shared = isinstance(histories, Histories)
    each = [histories] * count if isinstance(histories, Histories) else list(histories)
    if len(each) != count or not all(isinstance(part, Histories) for part in each):
        raise LaresError(
            f"histories must be one Histories for all trajectories, or one for each of {count}; Histories.from_lists makes them"
        )
    sources = list(noise) if isinstance(noise, Sequence) else [noise or RandomNoise()] * count
    reads = [read] * count if read is None or isinstance(read, Tensor) else list(read)
    if any(tokens is not None for tokens in reads):
        backbone.check_causal()

    # deepest first, so that those still reasoning are always the first rows; then those that need all of the last layer
    order = sorted(range(count), key=lambda r: (-depths[r], reads[r] is None))
    if shared and not backbone.training:
        context, layout = backbone.encode(each[0])
        context, layout = context.repeat(count, *[1] * (context.ndim - 1)), layout.repeat(count)
    else:
        context, layout = backbone.encode(Histories.concatenate([each[r] for r in order]))
    tokens, read_of_each = _read([each[r] for r in order], [reads[r] for r in order])
    places = layout.places(tokens)
    counts_of = dict(zip(order, read_of_each, strict=True))

    trajectories: list[list[Tensor]] = [[] for _ in range(count)]
    if min(depths) == 0:
        for r, state in zip(order, _at(context, places).split(read_of_each), strict=True):
            if depths[r] == 0:
                trajectories[r].append(state)

    state = (
        backbone.initial_state([each[r] for r in order], [sources[r] for r in order], context)
        if initial_states is None
        else torch.cat([initial_states[r] for r in order])
    )

    def size_of(some: list[int]) -> tuple[int, int]:
        """Histories and tokens of some trajectories."""
        return sum(len(each[r]) for r in some), sum(each[r].tokens for r in some)

    active = [r for r in order if depths[r] > 0]
    if 0 < len(active) < count:
        layout = layout.prefix(*size_of(active))
        context, state = context[: layout.shape[0]], state[: layout.shape[0]]
    for t in range(1, max(depths) + 1):
        still_active = [r for r in active if depths[r] > t]
        whole = [r for r in active if depths[r] > t or reads[r] is not None]
        ending = active[len(whole) :]  # of these nothing but the last positions is asked for any more
        states = []
        if whole:
            going_on = layout.prefix(*size_of(whole)) if ending else layout
            count_of_whole = going_on.shape[0]
            after = backbone.step(state[:count_of_whole], context[:count_of_whole], going_on)
            states.append(_at(after, places[: sum(counts_of[r] for r in whole)]))
        if ending:
            ended = layout.suffix(*size_of(ending)) if whole else layout
            before = state.shape[0] - ended.shape[0]
            states.append(backbone.last_step(state[before:], context[before:], ended))
        if whole:
            state = after
        for r, of_step in zip(active, torch.cat(states).split([counts_of[r] for r in active]), strict=True):
            trajectories[r].append(of_step)
        if 0 < len(still_active) < len(active):
            layout = layout.prefix(*size_of(still_active))
            context, state = context[: layout.shape[0]], state[: layout.shape[0]]
        active = still_active
    return [torch.stack(states) for states in trajectories]


def _at(x: Tensor, places: Tensor) -> Tensor:
    """States at some places: `[*shape, d]`, `[R]` -> `[R, d]`."""
    return x.flatten(0, -2).index_select(0, places)


def _read(histories: Sequence[Histories], reads: Sequence[Tensor | None]) -> tuple[Tensor, list[int]]:
    """Tokens to read, counted over all histories of all trajectories, and how many they are of each trajectory.

    Args:
        histories: of each trajectory.
        reads: tokens counted within a trajectory's own histories; the last of each history where None.
    """
    places, start = [], 0
    for part, tokens in zip(histories, reads, strict=True):
        own = part.lengths.cumsum(0) - 1 if tokens is None else tokens
        places.append(own + start if start else own)
        start += part.tokens
    return torch.cat(places), [len(own) for own in places]


def step_residual(trajectory: Tensor, shares: Tensor | None = None) -> Tensor:
    """Mean of `|z_T - z_(T-1)| / |z_T|` over user states.

    Args:
        trajectory: `[T, B, d]`, T at least 2.
        shares: of each state in the mean, `[B]`, their sum is 1; None: equal ones.
    """
    last, before = trajectory[-1].detach(), trajectory[-2].detach()
    residual: Tensor = (last - before).norm(dim=-1) / last.norm(dim=-1).clamp(min=1e-12)
    return residual.mean() if shares is None else (residual * shares).sum()
