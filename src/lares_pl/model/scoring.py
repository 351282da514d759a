"""Scores of states against the catalogue, without ever writing all of them down.

Three questions: the log-probability of the target, its rank, the best k. Each goes through the rows in chunks, so that
memory is O(chunk * N) whatever the number of rows; the gradient of the log-probability recomputes its chunk.
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


def _row_chunks(rows: int, classes: int) -> Iterator[slice]:
    step = max(1, CHUNK // classes)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


class _TargetLogProb(torch.autograd.Function):
    """`log softmax(states items^T)[target]`; the backward pass computes each chunk's scores again."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, items: Tensor, targets: Tensor) -> Tensor:
        normaliser = states.new_empty(states.shape[0], dtype=torch.float32)
        target_score = torch.empty_like(normaliser)
        for rows in _row_chunks(states.shape[0], items.shape[0]):
            scores = (states[rows] @ items.T).float()
            target_score[rows] = scores.gather(1, targets[rows, None]).squeeze(1)
            normaliser[rows] = torch.logsumexp(scores, dim=1)
        ctx.save_for_backward(states, items, targets, normaliser)
        return target_score - normaliser

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,) = gradients
        states, items, targets, normaliser = ctx.saved_tensors
        to_states = torch.empty_like(states)
        to_items = torch.zeros_like(items)
        for rows in _row_chunks(states.shape[0], items.shape[0]):
            scores = (states[rows] @ items.T).float()
            # d log p(y) / d scores = onehot(y) - softmax(scores)
            by_score = scores.sub_(normaliser[rows, None]).exp_().mul_(-gradient[rows, None])
            by_score.scatter_add_(1, targets[rows, None], gradient[rows, None].to(by_score.dtype))
            by_score = by_score.to(items.dtype)
            to_states[rows] = by_score @ items
            to_items.addmm_(by_score.T, states[rows])
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

    def within(self, rows: slice) -> tuple[Tensor, Tensor]:
        """The pairs of a range of rows, with rows counted from its start."""
        start, stop = torch.searchsorted(self.rows, self.rows.new_tensor([rows.start, rows.stop])).tolist()
        return self.rows[start:stop] - rows.start, self.items[start:stop]


def _leave_out(chunk: Tensor, rows: slice, excluded: Excluded | None) -> None:
    """Put padding and excluded items of `[rows, N + 1]` scores at -inf, in place."""
    chunk[:, 0] = -torch.inf
    if excluded is not None:
        chunk[excluded.within(rows)] = -torch.inf


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
    ranks = targets.new_empty(states.shape[0], dtype=torch.int64)
    left, right = similarity.transform(states, items)
    for rows in _row_chunks(states.shape[0], items.shape[0]):
        chunk = (left[rows] @ right.T).float()
        target_score = chunk.gather(1, targets[rows, None])
        _leave_out(chunk, rows, excluded)
        chunk.scatter_(1, targets[rows, None], target_score)
        # counts the target itself; a score that is not a number puts its target last instead of first
        ranks[rows] = (~(chunk < target_score)).sum(dim=1)
    return ranks


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
    for rows in _row_chunks(states.shape[0], items.shape[0]):
        chunk = (left[rows] @ right.T).float()
        _leave_out(chunk, rows, excluded)
        best_scores[rows], best_items[rows] = chunk.topk(k, dim=1)
    return best_scores, best_items
