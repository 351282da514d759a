"""Dropout, with cheap random bits on a CPU.

PyTorch draws each mask value from a 64-bit number of its own there, which costs more than the layers around it (a fifth of an
SPT step). Four values from one number leave the probability exact to 1 / 65,536.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STEPS = 1 << 16  # values of the 16 bits that decide about one element


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero each value with probability `p` and scale the others by `1 / (1 - p)`, as in training."""
    if p == 0:
        return x
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return F.dropout(x, p)
    numbers = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    bits = numbers.view(torch.int16)[: x.numel()].view(x.shape)
    dropped = round(p * _STEPS)
    kept = (bits >= dropped - _STEPS // 2).to(x.dtype)
    return x * kept.mul_(_STEPS / (_STEPS - dropped))


class Dropout(nn.Dropout):
    """`nn.Dropout` by `dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        """`[*]` -> `[*]`."""
        return dropout(x, self.p) if self.training else x
