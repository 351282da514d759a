"""Learning-rate schedules by update."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lares_pl.errors import LaresError


def accumulated_batches(trainer: Trainer, epoch: int) -> int:
    """Return how many batches an update takes in an epoch, which a `GradientAccumulationScheduler` changes."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            return int(callback.get_accumulate_grad_batches(epoch))
    return trainer.accumulate_grad_batches


def expected_updates(trainer: Trainer) -> float:
    """Updates of a whole training."""
    # Lightning's own estimate loads the data before a resumed run has told the loader where it stands
    limit = trainer.limit_train_batches
    if trainer.max_epochs in (None, -1):
        return trainer.max_steps if trainer.max_steps != -1 else math.inf
    batches = len(trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * (1.0 if limit is None else limit))
    updates = sum(math.ceil(batches / accumulated_batches(trainer, epoch)) for epoch in range(trainer.max_epochs))
    return updates if trainer.max_steps == -1 else min(updates, trainer.max_steps)


class WarmupCosine(LambdaLR):
    """Linear warm-up, then cosine decay to a fraction of the learning rate, which is then constant.

    Args:
        optimizer: the optimiser.
        warmup: number of updates of the warm-up.
        total: number of updates after which the lowest rate is reached. None: as many as the trainer will make, of which the
            warm-up takes at most half.
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

    def end_at(self, total: int) -> None:
        """Reach the lowest rate after this many updates; a warm-up longer than half of them is cut to half.

        For a schedule without a total, before its first update.
        """
        self.total, self.warmup = total, min(self.warmup, total // 2)
        self._last_lr = [rate * self._factor(self.last_epoch) for rate in self.base_lrs]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the number of updates made; options are those of this run, which may differ from those of the run it resumes."""
        self.last_epoch, self._step_count = state_dict["last_epoch"], state_dict["_step_count"]
        self._last_lr = [rate * self._factor(self.last_epoch) for rate in self.base_lrs]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate

    def _factor(self, update: int) -> float:
        """Share of the optimiser's learning rate in an update, counted from 0."""
        if update < self.warmup:
            return (update + 1) / self.warmup
        if self.total is None:  # until the trainer has said how many there will be
            return 1.0
        done = min(1.0, (update - self.warmup) / max(1, self.total - self.warmup))
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2


def end_with_training(schedule: WarmupCosine, max_steps: int, expected: Callable[[], float]) -> None:
    """Let a schedule end with training; warn where it is told to end elsewhere.

    Args:
        schedule: the schedule.
        max_steps: updates after which the trainer ends; -1: it does not.
        expected: gives the updates that training will make.

    Raises:
        LaresError: if nobody knows how long training will be.
    """
    if schedule.total is None:
        updates = expected()
        if math.isinf(updates):
            raise LaresError("model.scheduler.total: training has no end; set it, or trainer.max_epochs or max_steps")
        schedule.end_at(max(1, int(updates)))
    elif max_steps not in (-1, schedule.total):
        rank_zero_warn(
            f"model.scheduler.total is {schedule.total:,} updates, trainer.max_steps {max_steps:,}: the "
            "learning rate is at its lowest after the former; keep the two equal"
        )
