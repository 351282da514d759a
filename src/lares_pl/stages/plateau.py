"""Learning-rate schedules that wait for a metric: stepped after each validation, before checkpoints are saved."""

from __future__ import annotations

import sys
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lares_pl.errors import LaresError
from lares_pl.stages.compatibility import check_monitor

MONITOR = "val/ndcg@10"


class PlateauSteps(Callback):
    """Steps `ReduceLROnPlateau` after each validation, so that its patience counts validations, as that of early stopping does.

    Lightning itself steps it at the end of an epoch, after checkpoints were saved: a resumed run would miss the step.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check what is watched.

        Raises:
            LaresError: if validation does not log it.
        """
        for config in trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, ReduceLROnPlateau):
                check_monitor("model.scheduler", str(config.monitor), pl_module.validated_metrics)  # type: ignore[arg-type]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Step, unless no update was made yet."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or trainer.global_step == 0:
            return
        for config in trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, ReduceLROnPlateau) and config.monitor is not None:
                if config.monitor not in trainer.callback_metrics:
                    raise LaresError(
                        f"model.scheduler: its monitor {config.monitor!r} is not logged; there are {_logged(trainer)}"
                    )
                config.scheduler.step(float(trainer.callback_metrics[config.monitor]))


def _logged(trainer: Trainer) -> str:
    return ", ".join(sorted(trainer.callback_metrics))


def plateau_config(schedule: ReduceLROnPlateau) -> dict[str, Any]:
    """Return the entry of `configure_optimizers` for such a schedule.

    Args:
        schedule: torch's, which watches NDCG@10, or Lightning's, which names its monitor.

    Raises:
        LaresError: if a ranking metric is to be minimised.
    """
    monitor = getattr(schedule, "monitor", MONITOR)
    if monitor.startswith("val/") and schedule.mode == "min":
        raise LaresError(
            f"model.scheduler: ReduceLROnPlateau watches {monitor}, which is better when it is higher; set mode: max "
            "(--model.scheduler.mode max)"
        )
    # Lightning saves and restores its state, and is never to step it
    return {"scheduler": schedule, "monitor": monitor, "interval": "epoch", "frequency": sys.maxsize}
