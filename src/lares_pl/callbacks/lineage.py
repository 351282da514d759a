"""The lineage of a run, as W&B artifacts: its dataset, its initial checkpoint and its best checkpoint.

An artifact is identified by the checksums of its files, not by their path: the dataset of two runs, or the checkpoint that SPT
logs and RPT starts from, is the same version of the same artifact, also if both runs are offline and synchronised later.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

import wandb
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lares_pl.callbacks.tracking import Wandb
from lares_pl.stages.base import BaseStage
from lares_pl.stages.checkpoint import read_checkpoint

Keeping = Literal["reference", "upload"]


class Lineage(Callback):
    """Logs to W&B the dataset and the checkpoint that a fit starts from, and its best checkpoint.

    The logger determines what is sent (`Wandb(dataset=…, checkpoint=…)`); without one nothing happens.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the inputs."""
        assert isinstance(pl_module, BaseStage)
        for logger in _loggers(trainer):
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            if logger.dataset != "off":
                logger.use(dataset_artifact(Path(data.dataset_path), logger.dataset))
            source = pl_module.initial_checkpoint
            if logger.checkpoint != "off" and source is not None and Path(source).is_file():
                logger.use(checkpoint_artifact(Path(source), logger.checkpoint))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the output."""
        keeper = trainer.checkpoint_callback
        best = keeper.best_model_path if isinstance(keeper, ModelCheckpoint) else ""
        for logger in _loggers(trainer):
            if logger.checkpoint != "off" and best:
                logger.experiment.log_artifact(checkpoint_artifact(Path(best), logger.checkpoint), aliases=["best"])


def _loggers(trainer: Trainer) -> list[Wandb]:
    """The W&B loggers; only the first process has any."""
    return [logger for logger in trainer.loggers if isinstance(logger, Wandb)] if trainer.is_global_zero else []


def checkpoint_artifact(path: Path, keeping: Keeping) -> wandb.Artifact:
    """Return the artifact of a checkpoint, named after run and stage, as in `runs/RUN/STAGE/checkpoints/best.ckpt`.

    Args:
        path: the file.
        keeping: `reference`: its path, size and checksum; `upload`: also the file.
    """
    folder = path.absolute().parent
    name = f"{folder.parents[1].name}-{folder.parent.name}" if folder.name == "checkpoints" else path.stem
    read = read_checkpoint(path)
    metadata = {"stage": read.stage_name, "items": read.catalogue["items"], "max_length": read.catalogue["max_length"]}
    return _artifact(f"checkpoint-{name}", "model", path.parent, [path], metadata, keeping)


def dataset_artifact(folder: Path, keeping: Keeping) -> wandb.Artifact:
    """Return the artifact of a prepared dataset, without its cache; its counts, filters and sources are metadata.

    Args:
        folder: its directory.
        keeping: as `checkpoint_artifact`.
    """
    parts = [path for name in ("sequences.parquet", "items.parquet") if (path := folder / name).is_file()]
    parts += sorted((folder / "sequences").glob("*.parquet"))
    metadata = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    return _artifact(f"dataset-{folder.name}", "dataset", folder, [folder / "dataset.json", *parts], metadata, keeping)


def _artifact(
    name: str, kind: str, folder: Path, paths: list[Path], metadata: dict[str, Any], keeping: Keeping
) -> wandb.Artifact:
    artifact = wandb.Artifact(re.sub(r"[^\w.-]", "_", name)[:128], kind, metadata=metadata)
    for path in paths:
        inside = str(path.relative_to(folder))
        if keeping == "upload":
            artifact.add_file(str(path), inside)
        else:
            artifact.add_reference(path.absolute().as_uri(), inside)
    return artifact
