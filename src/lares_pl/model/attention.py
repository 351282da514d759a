"""Scaled dot-product attention of rows of tokens, head by head."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lares_pl.model.device import without_autocast
from lares_pl.model.dropout import dropout_and_repeat

FEW = 32  # up to so many tokens a row, weights of attention are written down in a CUDA graph, where launches cost nothing


def attention(q: Tensor, k: Tensor, v: Tensor, p: float, mask: Tensor | None = None) -> Tensor:
    """Attention of each query of a row over the row's keys.

    Args:
        q: `[R, heads, Q, d / heads]`.
        k, v: `[R, heads, L, d / heads]`.
        p: probability of dropping an attention weight.
        mask: 0 where a query sees a key and -inf elsewhere, of a shape that expands to `[R, heads, Q, L]`. Where None there are
            as many queries as keys, and each sees all up to itself.

    Returns:
        `[R, heads, Q, d / heads]`.
    """
    length = k.shape[2]
    if not _writes_weights(q, length, p):
        mask = None if mask is None else mask.to(q.dtype)
        fused: Tensor = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p, is_causal=mask is None)
        return fused
    if mask is None:
        mask = torch.full((length, length), -torch.inf, dtype=q.dtype, device=q.device).triu(1)
    out: Tensor = _WrittenAttention.apply(q, k, v, mask, p)  # type: ignore[no-untyped-call]
    return out


def _writes_weights(q: Tensor, length: int, p: float) -> bool:
    """Whether attention over so many keys is faster with its weights in memory."""
    if q.device.type == "cpu":  # PyTorch's own path would write them down as well, and draw them dearly
        return p > 0
    # the one kernel of CUDA takes two to three times as long for rows of 20 as several: it computes blocks of 64
    return q.is_cuda and length <= FEW and torch.cuda.is_current_stream_capturing()


def split_heads(x: Tensor, heads: int) -> Tensor:
    """`[R, L, d]` -> `[R, heads, L, d / heads]`."""
    split: Tensor = x.unflatten(-1, (heads, -1))
    return split.transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """Inverse of `split_heads`."""
    return x.transpose(1, 2).flatten(2)


class _WrittenAttention(torch.autograd.Function):
    """Attention whose weights are kept.

    Scale and mask go into the products, so that no pass over the scores is spent on them. The gradient of the keys comes in
    their order; autograd's would be transposed, and copied.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, p: float) -> Tensor:
        shape = (*q.shape[:3], k.shape[2])
        ctx.scale = q.shape[3] ** -0.5
        exact = torch.promote_types(q.dtype, torch.float32)
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        with without_autocast(q.device):
            scores = q.new_empty(shape).copy_(mask).flatten(0, 1)
            torch.baddbmm(scores, q, k.transpose(1, 2), alpha=ctx.scale, out=scores)
            weights = scores.softmax(dim=-1, dtype=exact)
            dropped, ctx.drop_alike = dropout_and_repeat(weights, p)
            dropped = dropped.to(q.dtype)
            ctx.save_for_backward(q, k, v, weights, dropped)
            return torch.bmm(dropped, v).view(*shape[:3], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights, dropped = ctx.saved_tensors
        shape = gradients[0].shape
        gradient = gradients[0].flatten(0, 1)
        with without_autocast(q.device):
            to_dropped = torch.bmm(gradient, v.transpose(1, 2)).to(weights.dtype)
            to_scores = torch._softmax_backward_data(ctx.drop_alike(to_dropped), weights, -1, weights.dtype).to(q.dtype)
            to_q = torch.baddbmm(q, to_scores, k, beta=0, alpha=ctx.scale)
            to_k = torch.baddbmm(k, to_scores.transpose(1, 2), q, beta=0, alpha=ctx.scale)
            to_v = torch.bmm(dropped.transpose(1, 2), gradient)
        return (*(x.view(*shape[:2], *x.shape[1:]) for x in (to_q, to_k, to_v)), None, None)
