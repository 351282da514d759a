"""Counts what an update launches on a card, without one: operations on the meta device that compute something.

A fused kernel of CUDA that the meta device takes apart (attention, dropout) is replaced by one operation with one backward.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from traffic import NO_KERNEL


class LaunchCounter(TorchDispatchMode):
    """Counts operations whose result is on a device, by name.

    Args:
        device: its type.
    """

    def __init__(self, device: str = "meta") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.launches: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return sum(self.launches.values())

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], arguments: Sequence[Any] = (), options: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*arguments, **(options or {}))
        name = function.overloadpacket.__name__
        first = result[0] if isinstance(result, (tuple, list)) and result else result
        on_device = isinstance(first, Tensor) and first.device.type == self.device
        in_place = first is None and ("_foreach_" in name or "_fused_" in name)
        if in_place or (on_device and name not in NO_KERNEL):
            self.launches[name] += 1
        return result


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
