"""The resolved configuration of a run, saved in its folder and sent to W&B once."""

from __future__ import annotations

from pathlib import Path

import yaml
from jsonargparse import Namespace
from lightning import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger

from lares_pl.atomic_io import write_text
from lares_pl.runs import StageFolder


class ConfigSaver(SaveConfigCallback):
    """Writes `config.yaml` to the run's folder and logs the configuration to W&B.

    Args:
        parser: the subcommand's parser.
        config: its configuration.
        resolved: the configuration to save: as requested, before this run's own paths were filled in.
        folder: the run's folder; None writes no file (validate, test, predict).
    """

    def __init__(
        self, parser: LightningArgumentParser, config: Namespace, resolved: Namespace, folder: Path | None = None
    ) -> None:
        super().__init__(parser, config, save_to_log_dir=False)
        self.resolved = resolved
        self.folder = folder

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called once, on the first process."""
        text = self.parser.dump(self.resolved, skip_none=False)
        if self.folder is not None:
            write_text(self.folder / "config.yaml", text)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_hyperparams(yaml.safe_load(text))
                if self.folder is not None:
                    StageFolder(self.folder).track(str(logger.experiment.id))
