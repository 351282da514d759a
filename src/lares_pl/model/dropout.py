"""Dropout, with cheap random bits on a CPU.

PyTorch draws each mask value from a 64-bit number of its own there, which costs more than the layers around it (a fifth of an
SPT step). Four values from one number leave the probability exact to 1 / 65,536.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STEPS = 1 << 16  # values of the 16 bits that decide about one element


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero each value with probability `p` and scale the others by `1 / (1 - p)`, as in training."""
    if p == 0:
        return x
    return x * _factors(x, p) if _cheaply(x) else F.dropout(x, p)


def dropout_and_repeat(x: Tensor, p: float) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """As `dropout`, without gradient, and what drops the same values of another tensor."""
    if p == 0:
        return x, lambda other: other
    if _cheaply(x):
        factors = _factors(x, p)
        return x * factors, lambda other: other * factors
    dropped, kept = torch.native_dropout(x, p, True)
    return dropped, lambda other: torch.ops.aten.native_dropout_backward(other, kept, 1 / (1 - p))


def _cheaply(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def _factors(x: Tensor, p: float) -> Tensor:
    """0 or `1 / (1 - p)` for each value."""
    numbers = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    bits = numbers.view(torch.int16)[: x.numel()].view(x.shape)
    dropped = min(round(p * _STEPS), _STEPS - 1)  # some are kept
    kept = (bits >= dropped - _STEPS // 2).to(x.dtype)
    return kept.mul_(_STEPS / (_STEPS - dropped))


class Dropout(nn.Dropout):
    """`nn.Dropout` by `dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        """`[*]` -> `[*]`."""
        return dropout(x, self.p) if self.training else x
