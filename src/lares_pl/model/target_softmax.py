"""Log-probabilities of targets under the softmax over the catalogue, and losses of them with their gradient.

The gradient of a loss is taken in the forward pass, from the tiles of a few rows while they are there, so that nothing of size
rows x catalogue is ever kept. Item 0 (padding) is a class of the softmax, as in the reference implementation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

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
    scaled, repeats = states * LOG2_E, None if repeats is None else repeats.scaled(LOG2_E)
    log_probs = torch.empty(len(states), dtype=upcast(states[:0]).dtype, device=states.device)
    for rows in slices(len(states), tile_shape(states, table.most)[0]):
        log_probs[rows] = _Tiles(scaled[rows], table, targets[rows], repeats_of(repeats, rows, len(states))).log_probs
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


class _Tiles:
    """The softmax of some rows, tile by tile, in powers of two: they are cheaper than those of e.

    Args:
        states: transformed states times log2(e), `[rows, d]`.
        table: transformed item vectors.
        targets: `[rows]`.
        repeats: of these rows, times log2(e).
        keep: whether to keep the tiles, for the gradient.
    """

    def __init__(self, states: Tensor, table: Rows, targets: Tensor, repeats: Repeats | None, keep: bool = False) -> None:
        self.parts = list(slices(len(table.vectors), tile_shape(states, table.most)[1]))
        self.kept: list[Tensor] = []  # 2^(score - tile_max), [rows, classes] each
        self.repeated: list[ItemPairs | None] = []  # where each tile stands for items already read
        tile_max, sums = [], []
        for part in self.parts:
            tile, read = tile_of(states, table, part, repeats)
            tile_max.append(tile.amax(dim=1))
            tile.sub_(tile_max[-1][:, None]).exp2_()
            sums.append(tile.sum(dim=1))
            if keep:
                self.kept.append(tile)
                self.repeated.append(read)
        top = table.all_reduce_max(torch.stack(tile_max).amax(dim=0))
        total = torch.stack([s * (m - top).exp2() for s, m in zip(sums, tile_max, strict=True)]).sum(dim=0)
        total, own = table.all_reduce_sum(torch.stack([total, of_targets(states, table, targets, repeats)]))
        normaliser = top + total.log2()
        self.log_probs = (own - normaliser) * math.log(2)  # [rows]
        self.offsets = [m - normaliser for m in tile_max]  # a kept tile times 2^offset is its share of the softmax


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
        scaled, scaled_repeats = states * LOG2_E, None if repeats is None else repeats.scaled(LOG2_E)
        for rows in slices(states.shape[0], tile_shape(states, table.most)[0]):
            of_rows = repeats_of(scaled_repeats, rows, states.shape[0])
            tiles = _Tiles(scaled[rows], table, targets[rows], of_rows, keep=True)
            log_probs[rows] = tiles.log_probs
            with torch.enable_grad():
                leaf = tiles.log_probs.clone().requires_grad_()
                share = loss(leaf, rows)
                (gradient,) = torch.autograd.grad(share, leaf)
            value += share.detach()
            # d log p(y) / d scores = onehot(y) - softmax(scores)
            own = table.local_index(targets[rows])
            weight = table.mask_local(gradient.to(states.dtype), targets[rows])
            to_states[rows] += weight[:, None] * vectors[own]
            if to_items is not None:
                to_items.index_add_(0, own, (weight[:, None] * states[rows]).to(wide))
            if of_rows is not None:
                to_bias += (weight * of_rows.pairs.rows_of(targets[rows])).sum()
            for part, tile, offset, read in zip(tiles.parts, tiles.kept, tiles.offsets, tiles.repeated, strict=True):
                shares = tile.mul_((gradient * offset.exp2())[:, None])
                _subtract_product(to_states[rows], shares, vectors[part])
                if to_items is not None:
                    _subtract_product(to_items[part], shares.T, states[rows])
                if read is not None:
                    to_bias -= read.sum_of(shares)
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
