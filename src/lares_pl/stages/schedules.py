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
        total: number of updates after which the lowest rate is reached.
        floor: the lowest rate as a fraction of the optimiser's.
    """

    def __init__(self, optimizer: Optimizer, warmup: int = 200, total: int = 10_000, floor: float = 0.05) -> None:
        if not 0 <= warmup < total or not 0 <= floor <= 1:
            raise LaresError("WarmupCosine: expected 0 <= warmup < total and 0 <= floor <= 1")

        self.total = total

        def factor(update: int) -> float:
            if update < warmup:
                return (update + 1) / warmup
            done = min(1.0, (update - warmup) / (total - warmup))
            return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2

        super().__init__(optimizer, factor)
