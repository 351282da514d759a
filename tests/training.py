"""Small stages of the released method and a silent trainer, shared by tests that train."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch

from lares_pl import (
    RPT,
    SPT,
    Alignment,
    BackboneConfig,
    FullSoftmax,
    GroupAdvantage,
    LastStep,
    Pruning,
    RecallReward,
    SequenceDataModule,
    TransformerBlock,
    WholeCatalogue,
)
from tests.released import released_backbone

SMALL = released_backbone(
    hidden_size=16,
    pre_block=partial(TransformerBlock, inner_size=32),
    pre_layers=1,
    core_block=partial(TransformerBlock, inner_size=32),
    core_layers=1,
    dropout=0.1,
)
FAST = partial(torch.optim.Adam, lr=5e-3)


def released_spt(backbone: BackboneConfig = SMALL, **options: Any) -> SPT:
    """SPT with the released losses, neither schedule nor average, and a fast optimiser."""
    losses = {
        "alpha": 0.1,
        "gamma": 0.5,
        "alignment": Alignment(cosine=False, tau=1.0, mask_same_target=False),
        "supervision": LastStep(),
        "loss": FullSoftmax(),
    }
    return SPT(backbone, **{**losses, "optimizer": FAST, "scheduler": None, "ema": 0.0, **options})


class Poisoned(SPT):
    """Returns a NaN loss at its third batch."""

    def training_step(self, batch: Any, batch_idx: int = 0) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * torch.nan if self.trainer.fit_loop.epoch_loop.total_batch_idx == 2 else loss


def released_rpt(init_from: str | Path | None = None, **options: Any) -> RPT:
    """RPT with the released losses, neither schedule nor average, and a fast optimiser."""
    losses = {
        "group_size": 2,
        "reward": RecallReward(10),
        "advantage": GroupAdvantage(),
        "actions": WholeCatalogue(),
        "beta": 1.0,
        "anchor": 0.0,
        "dropout": 0.1,
        "pruning": Pruning(passes=3, top=100),
    }
    source = None if init_from is None else str(init_from)
    return RPT(source, **{**losses, "optimizer": FAST, "scheduler": None, "ema": 0.0, **options})


def trainer(folder: Path, **options: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    chosen = {"accelerator": "cpu", "devices": 1, "default_root_dir": folder, "enable_checkpointing": False}
    return L.Trainer(**{**quiet, **chosen, "max_epochs": 2, "log_every_n_steps": 1, **options})


def data(dataset: Path, **options: Any) -> SequenceDataModule:
    return SequenceDataModule(str(dataset), **{"max_length": 8, "batch_size": 64, "instances": "prefix", **options})
