"""Scores of states against the catalogue, without ever writing all of them down.

Three questions: the log-probability of the target, its rank, the best k. Each goes through the scores tile by tile, so that
memory does not grow with rows times catalogue; the gradient of the log-probability computes its tiles again.
`scores` gives the whole matrix, for small catalogues and tests.

Item 0 (padding) is a class of the softmax, as in the reference implementation; it is never ranked or recommended.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lares_pl.errors import LaresError

CHUNK = 1 << 22  # scores held at a time (float32: 16 MiB)


class Similarity(ABC):
    """How a state and an item are compared: `normalise(state) · normalise(item) / tau`."""

    tau: float = 1.0

    @abstractmethod
    def normalise(self, x: Tensor) -> Tensor:
        """What is done to each side before the dot product, `[*, d]` -> `[*, d]`."""

    def transform(self, states: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """States `[R, d]` and item vectors `[N + 1, d]` such that their dot products are the scores."""
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
        if self.tau <= 0:
            raise LaresError(f"tau must be above 0, got {self.tau}")

    def normalise(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)


def _slices(count: int, step: int) -> Iterator[slice]:
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _tile(states: Tensor, items: Tensor) -> tuple[int, int]:
    """Rows and classes of one tile of scores.

    On a CPU a tile stays in the second-level cache (1 MiB of float32: the products run several times faster than into
    memory); elsewhere it is as large as memory allows, so that few kernels are started.
    """
    if states.device.type == "cpu":
        return 256, 1024
    return max(1, CHUNK // items.shape[0]), items.shape[0]


class _TargetLogProb(torch.autograd.Function):
    """`log softmax(states items^T)[target]`; the backward pass computes each tile's scores again."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, items: Tensor, targets: Tensor) -> Tensor:
        rows_step, classes_step = _tile(states, items)
        parts = list(_slices(items.shape[0], classes_step))
        normaliser = states.new_empty(states.shape[0], dtype=torch.float32)
        for rows in _slices(states.shape[0], rows_step):
            sums = [torch.logsumexp((states[rows] @ items[part].T).float(), dim=1) for part in parts]
            normaliser[rows] = torch.logsumexp(torch.stack(sums), dim=0)
        ctx.save_for_backward(states, items, targets, normaliser)
        return (states * items[targets]).sum(dim=1, dtype=torch.float32) - normaliser

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,) = gradients
        states, items, targets, normaliser = ctx.saved_tensors
        rows_step, classes_step = _tile(states, items)
        # d log p(y) / d scores = onehot(y) - softmax(scores)
        weight = gradient.to(states.dtype)[:, None]
        to_states = weight * items[targets]
        to_items = torch.zeros_like(items).index_add_(0, targets, weight * states)
        for rows in _slices(states.shape[0], rows_step):
            for part in _slices(items.shape[0], classes_step):
                scores = (states[rows] @ items[part].T).float()
                shares = scores.sub_(normaliser[rows, None]).exp_().mul_(gradient[rows, None]).to(items.dtype)
                to_states[rows].addmm_(shares, items[part], alpha=-1)
                to_items[part].addmm_(shares.T, states[rows], alpha=-1)
        return to_states, to_items, None


def target_log_prob(states: Tensor, items: Tensor, targets: Tensor, similarity: Similarity) -> Tensor:
    """Log-probability of each target under the softmax over the catalogue.

    Args:
        states: `[R, d]`.
        items: item vectors with the padding row, `[N + 1, d]`.
        targets: item indices, `[R]`.
        similarity: how states and items are compared.

    Returns:
        `[R]`, float32.
    """
    out: Tensor = _TargetLogProb.apply(*similarity.transform(states, items), targets)  # type: ignore[no-untyped-call]
    return out


def scores(states: Tensor, items: Tensor, similarity: Similarity) -> Tensor:
    """All scores, `[R, N + 1]`; the padding column is included."""
    left, right = similarity.transform(states, items)
    return (left @ right.T).float()


