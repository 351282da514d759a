"""Scores of states against the catalogue, without ever writing all of them down.

Questions: the log-probability of the target, a loss of it, its rank, the best k. Each goes through the scores tile by tile, so
that memory does not grow with rows times catalogue; a loss takes its gradient from the tiles of its rows while they are there.
`scores` gives the whole matrix, for small catalogues and tests.

Item vectors may be sharded by rows over processes (a DTensor, `lares_pl.model.sharding`) that have the same states: each scores
its rows tile by tile, and they agree on maxima, sums and counts of `[R]` numbers; all of them get the same answers.

Item 0 (padding) is a class of the softmax, as in the reference implementation; it is never ranked or recommended.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lares_pl.errors import LaresError
from lares_pl.model.sharding import Rows, rows_of

CHUNK = 1 << 22  # scores held at a time (float32: 16 MiB); on a CPU at least of 64 rows


class Similarity(ABC):
    """How a state and an item are compared: `normalise(state) · normalise(item) / tau`."""

    tau: float = 1.0

    @abstractmethod
    def normalise(self, x: Tensor) -> Tensor:
        """What is done to each side before the dot product, `[*, d]` -> `[*, d]`."""

    def transform(self, states: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """States `[R, d]` and item vectors `[n, d]` such that their dot products are the scores."""
        states = self.normalise(states)
        return states if self.tau == 1 else states / self.tau, self.normalise(items)

    def prepare(self, states: Tensor, items: Tensor) -> tuple[Tensor, Rows]:
        """As `transform`, of item vectors `[N + 1, d]` that may be sharded: those that this process holds."""
        rows = rows_of(items)
        states, vectors = self.transform(states, rows.vectors)
        return states, replace(rows, vectors=vectors)


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


def _tile(states: Tensor, classes: int) -> tuple[int, int]:
    """Rows and classes of one tile of scores against so many classes.

    On a CPU a tile fits the second-level cache (at most 1 MiB of float32: the products run several times faster than into
    memory); elsewhere it is as large as memory allows, so that few kernels are started.
    """
    rows = CHUNK // classes
    if states.device.type == "cpu":
        return max(64, min(256, rows)), 1024
    return max(1, rows), classes


def _log_probs(
    states: Tensor, items: Rows, targets: Tensor, rows: slice, tiles: list[Tensor] | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Log-probabilities of the targets of some rows.

    Args:
        states: transformed states times log2(e), `[R, d]`: two's powers are cheaper than e's.
        items: transformed item vectors.
        targets: `[R]`.
        rows: which rows.
        tiles: where given, takes `2^(score - height)` of each tile, `[rows, classes]`.

    Returns:
        The log-probabilities `[rows]`, and for each tile `height - log2(normaliser)`, `[rows]`.
    """
    _, classes_step = _tile(states, items.most)
    heights, sums = [], []
    for part in _slices(len(items.vectors), classes_step):
        tile = _wide(states[rows] @ items.vectors[part].T)
        height = tile.amax(dim=1)
        tile.sub_(height[:, None]).exp2_()
        heights.append(height)
        sums.append(tile.sum(dim=1))
        if tiles is not None:
            tiles.append(tile)
    top = items.highest(torch.stack(heights).amax(dim=0))
    total = torch.stack([s * (height - top).exp2() for s, height in zip(sums, heights, strict=True)]).sum(dim=0)
    of_rows = targets[rows]
    own = items.held(_wide((states[rows] * items.vectors[items.place(of_rows)]).sum(dim=1)), of_rows)
    total, own = items.total(torch.stack([total, own]))
    normaliser = top + total.log2()
    return (own - normaliser) * math.log(2), [height - normaliser for height in heights]


def _wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x if x.dtype == torch.float64 else x.float()


def _subtract_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """`out -= a b`, in the precision of `out`, whatever a and b are in."""
    if a.dtype == b.dtype == out.dtype:
        torch.addmm(out, a, b, alpha=-1, out=out)  # counted by PyTorch's counter of operations, which `addmm_` is not
    else:
        out.sub_(a.to(b.dtype) @ b)


