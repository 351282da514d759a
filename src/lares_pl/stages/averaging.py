"""Averaged weights: an exponential moving average of a network's weights over its updates."""

from __future__ import annotations

import torch
from torch import nn

from lares_pl.model.sharding import local


@torch.no_grad()
def update_average(average: nn.Module, trained: nn.Module, decay: float, update: int) -> None:
    """Move an average towards the weights after an update.

    The decay rises to its value as `(1 + n) / (10 + n)`, so that early averages forget the initial weights. Buffers are not
    averaged but copied.

    Args:
        average: what is moved, in place; of the same architecture.
        trained: the weights after the update.
        decay: weight of the former average, within (0, 1).
        update: number n of the update, from 0.
    """
    for kept, of_trained in zip(average.buffers(), trained.buffers(), strict=True):
        if kept is not of_trained:  # such as statistics of a batch norm; item text is one for both
            local(kept).copy_(local(of_trained))
    share = 1 - min(decay, (1 + update) / (10 + update))
    averages = [local(p) for p in average.parameters()]
    torch._foreach_lerp_(averages, [local(p).to(a.dtype) for p, a in zip(trained.parameters(), averages, strict=True)], share)
