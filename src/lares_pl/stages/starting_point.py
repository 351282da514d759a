"""Validate the weights that a stage starts from, so that its best checkpoint is never worse than they are."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from lares_pl.stages.compatibility import needs_validation

_USUAL = "val/ndcg@10"


class StartingPoint(Callback):
    """Runs a validation before the first update, and reports at the end what the updates gained.

    Checkpoint callbacks with a monitor save the weights as they do after any validation: the first `best.ckpt` holds those that
    the stage started from, and stays if no later validation is better. RPT adds this callback by itself.

    Values are compared by the monitor of the first checkpoint callback that keeps the best by a metric of validation; without
    one by NDCG@10, or by the first metric where the stage does not validate that.
    """

    def __init__(self) -> None:
        self.initial: float | None = None
        self.best: float | None = None
        self._start = 0  # update at which the run begins: a trainer that has fitted another stage goes on counting
        self._monitor, self._mode = _USUAL, "max"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin anew; where a run is resumed its values come later."""
        if stage == "fit":
            self.initial = self.best = None
            self._start = trainer.global_step
            self._monitor, self._mode = compared(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Kept over resuming."""
        return {"initial": self.initial, "best": self.best, "start": self._start, "monitor": self._monitor}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of the run that is resumed; values of another metric than is compared now are of no use."""
        self._start = state_dict["start"]
        if state_dict["monitor"] == self._monitor:
            self.initial, self.best = state_dict["initial"], state_dict["best"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate, unless that was done, the run is a trial, has no validation, or shares a sharded catalogue."""
        trial: bool = trainer.fast_dev_run  # type: ignore[attr-defined]
        if self.initial is not None or trainer.global_step != self._start or trial or not trainer.enable_validation:
            return
        if pl_module.device_mesh is not None:
            return  # not understood yet: validating first changes what processes that share a catalogue learn
        keepers = [each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]
        for callback in keepers:
            callback._last_global_step_saved = trainer.global_step  # as in a new one: no saving within this validation
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True
        for callback in keepers:
            # by itself ModelCheckpoint saves nothing before the first update; what training logs is not there yet
            if callback.monitor in (candidates := callback._monitor_candidates(trainer)):
                callback._save_topk_checkpoint(trainer, candidates)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the value before the first update, and the best of the later ones."""
        value = trainer.callback_metrics.get(self._monitor)
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING or value is None:
            return
        if trainer.global_step == self._start:
            self.initial = float(value)
        else:
            self.best = float(value) if self.best is None else self._better(float(value), self.best)

    def _better(self, one: float, other: float) -> float:
        return max(one, other) if self._mode == "max" else min(one, other)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report what was gained."""
        if self.initial is None or self.best is None:
            return
        name = type(pl_module).__name__
        found = f"{name}: {self._monitor} {self.initial:.4f} before the first update, at best {self.best:.4f} after one"
        if self._better(self.best, self.initial) != self.initial:
            rank_zero_info(f"{found} ({self.best / max(self.initial, 1e-12) - 1:+.1%})")
        else:
            rank_zero_info(f"{found}: nothing was gained, and the best checkpoint holds the weights it started from")


def compared(trainer: Trainer, stage: Any) -> tuple[str, str]:
    """The metric that decides which weights are best, and whether its `max` or `min` is.

    Args:
        trainer: the trainer.
        stage: the stage that it fits.
    """
    for callback in trainer.checkpoint_callbacks:
        if not isinstance(callback, ModelCheckpoint) or callback.monitor is None or callback.save_top_k == 0:
            continue
        if needs_validation(callback.monitor):  # what training logs is not there before the first update
            return callback.monitor, callback.mode
    names = stage.validated_metrics
    return (_USUAL if _USUAL in names else next(iter(names), _USUAL)), "max"