class _TargetLoss(torch.autograd.Function):
    """A loss of log-probabilities; its gradient is taken in the forward pass, a few rows at a time."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, vectors: Tensor, items: Rows, targets: Tensor, loss: Callable[[Tensor, slice], Tensor]
    ) -> tuple[Tensor, Tensor]:
        wide = _wide(states[:0]).dtype
        log_probs = torch.empty(states.shape[0], dtype=wide, device=states.device)
        value = log_probs.new_zeros(())
        to_states = torch.zeros_like(states, dtype=wide)
        to_items = torch.zeros_like(vectors, dtype=wide) if ctx.needs_input_grad[1] else None
        items = replace(items, vectors=vectors)
        scaled = states * math.log2(math.e)
        rows_step, classes_step = _tile(states, items.most)
        parts = list(_slices(len(vectors), classes_step))
        for rows in _slices(states.shape[0], rows_step):
            tiles: list[Tensor] = []
            log_probs[rows], heights = _log_probs(scaled, items, targets, rows, tiles)
            with torch.enable_grad():
                of_rows = log_probs[rows].clone().requires_grad_()
                share = loss(of_rows, rows)
                (gradient,) = torch.autograd.grad(share, of_rows)
            value += share.detach()
            # d log p(y) / d scores = onehot(y) - softmax(scores)
            weight = items.held(gradient.to(states.dtype), targets[rows])[:, None]
            own = items.place(targets[rows])
            to_states[rows] += weight * vectors[own]
            if to_items is not None:
                to_items.index_add_(0, own, (weight * states[rows]).to(wide))
            for part, tile, height in zip(parts, tiles, heights, strict=True):
                shares = tile.mul_((gradient * height.exp2())[:, None])
                _subtract_product(to_states[rows], shares, vectors[part])
                if to_items is not None:
                    _subtract_product(to_items[part], shares.T, states[rows])
        to_states = items.total(to_states)
        ctx.save_for_backward(to_states.to(states.dtype), None if to_items is None else to_items.to(vectors.dtype))
        ctx.mark_non_differentiable(log_probs)
        return value, log_probs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        to_states, to_items = ctx.saved_tensors
        return to_states * gradients[0], None if to_items is None else to_items * gradients[0], None, None, None


def target_loss(
    states: Tensor, items: Tensor, targets: Tensor, similarity: Similarity, loss: Callable[[Tensor, slice], Tensor]
) -> tuple[Tensor, Tensor]:
    """A loss that is a sum over rows of what each target's log-probability gives.

    Differentiable once, by states and item vectors; not by what else `loss` may read.

    Args:
        states: `[R, d]`.
        items: item vectors with the padding row, `[N + 1, d]`, whole or sharded.
        targets: item indices, `[R]`.
        similarity: how states and items are compared.
        loss: the share of some rows, a scalar, from their log-probabilities `[rows]` and which rows they are.

    Returns:
        The loss, and the log-probability of each target `[R]`, without gradient.
    """
    if not (torch.is_grad_enabled() and (states.requires_grad or items.requires_grad)):
        log_probs = target_log_prob(states, items, targets, similarity)
        return loss(log_probs, slice(0, len(log_probs))), log_probs
    left, right = similarity.prepare(states, items)
    value, log_probs = _TargetLoss.apply(left, right.vectors, right, targets, loss)  # type: ignore[no-untyped-call]
    return value, log_probs


@torch.no_grad()
def target_log_prob(states: Tensor, items: Tensor, targets: Tensor, similarity: Similarity) -> Tensor:
    """Log-probability of each target under the softmax over the catalogue; without gradient (`target_loss` has one).

    Args:
        states: `[R, d]`.
        items: item vectors with the padding row, `[N + 1, d]`, whole or sharded.
        targets: item indices, `[R]`.
        similarity: how states and items are compared.

    Returns:
        `[R]`, float32 (float64 for states in float64).
    """
    left, right = similarity.prepare(states, items)
    left = left * math.log2(math.e)
    rows_step, _ = _tile(left, right.most)
    log_probs = torch.empty(len(left), dtype=_wide(left[:0]).dtype, device=left.device)
    for rows in _slices(len(left), rows_step):
        log_probs[rows], _ = _log_probs(left, right, targets, rows)
    return log_probs


def scores(states: Tensor, items: Tensor, similarity: Similarity) -> Tensor:
    """All scores, `[R, N + 1]`; the padding column is included."""
    left, right = similarity.prepare(states, items)
    own = F.pad((left @ right.vectors.T).float(), (0, right.most - len(right.vectors)))
    return right.joined(own)[:, : len(items)]


@torch.no_grad()
def divergence(states: Tensor, others: Tensor, items: Tensor, similarity: Similarity) -> Tensor:
    """`KL(p || q)` in nats between the distributions of two states over the catalogue, padding included as in training.

    Args:
        states: whose distribution is p, `[R, d]`.
        others: whose distribution is q, `[R, d]`.
        items: item vectors with the padding row, `[N + 1, d]`, whole or sharded.
        similarity: how states and items are compared.

    Returns:
        `[R]`.
    """
    found = torch.empty(len(states), device=states.device)
    for rows in _slices(len(states), max(1, CHUNK // len(items))):
        p, q = (scores(some[rows], items, similarity).log_softmax(dim=1) for some in (states, others))
        found[rows] = relative_entropy(p.exp(), q - p)
    return found


def relative_entropy(p: Tensor, log_ratio: Tensor) -> Tensor:
    """`KL(p || q)` in nats, `[R]`, of distributions p and `log q - log p`, `[R, C]` each.

    The sum of p (r - 1 - log r), r = q / p, is that of p log(p / q), but no term is negative, and errors of rounding come in
    squared, so that it is good to 1e-12 where log-probabilities are to 1e-6.
    """
    kl: Tensor = (p * (log_ratio.expm1() - log_ratio)).sum(dim=1)
    return kl


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
    left, right = similarity.prepare(states, items)
    rows_step, classes_step = _tile(left, right.most)
    ranks = torch.empty_like(targets)
    for rows in _slices(states.shape[0], rows_step):
        chunk, own_items = left[rows], targets[rows]
        # by the same product as the scores it is compared with, so that ties are ties
        own = (chunk @ right.vectors[right.place(own_items)].T).diagonal().float()
        own = right.total(right.held(own, own_items))[:, None]
        not_below = torch.zeros_like(own_items)
        for part in _slices(len(right.vectors), classes_step):
            scores = (chunk @ right.vectors[part].T).float()
            classes = slice(right.start + part.start, right.start + part.stop)
            _leave_out(scores, rows, classes, excluded)
            _set(scores, own_items - classes.start, torch.inf)  # counts the target itself, whatever is excluded
            # a score that is not a number puts its target last instead of first
            not_below += scores.shape[1] - torch.lt(scores, own, out=scores).sum(dim=1).long()
        ranks[rows] = not_below
    return right.total(ranks)


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
    left, right = similarity.prepare(states, items)
    here = slice(right.start, right.start + len(right.vectors))
    own = min(k, right.most)
    best_scores = states.new_full((len(states), own), -torch.inf, dtype=torch.float32)
    best_items = torch.zeros(len(states), own, dtype=torch.int64, device=states.device)
    found = min(own, len(right.vectors))
    for rows in _slices(len(states), max(1, CHUNK // right.most)):
        chunk = (left[rows] @ right.vectors.T).float()
        _leave_out(chunk, rows, here, excluded)
        best_scores[rows, :found], best_items[rows, :found] = chunk.topk(found, dim=1)
    best_scores, best_items = right.joined(best_scores), right.joined(best_items + right.start)
    if best_scores.shape[1] > k:
        best_scores, order = best_scores.topk(k, dim=1)
        best_items = best_items.gather(1, order)
    return best_scores, best_items
