"""The resolved configuration of a run, saved in its folder and sent to W&B once."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any

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
        text = self.parser.dump(_without_enumerations(self.resolved), skip_none=False)
        if self.folder is not None:
            write_text(self.folder / "config.yaml", text)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_hyperparams(yaml.safe_load(text))
                if self.folder is not None:
                    StageFolder(self.folder).track(str(logger.experiment.id))


def _without_enumerations(value: Any) -> Any:
    """Values in place of members of enumerations, which YAML has no form for: defaults of Lightning's Timer are such."""
    if isinstance(value, Namespace):
        return Namespace(**{key: _without_enumerations(part) for key, part in vars(value).items()})
    if isinstance(value, list):
        return [_without_enumerations(part) for part in value]
    return value.value if isinstance(value, Enum) else value
