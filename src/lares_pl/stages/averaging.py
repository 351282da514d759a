"""Averaged weights: an exponential moving average of a network's weights over its updates."""

from __future__ import annotations

import torch
from torch import nn

from lares_pl.model.sharding import local


class Average:
    """A network that is the average of another one, of the same architecture.

    Args:
        average: what is moved, in place.
        trained: what updates change.
        decay: weight of the former average, within (0, 1).
    """

    def __init__(self, average: nn.Module, trained: nn.Module, decay: float) -> None:
        self.decay = decay
        # listed once: it takes longer than to move them
        self._weights = list(zip(average.parameters(), trained.parameters(), strict=True))
        buffers = zip(average.buffers(), trained.buffers(), strict=True)
        self._buffers = [pair for pair in buffers if pair[0] is not pair[1]]  # item text is one for both

    @torch.no_grad()
    def update(self, number: int) -> None:
        """Move it towards the weights after an update; buffers, such as statistics of a batch norm, are copied.

        The decay rises to its value as `(1 + n) / (10 + n)`, so that early averages forget the initial weights.

        Args:
            number: of the update, n, from 0.
        """
        for kept, of_trained in self._buffers:
            local(kept).copy_(local(of_trained))
        share = 1 - min(self.decay, (1 + number) / (10 + number))
        averages = [local(kept) for kept, _ in self._weights]
        weights = [local(p).to(kept.dtype) for (_, p), kept in zip(self._weights, averages, strict=True)]
        torch._foreach_lerp_(averages, weights, share)
