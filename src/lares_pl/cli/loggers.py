"""The output paths and names of a run's loggers."""

from __future__ import annotations

from jsonargparse import Namespace

from lares_pl.callbacks.tracking import Wandb
from lares_pl.cli.callbacks import is_kind
from lares_pl.runs import StageFolder


def place_loggers(config: Namespace, folder: StageFolder, resumed: bool) -> None:
    """Set folder, run name and group of the loggers if they have none; add the CSV logger, which every run has.

    Args:
        config: of `fit`.
        folder: of the stage.
        resumed: whether the run resumes a checkpoint; it then continues its W&B run.
    """
    trainer = config.trainer
    loggers = trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]
    loggers = [logger for logger in loggers if isinstance(logger, Namespace)]
    for logger in loggers:
        arguments = logger.init_args
        if "save_dir" in arguments and arguments.get("save_dir") in (None, "."):
            arguments.save_dir = str(folder.path)
        if is_kind(logger, Wandb):
            if resumed:
                arguments.id = arguments.get("id") or folder.tracked()
            arguments.name = arguments.get("name") or f"{config.run}-{folder.path.name}"
            arguments.group = arguments.get("group") or config.run
    csv = Namespace(save_dir=str(folder.path), name="metrics", version=None, prefix="", flush_logs_every_n_steps=100)
    loggers.append(Namespace(class_path="lightning.pytorch.loggers.CSVLogger", init_args=csv))
    trainer.logger = loggers
    trainer.default_root_dir = trainer.default_root_dir or str(folder.path)
