"""What of Lightning a stage does not support, found before training: flags, callbacks, monitors, arguments not saved, compiled
backbones.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from lightning import LightningModule
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    Callback,
    EarlyStopping,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    SpikeDetection,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import nn
from torch._dynamo import OptimizedModule

from lares_pl.errors import LaresError
from lares_pl.stages.optimizers import check_factories

_HIGHER_IS_BETTER = re.compile(r"val/((all|unseen)/)?(recall|ndcg|map|mrr|hit)")
_USE_EMA = "Leave it out and set model.ema (0.999), whose average is what is validated, saved, tested and exported"
_REFUSED: dict[type[Callback], str] = {
    WeightAveraging: f"tests other weights than it saves. {_USE_EMA}",
    StochasticWeightAveraging: f"replaces the weights after the last validation, which no best checkpoint holds. {_USE_EMA}",
    BackboneFinetuning: "freezes the backbone, which is the whole model, so that nothing would be trained. Derive your own "
    "callback from BaseFinetuning, and freeze parts of `stage.learner` in it",
    ModelPruning: "replaces weights by masked ones, which no stage can load. Leave it out",
}


def check_trainer(trainer: Any, stage: Any) -> None:
    """Check the trainer that is to fit a stage, before anything is built or written.

    Args:
        trainer: the trainer.
        stage: the stage.

    Raises:
        LaresError: if a callback would save other weights than it tests, train nothing, or watch what is never logged; if a
            flag can't be followed; as `check_saved`.
    """
    check_saved(stage)
    if trainer.overfit_batches:
        raise LaresError(
            "trainer.overfit_batches: the batches of the data module have an order of their own, new in each epoch. Leave it "
            "out, and prepare a dataset of a few users to overfit"
        )
    if stage.ema and trainer.precision in ("bf16-true", "16-true"):
        raise LaresError(
            f"trainer.precision {trainer.precision} would keep the averaged weights (model.ema {stage.ema}) in 16 bits, which "
            "lose the small steps of an average. Use bf16-mixed, or train without an average (--model.ema 0)"
        )
    check_factories(stage.optimizer, stage.scheduler)
    callbacks: list[Callback] = trainer.callbacks
    for callback in callbacks:
        for kind, reason in _REFUSED.items():
            if isinstance(callback, kind):
                raise LaresError(f"{type(callback).__name__} {reason}")
        if isinstance(callback, (BatchSizeFinder, LearningRateFinder)) and stage.prunes_instances:
            raise LaresError(
                f"{type(callback).__name__} runs before this stage has pruned its instances. Try with `pruning` off "
                "(--model.pruning null), then train without the finder"
            )
        if isinstance(callback, LearningRateFinder) and stage.scheduler is not None and not callback._early_exit:
            raise LaresError(
                "LearningRateFinder sets the learning rate past the schedule of this stage. Call Tuner(trainer).lr_find(stage, "
                "datamodule=data) before trainer.fit, or keep the learning rate constant (--model.scheduler null)"
            )
        if isinstance(callback, SpikeDetection) and trainer.checkpoint_callbacks:
            raise LaresError(
                "SpikeDetection can't load its own state (Lightning 2.6), so checkpoints of this run could neither be resumed "
                "nor tested. Leave it out; updates whose gradient is not finite are found in any case (model.on_nonfinite)"
            )
    for callback in callbacks:
        _check_validated(callback, trainer)
    if trainer.limit_val_batches and not _may_log_anything(stage, callbacks):
        for callback in callbacks:
            if isinstance(callback, (EarlyStopping, ModelCheckpoint)) and callback.monitor is not None:
                check_monitor(type(callback).__name__, callback.monitor, stage.validated_metrics)


def _check_validated(callback: Callback, trainer: Any) -> None:
    """Refuse to keep or wait for the worst ranking, and to stop by what is not there after some epochs."""
    if not isinstance(callback, (EarlyStopping, ModelCheckpoint)) or not str(callback.monitor).startswith("val/"):
        return
    name = f"{type(callback).__name__} of {callback.monitor}"
    if callback.mode == "min" and _HIGHER_IS_BETTER.match(str(callback.monitor)) and getattr(callback, "save_top_k", 1) != -1:
        raise LaresError(f"{name}: this metric is better when it is higher; set mode='max' (the default is min)")
    if isinstance(callback, EarlyStopping):
        each_epoch = trainer.check_val_every_n_epoch == 1
        at_epoch_end = callback._check_on_train_epoch_end  # None: Lightning decides in its setup, as follows
        if at_epoch_end is None:
            at_epoch_end = trainer.val_check_interval == 1.0 and each_epoch
        if at_epoch_end and not (trainer.limit_val_batches and each_epoch):
            raise LaresError(
                f"{name}: checks after every training epoch, and not every one is validated (trainer.limit_val_batches "
                f"{trainer.limit_val_batches}, check_val_every_n_epoch {trainer.check_val_every_n_epoch}); set "
                "check_on_train_epoch_end=False"
            )


def _may_log_anything(stage: LightningModule, callbacks: Iterable[Callback]) -> bool:
    """Whether a subclass or a callback of the user's own may log further names."""
    own = [type(stage).validation_step, type(stage).training_step, *(type(callback) for callback in callbacks)]
    return any(not part.__module__.startswith(("lightning.", "lares_pl.")) for part in own)


def check_monitor(who: str, monitor: str, validated: Iterable[str]) -> None:
    """Check that a metric is logged; what training logs depends on the stage's options and is not checked.

    Raises:
        LaresError: with the nearest names, if it is not.
    """
    names = list(validated)
    if monitor in names or not needs_validation(monitor):
        return
    near = get_close_matches(monitor, names, 3, 0.4) or names
    raise LaresError(f"{who}: its monitor {monitor!r} is never logged. Validation logs {', '.join(near)}, …")


def needs_validation(monitor: str) -> bool:
    """Whether a metric comes from validation, not from training or its progress."""
    return monitor not in ("epoch", "step") and not monitor.startswith("train/")


def check_saved(stage: LightningModule) -> None:
    """Check that checkpoints of a stage hold all its arguments: a subclass may have some that SPT and RPT do not save.

    Raises:
        LaresError: with those that are missing; a stage loaded from a checkpoint would get their defaults.
    """
    kind = type(stage)
    _, *parameters = inspect.signature(kind.__init__).parameters.values()
    named = [each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    if missing := [name for name in named if name != "init_from" and name not in stage.hparams]:
        quoted = ", ".join(f'"{name}"' for name in missing)
        raise LaresError(
            f"{kind.__name__}: checkpoints would not hold its model.{', model.'.join(missing)}, and a stage loaded from one "
            f"would get the default. Call self.save_hyperparameters({quoted}) in {kind.__name__}.__init__, "
            "after super().__init__"
        )


def check_not_compiled(backbone: nn.Module) -> None:
    """Check that a backbone is not wrapped by `torch.compile`, which would change the names of its weights.

    Raises:
        LaresError: if it is.
    """
    if isinstance(backbone, OptimizedModule):
        raise LaresError(
            "stage.backbone is a torch.compile'd copy: its checkpoint could not be loaded, and nothing would be faster, since "
            "training does not call its forward. Keep the backbone as it is; on a GPU updates are CUDA graphs (cuda_graphs)"
        )
