"""Learning-rate schedules by update."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lares_pl.errors import LaresError


class WarmupCosine(LambdaLR):
    """Linear warm-up, then cosine decay to a fraction of the learning rate, which is then constant.

    Args:
        optimizer: the optimiser.
        warmup: number of updates of the warm-up.
        total: number of updates after which the lowest rate is reached; None: as many as the trainer will make.
        floor: the lowest rate as a fraction of the optimiser's.
    """

    def __init__(self, optimizer: Optimizer, warmup: int = 200, total: int | None = None, floor: float = 0.02) -> None:
        if warmup < 0 or not 0 <= floor <= 1 or (total is not None and total <= warmup):
            raise LaresError(
                "WarmupCosine: expected 0 <= warmup < total and 0 <= floor <= 1, got "
                f"warmup={warmup}, total={total}, floor={floor}"
            )
        self.warmup, self.total, self.floor = warmup, total, floor
        super().__init__(optimizer, lambda update: self._factor(update))  # a bound method would be saved with the state

    def _factor(self, update: int) -> float:
        """Share of the optimiser's learning rate in an update, counted from 0."""
        if update < self.warmup:
            return (update + 1) / self.warmup
        if self.total is None:  # until the trainer has said how many there will be
            return 1.0
        done = min(1.0, (update - self.warmup) / max(1, self.total - self.warmup))
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2