@dataclass(frozen=True)
class Excluded:
    """Items that must not be ranked for a row: pairs of `rows` `[E]` (ascending) and `items` `[E]`."""

    rows: Tensor
    items: Tensor

    def within(self, rows: slice, classes: slice) -> tuple[Tensor, Tensor]:
        """The pairs of a range of rows and of classes, counted from their starts."""
        start, stop = torch.searchsorted(self.rows, self.rows.new_tensor([rows.start, rows.stop])).tolist()
        of_rows, items = self.rows[start:stop] - rows.start, self.items[start:stop] - classes.start
        inside = (items >= 0) & (items < classes.stop - classes.start)
        return of_rows[inside], items[inside]


def _leave_out(scores: Tensor, rows: slice, classes: slice, excluded: Excluded | None) -> None:
    """Put padding and excluded items of a tile of scores at -inf, in place."""
    if classes.start == 0:
        scores[:, 0] = -torch.inf
    if excluded is not None:
        scores[excluded.within(rows, classes)] = -torch.inf


@torch.no_grad()
def target_rank(
    states: Tensor, items: Tensor, targets: Tensor, similarity: Similarity, excluded: Excluded | None = None
) -> Tensor:
    """Rank of each target among all items, 1 is best; ties count against the target.

    Args:
        states: `[R, d]`.
        items: `[N + 1, d]`.
        targets: `[R]`.
        similarity: how states and items are compared.
        excluded: items left out of the ranking; a target itself is never left out.

    Returns:
        `[R]`, int64.
    """
    left, right = similarity.transform(states, items)
    rows_step, classes_step = _tile(left, right)
    ranks = torch.empty_like(targets)
    for rows in _slices(states.shape[0], rows_step):
        chunk, own_items = left[rows], targets[rows]
        # by the same product as the scores it is compared with, so that ties are ties
        own = (chunk @ right[own_items].T).diagonal().float()[:, None]
        not_below = torch.zeros_like(own_items)
        for part in _slices(items.shape[0], classes_step):
            scores = (chunk @ right[part].T).float()
            _leave_out(scores, rows, part, excluded)
            _set(scores, own_items - part.start, torch.inf)  # counts the target itself, whatever is excluded
            # a score that is not a number puts its target last instead of first
            not_below += scores.shape[1] - torch.lt(scores, own, out=scores).sum(dim=1).long()
        ranks[rows] = not_below
    return ranks


def _set(scores: Tensor, places: Tensor, value: float) -> None:
    """Put one value a row of `[rows, classes]` scores, in place, where the row's place is within it."""
    within = (places >= 0) & (places < scores.shape[1])
    places = places.clamp(0, scores.shape[1] - 1)[:, None]
    scores.scatter_(1, places, torch.where(within[:, None], value, scores.gather(1, places)))


@torch.no_grad()
def top_k(
    states: Tensor, items: Tensor, k: int, similarity: Similarity, excluded: Excluded | None = None
) -> tuple[Tensor, Tensor]:
    """The best k items of each state.

    Args:
        states: `[R, d]`.
        items: `[N + 1, d]`.
        k: how many; at most N.
        similarity: how states and items are compared.
        excluded: items left out of the ranking.

    Returns:
        Scores `[R, k]` in descending order (-inf where fewer than k items remain) and item indices `[R, k]`.
    """
    best_scores = states.new_empty(states.shape[0], k, dtype=torch.float32)
    best_items = torch.empty(states.shape[0], k, dtype=torch.int64, device=states.device)
    left, right = similarity.transform(states, items)
    everything = slice(0, items.shape[0])
    for rows in _slices(states.shape[0], max(1, CHUNK // items.shape[0])):
        chunk = (left[rows] @ right.T).float()
        _leave_out(chunk, rows, everything, excluded)
        best_scores[rows], best_items[rows] = chunk.topk(k, dim=1)
    return best_scores, best_items
