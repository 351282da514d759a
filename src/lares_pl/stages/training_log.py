"""What training logs of an update: its values under `train/`, the learning rate, and instances per second."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor


class TrainingLog:
    """Logs updates whose values somebody reads: a logger, a checkpoint, or what follows an epoch, a validation or the end.

    Lightning needs a millisecond for two values, also of updates that no logger asks for.
    """

    def __init__(self) -> None:
        self._since = (time.perf_counter(), 0)  # when speed was last reported, and the instances since then
        self._reported = False  # whether loggers read the last update

    def restart(self) -> None:
        """Speed is measured from now on."""
        self._since = (time.perf_counter(), 0)

    def __call__(self, stage: LightningModule, values: Mapping[str, Tensor | float | int], instances: int) -> None:
        """Log an update, if it is one of those.

        Args:
            stage: that is trained.
            values: tensors stay on their device until somebody reads them.
            instances: of this process's batch.
        """
        trainer: Any = stage.trainer
        readers = (trainer.distributed_sampler_kwargs or {}).get("num_replicas", 1)
        self._since = (self._since[0], self._since[1] + instances * readers)
        self._reported = _is_reported(trainer)
        if is_read(trainer):
            self._log(stage, values, instances)
        if self._reported:
            self.restart()

    def last(self, stage: LightningModule, values: Mapping[str, Tensor | float | int]) -> None:
        """Log the last update of a training that is stopped, unless loggers have read it.

        Args:
            stage: that is trained.
            values: of that update.
        """
        if not self._reported:
            self._log(stage, values, 1)

    def _log(self, stage: LightningModule, values: Mapping[str, Tensor | float | int], instances: int) -> None:
        trainer: Any = stage.trainer
        since, counted = self._since
        speed = {
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "instances_per_second": counted / max(time.perf_counter() - since, 1e-9),
        }
        # as tensors of the host: Lightning would copy numbers to the device, and wait
        tensors = {
            f"train/{name}": torch.as_tensor(value, dtype=torch.float32) for name, value in ({**values, **speed}).items()
        }
        stage.log_dict(tensors, batch_size=max(1, instances))


def is_read(trainer: Any) -> bool:
    """Whether somebody reads what is logged of the batch that is trained on.

    That is a logger, at the first or last batch of an epoch or the last of training, or before a validation or a checkpoint.
    """
    if _is_reported(trainer):
        return True
    loop, every, update = trainer.fit_loop.epoch_loop, trainer.val_check_batch, trainer.global_step + 1
    if loop.batch_idx == 0 or trainer.is_last_batch or update == trainer.max_steps or every is None:  # None: by the clock
        return True
    # validations count batches of the epoch, or of all training
    if any((batch + 1) % every == 0 for batch in (loop.batch_idx, loop.total_batch_idx)):
        return True
    of_checkpoints = [getattr(callback, "_every_n_train_steps", 0) for callback in trainer.checkpoint_callbacks]
    return any(steps and update % steps == 0 for steps in of_checkpoints)


def _is_reported(trainer: Any) -> bool:
    """Whether loggers read this update, of which the batch is the last one."""
    every = max(1, int(getattr(trainer, "log_every_n_steps", 1)))
    return bool((trainer.global_step + 1) % every == 0) and not trainer.fit_loop._should_accumulate()
