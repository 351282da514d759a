"""Validate the weights that a stage starts from, so that its best checkpoint is never worse than they are."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from lares_pl.errors import LaresError


class StartingPoint(Callback):
    """Runs a validation before the first update, and reports at the end what the updates gained.

    Checkpoint callbacks with a monitor save the weights as they do after any validation: the first `best.ckpt` holds those that
    the stage started from, and stays if no later validation is better. RPT adds this callback by itself.

    Args:
        monitor: the metric that is compared; higher is better.
    """

    def __init__(self, monitor: str = "val/ndcg@10") -> None:
        self.monitor = monitor
        self.initial: float | None = None
        self.best: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """Kept over resuming."""
        return {"initial": self.initial, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of the run that is resumed."""
        self.initial, self.best = state_dict["initial"], state_dict["best"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate, unless a run is resumed, is a trial, has no validation, or shares a sharded catalogue."""
        trial: bool = trainer.fast_dev_run  # type: ignore[attr-defined]
        if trainer.global_step or trainer.ckpt_path is not None or trial or not trainer.enable_validation:
            return
        if pl_module.device_mesh is not None:
            return  # not understood yet: validating first changes what processes that share a catalogue learn
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True
        for callback in trainer.checkpoint_callbacks:
            # by itself ModelCheckpoint saves nothing before the first update
            if isinstance(callback, ModelCheckpoint) and callback.monitor is not None:
                callback._save_topk_checkpoint(trainer, callback._monitor_candidates(trainer))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the first value, and the best of the later ones."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        value = trainer.callback_metrics.get(self.monitor)
        if value is None:
            raise LaresError(f"StartingPoint: validation logs no {self.monitor}; name one that it does as `monitor`")
        if self.initial is None:
            self.initial = float(value)
        else:
            self.best = float(value) if self.best is None else max(self.best, float(value))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report what was gained."""
        if self.initial is None or self.best is None:
            return
        name = type(pl_module).__name__
        found = f"{name}: {self.monitor} {self.initial:.4f} before the first update, at best {self.best:.4f} after one"
        if self.best > self.initial:
            rank_zero_info(f"{found} ({self.best / max(self.initial, 1e-12) - 1:+.1%})")
        else:
            rank_zero_info(f"{found}: nothing was gained, and the best checkpoint holds the weights it started from")
