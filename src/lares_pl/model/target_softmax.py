"""Log-probabilities of targets under the softmax over the catalogue, and losses of them with their gradient.

The gradient of a loss is taken in the forward pass, from the tiles of a few rows while they are there, so that nothing of size
rows x catalogue is ever kept. Item 0 (padding) is a class of the softmax, as in the reference implementation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lares_pl.data.loading.item_pairs import ItemPairs
from lares_pl.model.sharding import Rows
from lares_pl.model.tiles import Repeats, of_targets, repeats_of, slices, tile_of, tile_shape, upcast

LossOfRows = Callable[[Tensor, slice], Tensor]  # log-probabilities `[rows]` and which rows they are -> a scalar
LOG2_E = math.log2(math.e)


@torch.no_grad()
def target_log_prob(states: Tensor, table: Rows, targets: Tensor, repeats: Repeats | None) -> Tensor:
    """Log-probability of each target, without gradient.

    Args:
        states: transformed states, `[R, d]`.
        table: transformed item vectors.
        targets: `[R]`.
        repeats: score changes of items already read.

    Returns:
        `[R]`, float32 (float64 for states in float64).
    """
    log_probs = torch.empty(len(states), dtype=upcast(states[:0]).dtype, device=states.device)
    for rows in slices(len(states), tile_shape(states, table.most)[0]):
        log_probs[rows] = _softmax_of(states[rows], table, targets[rows], repeats_of(repeats, rows, len(states))).log_probs
    return log_probs


def target_loss(
    states: Tensor, table: Rows, targets: Tensor, repeats: Repeats | None, loss: LossOfRows
) -> tuple[Tensor, Tensor]:
    """A loss that is a sum over rows of what each target's log-probability gives.

    Differentiable once, by states, item vectors and the bias of repeats; not by what else `loss` may read.

    Args:
        states: transformed states, `[R, d]`.
        table: transformed item vectors.
        targets: `[R]`.
        repeats: score changes of items already read.
        loss: the share of some rows, from their log-probabilities.

    Returns:
        The loss, and the log-probability of each target `[R]`, without gradient.
    """
    bias = None if repeats is None else repeats.bias
    inputs = (states, table.vectors, bias)
    if not (torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)):
        log_probs = target_log_prob(states, table, targets, repeats)
        return loss(log_probs, slice(0, len(log_probs))), log_probs
    value, log_probs = _TargetLoss.apply(*inputs, table, targets, repeats, loss)  # type: ignore[no-untyped-call]
    return value, log_probs


class _Tile(NamedTuple):
    """A part of the softmax of some rows.

    Args:
        part: which classes of those that this process holds.
        values: what times `factors` is the probability of each class, `[rows, classes]`.
        factors: `[rows]`; None: all are 1.
        read: where the tile stands for items already read.
    """

    part: slice
    values: Tensor
    factors: Tensor | None
    read: ItemPairs | None


class _Softmax(NamedTuple):
    """The softmax of some rows.

    Args:
        log_probs: of their targets, `[rows]`.
        tiles: of all classes; none where they are not kept.
    """

    log_probs: Tensor
    tiles: list[_Tile]


def _softmax_of(states: Tensor, table: Rows, targets: Tensor, repeats: Repeats | None, keep: bool = False) -> _Softmax:
    """The softmax of some rows.

    Args:
        states: transformed states, `[rows, d]`.
        table: transformed item vectors.
        targets: `[rows]`.
        repeats: of these rows.
        keep: whether to keep its tiles, for the gradient.
    """
    whole = states.device.type != "cpu" and table.complete
    return (_at_once if whole else _by_tiles)(states, table, targets, repeats, keep)


def _at_once(states: Tensor, table: Rows, targets: Tensor, repeats: Repeats | None, keep: bool) -> _Softmax:
    """All classes in one tile, for which PyTorch has one kernel; arguments as of `_softmax_of`."""
    everything = slice(0, len(table.vectors))
    scores, read = tile_of(states, table, everything, repeats)
    log_softmax = scores.log_softmax(dim=1)
    log_probs = log_softmax.gather(1, targets[:, None])[:, 0]
    if not keep:
        return _Softmax(log_probs, [])
    return _Softmax(log_probs, [_Tile(everything, log_softmax.exp_(), None, read)])


def _by_tiles(states: Tensor, table: Rows, targets: Tensor, repeats: Repeats | None, keep: bool) -> _Softmax:
    """Tile by tile, in powers of two: they are cheaper than those of e; arguments as of `_softmax_of`."""
    scaled, repeats = states * LOG2_E, None if repeats is None else repeats.scaled(LOG2_E)
    tiles, tile_max, sums = [], [], []
    for part in slices(len(table.vectors), tile_shape(states, table.most)[1]):
        tile, read = tile_of(scaled, table, part, repeats)
        tile_max.append(tile.amax(dim=1))
        tile.sub_(tile_max[-1][:, None]).exp2_()
        sums.append(tile.sum(dim=1))
        if keep:
            tiles.append((part, tile, read))
    top = table.all_reduce_max(torch.stack(tile_max).amax(dim=0))
    total = torch.stack([s * (m - top).exp2() for s, m in zip(sums, tile_max, strict=True)]).sum(dim=0)
    total, own = table.all_reduce_sum(torch.stack([total, of_targets(scaled, table, targets, repeats)]))
    normaliser = top + total.log2()
    factors = [(m - normaliser).exp2() for m in tile_max[: len(tiles)]]
    kept = [_Tile(part, tile, own, read) for (part, tile, read), own in zip(tiles, factors, strict=True)]
    return _Softmax((own - normaliser) * math.log(2), kept)


class _TargetLoss(torch.autograd.Function):
    """A loss of log-probabilities; its gradient is taken in the forward pass, a few rows at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        vectors: Tensor,
        bias: Tensor | None,
        table: Rows,
        targets: Tensor,
        repeats: Repeats | None,
        loss: LossOfRows,
    ) -> tuple[Tensor, Tensor]:
        wide = upcast(states[:0]).dtype
        table = replace(table, vectors=vectors)
        log_probs = torch.empty(states.shape[0], dtype=wide, device=states.device)
        value, to_bias = log_probs.new_zeros(()), log_probs.new_zeros(())
        to_states = torch.zeros_like(states, dtype=wide)
        to_items = torch.zeros_like(vectors, dtype=wide) if ctx.needs_input_grad[1] else None
        for rows in slices(states.shape[0], tile_shape(states, table.most)[0]):
            own_states, of_rows = states[rows], repeats_of(repeats, rows, states.shape[0])
            softmax = _softmax_of(own_states, table, targets[rows], of_rows, keep=True)
            log_probs[rows] = softmax.log_probs
            with torch.enable_grad():
                leaf = softmax.log_probs.clone().requires_grad_()
                share = loss(leaf, rows)
                (gradient,) = torch.autograd.grad(share, leaf)
            value += share.detach()
            # d log p(y) / d scores = onehot(y) - softmax(scores)
            own = table.local_index(targets[rows])
            weight = table.mask_local(gradient.to(states.dtype), targets[rows])
            to_states[rows] += weight[:, None] * vectors[own]
            if to_items is not None:
                to_items.index_add_(0, own, (weight[:, None] * own_states).to(wide))
            if of_rows is not None:
                to_bias += (weight * of_rows.pairs.rows_of(targets[rows])).sum()
            for part, tile, factors, read in softmax.tiles:
                # factors of rows go to the smaller side of each product
                of_tile = (gradient if factors is None else gradient * factors)[:, None]
                to_states[rows] -= of_tile * (tile.to(vectors.dtype) @ vectors[part])
                if to_items is not None:
                    _subtract_product(to_items[part], tile.T, (of_tile * own_states).to(states.dtype))
                if read is not None:
                    to_bias -= read.sum_of(tile, of_tile[:, 0])
        to_states = table.all_reduce_sum(to_states)
        ctx.save_for_backward(
            to_states.to(states.dtype),
            None if to_items is None else to_items.to(vectors.dtype),
            None if bias is None else table.all_reduce_sum(to_bias).to(bias.dtype),
        )
        ctx.mark_non_differentiable(log_probs)
        return value, log_probs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [None if saved is None else saved * gradients[0] for saved in ctx.saved_tensors]
        return (*scaled, None, None, None, None)


def _subtract_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """`out -= a b`, in the precision of `out`, whatever a and b are in."""
    if a.dtype == b.dtype == out.dtype:
        torch.addmm(out, a, b, alpha=-1, out=out)  # counted by PyTorch's counter of operations, which `addmm_` is not
    else:
        out.sub_(a.to(b.dtype) @ b)
