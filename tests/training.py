"""A small architecture, a fast optimiser, and a trainer that prints and writes nothing: what tests that train share."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch

from lares_pl import BackboneConfig, SequenceDataModule, TransformerBlock

SMALL = BackboneConfig(
    hidden_size=16,
    pre_block=partial(TransformerBlock, inner_size=32),
    core_block=partial(TransformerBlock, inner_size=32),
    pre_layers=1,
    core_layers=1,
    dropout=0.1,
)
FAST = partial(torch.optim.Adam, lr=5e-3)


def trainer(folder: Path, **options: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    chosen = {"accelerator": "cpu", "devices": 1, "default_root_dir": folder, "enable_checkpointing": False}
    return L.Trainer(**{**quiet, **chosen, "max_epochs": 2, "log_every_n_steps": 1, **options})


def data(dataset: Path, **options: Any) -> SequenceDataModule:
    return SequenceDataModule(str(dataset), **{"max_length": 8, "batch_size": 64, "instances": "prefix", **options})
