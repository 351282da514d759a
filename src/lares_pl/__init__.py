"""LARES: latent reasoning with recurrent depth for sequential recommendation, as PyTorch Lightning modules.

The public names, imported at first use so that the command line answers at once.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "BackboneConfig": "lares_pl.model.backbone",
    "RecurrentBackbone": "lares_pl.model.backbone",
    "Histories": "lares_pl.data.histories",
    "SequenceDataModule": "lares_pl.data.module",
    "SequenceDataset": "lares_pl.data.dataset",
    "Columns": "lares_pl.data.formats",
    "prepare": "lares_pl.data.prepare",
    "SPT": "lares_pl.stages.spt",
    "RPT": "lares_pl.stages.rpt",
    "Pruning": "lares_pl.stages.pruning",
    "WarmupCosine": "lares_pl.stages.schedules",
    "load_stage": "lares_pl.stages.checkpoint",
    "LaresError": "lares_pl.errors",
    "TransformerBlock": "lares_pl.model.blocks.transformer",
    **dict.fromkeys(
        ["PoissonLogNormal", "Poisson", "BoundedPoisson", "UniformDepth", "ConstantDepth"], "lares_pl.model.depth"
    ),
    **dict.fromkeys(
        ["NormalState", "ZeroState", "NormalZeroState", "AddInjection", "ConcatInjection", "LinearInjection"],
        "lares_pl.model.recurrence",
    ),
    **dict.fromkeys(["DotSimilarity", "CosineSimilarity"], "lares_pl.model.scoring"),
    **dict.fromkeys(["RecallReward", "NDCGReward"], "lares_pl.objectives.rewards"),
}

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
