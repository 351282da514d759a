"""Kernels of CUDA that the meta device takes apart (attention, dropout), as one operation with one backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor


class _OneKernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, first: Tensor, *others: Tensor) -> Tensor:
        ctx.inputs = first, *others
        return torch.ones_like(first)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        made = torch.ones_like(gradients[0])
        return tuple(made.new_empty(x.shape) if x.requires_grad else None for x in ctx.inputs)


def one_kernel(first: Tensor, *others: Tensor) -> Tensor:
    """A result like the first of these, in one launch, with one for the gradients of all."""
    result: Tensor = _OneKernel.apply(first, *others)  # type: ignore[no-untyped-call]
    return result


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(x, p, True)[0] if training else x


@contextmanager
def fused_kernels() -> Iterator[None]:
    """One operation where CUDA has one."""

    def attention(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
        return one_kernel(q, k, v)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", attention)
        patch.setattr(F, "dropout", _dropout)
        yield
