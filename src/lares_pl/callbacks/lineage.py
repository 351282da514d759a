"""Where a run's weights and data come from and what became of them, as artifacts of W&B.

An artifact is known by the checksums of its files, not by where they lie: the dataset that two runs read, or the checkpoint
that SPT logs and RPT starts from, is the same version of the same artifact, also where both runs are kept offline and sent
later.
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
    """Tells W&B which dataset and which checkpoint a fit starts from, and which checkpoint was its best.

    What is sent of them the logger says (`Wandb(dataset=…, checkpoint=…)`); without one nothing happens.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Inputs."""
        assert isinstance(pl_module, BaseStage)
        for logger in _loggers(trainer):
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            if logger.dataset != "off":
                logger.use(dataset_artifact(Path(data.dataset_path), logger.dataset))
            source = pl_module.initial_checkpoint
            if logger.checkpoint != "off" and source is not None and Path(source).is_file():
                logger.use(checkpoint_artifact(Path(source), logger.checkpoint))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Output."""
        keeper = trainer.checkpoint_callback
        best = keeper.best_model_path if isinstance(keeper, ModelCheckpoint) else ""
        for logger in _loggers(trainer):
            if logger.checkpoint != "off" and best:
                logger.experiment.log_artifact(checkpoint_artifact(Path(best), logger.checkpoint), aliases=["best"])


def _loggers(trainer: Trainer) -> list[Wandb]:
    """Those that write: on the first process."""
    return [logger for logger in trainer.loggers if isinstance(logger, Wandb)] if trainer.is_global_zero else []


def checkpoint_artifact(path: Path, keeping: Keeping) -> wandb.Artifact:
    """A checkpoint; its name is that of run and stage, as in `runs/RUN/STAGE/checkpoints/best.ckpt`.

    Args:
        path: the file.
        keeping: `reference`: its place, size and checksum; `upload`: the file too.
    """
    folder = path.absolute().parent
    name = f"{folder.parents[1].name}-{folder.parent.name}" if folder.name == "checkpoints" else path.stem
    read = read_checkpoint(path)
    metadata = {"stage": read.stage_name, "items": read.catalogue["items"], "max_length": read.catalogue["max_length"]}
    return _artifact(f"checkpoint-{name}", "model", path.parent, [path], metadata, keeping)


def dataset_artifact(folder: Path, keeping: Keeping) -> wandb.Artifact:
    """A prepared dataset without what is made again from it; its counts, filters and sources are metadata.

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
