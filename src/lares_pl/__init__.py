"""LARES: latent reasoning with recurrent depth for sequential recommendation, as PyTorch Lightning modules.

The public names, imported at first use so that the command line answers at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lares_pl.data.dataset.prepared import SequenceDataset
    from lares_pl.data.loading.histories import Histories
    from lares_pl.data.module import SequenceDataModule
    from lares_pl.data.prepare.command import prepare
    from lares_pl.data.prepare.engines import DuckDB
    from lares_pl.data.prepare.readers import Columns
    from lares_pl.data.prepare.spark import Spark
    from lares_pl.data.prepare.text import TextOptions
    from lares_pl.errors import LaresError
    from lares_pl.losses.actions import TargetAmongBest, WholeCatalogue
    from lares_pl.losses.advantages import BatchAdvantage, GroupAdvantage
    from lares_pl.losses.alignment import Alignment
    from lares_pl.losses.next_item import FullSoftmax, SampledSoftmax
    from lares_pl.losses.rewards import LogProbReward, NDCGReward, RecallReward
    from lares_pl.losses.supervision import EveryStep, LastAndRandomStep, LastStep, StepPerInstance
    from lares_pl.model.backbone import BackboneConfig, RecurrentBackbone
    from lares_pl.model.blocks.bsarec import BSARecBlock
    from lares_pl.model.blocks.conv_transformer import ConvTransformerBlock
    from lares_pl.model.blocks.fmlp import FMLPBlock
    from lares_pl.model.blocks.lru import LRUBlock
    from lares_pl.model.blocks.rotary import RotaryBlock
    from lares_pl.model.blocks.transformer import TransformerBlock
    from lares_pl.model.depth import BoundedPoisson, ConstantDepth, Poisson, PoissonLogNormal, UniformDepth
    from lares_pl.model.embedding import ItemEmbedder, ItemText, TedRecEmbedder
    from lares_pl.model.reasoning import DivergenceStop, Reasoning, ResidualStop, StopRule
    from lares_pl.model.recurrence import (
        AddInjection,
        ConcatInjection,
        LinearInjection,
        NormalState,
        NormalZeroState,
        ZeroState,
    )
    from lares_pl.model.similarity import CosineSimilarity, DotSimilarity
    from lares_pl.recommender.api import Recommendations, Recommender
    from lares_pl.stages.checkpoint import load_stage
    from lares_pl.stages.pruning import Pruning
    from lares_pl.stages.rpt import RPT
    from lares_pl.stages.schedules import WarmupCosine
    from lares_pl.stages.spt import SPT

__version__ = "0.1.0"

# where each public name lives; the same names as above, for those who run instead of check
_HOME = {
    "data.dataset.prepared": ["SequenceDataset"],
    "data.prepare.engines": ["DuckDB"],
    "data.prepare.readers": ["Columns"],
    "data.loading.histories": ["Histories"],
    "data.module": ["SequenceDataModule"],
    "data.prepare.command": ["prepare"],
    "data.prepare.spark": ["Spark"],
    "data.prepare.text": ["TextOptions"],
    "errors": ["LaresError"],
    "model.backbone": ["BackboneConfig", "RecurrentBackbone"],
    "model.blocks.bsarec": ["BSARecBlock"],
    "model.blocks.fmlp": ["FMLPBlock"],
    "model.blocks.lru": ["LRUBlock"],
    "model.blocks.rotary": ["RotaryBlock"],
    "model.blocks.transformer": ["TransformerBlock"],
    "model.depth": ["BoundedPoisson", "ConstantDepth", "Poisson", "PoissonLogNormal", "UniformDepth"],
    "model.embedding": ["ItemEmbedder", "ItemText", "TedRecEmbedder"],
    "model.reasoning": ["DivergenceStop", "Reasoning", "ResidualStop", "StopRule"],
    "model.recurrence": [
        "AddInjection",
        "ConcatInjection",
        "LinearInjection",
        "NormalState",
        "NormalZeroState",
        "ZeroState",
    ],
    "model.similarity": ["CosineSimilarity", "DotSimilarity"],
    "losses.alignment": ["Alignment"],
    "losses.supervision": ["StepPerInstance", "LastStep", "LastAndRandomStep", "EveryStep"],
    "losses.advantages": ["BatchAdvantage", "GroupAdvantage"],
    "losses.actions": ["WholeCatalogue", "TargetAmongBest"],
    "model.blocks.conv_transformer": ["ConvTransformerBlock"],
    "losses.rewards": ["LogProbReward", "NDCGReward", "RecallReward"],
    "losses.next_item": ["FullSoftmax", "SampledSoftmax"],
    "recommender.api": ["Recommendations", "Recommender"],
    "stages.checkpoint": ["load_stage"],
    "stages.pruning": ["Pruning"],
    "stages.rpt": ["RPT"],
    "stages.schedules": ["WarmupCosine"],
    "stages.spt": ["SPT"],
}
_MODULE_OF = {name: f"lares_pl.{module}" for module, names in _HOME.items() for name in names}

__all__ = [
    "RPT",
    "SPT",
    "AddInjection",
    "Alignment",
    "BSARecBlock",
    "BackboneConfig",
    "BatchAdvantage",
    "BoundedPoisson",
    "Columns",
    "ConcatInjection",
    "ConstantDepth",
    "ConvTransformerBlock",
    "CosineSimilarity",
    "DivergenceStop",
    "DotSimilarity",
    "DuckDB",
    "EveryStep",
    "FMLPBlock",
    "FullSoftmax",
    "GroupAdvantage",
    "Histories",
    "ItemEmbedder",
    "ItemText",
    "LRUBlock",
    "LaresError",
    "LastAndRandomStep",
    "LastStep",
    "LinearInjection",
    "LogProbReward",
    "NDCGReward",
    "NormalState",
    "NormalZeroState",
    "Poisson",
    "PoissonLogNormal",
    "Pruning",
    "Reasoning",
    "RecallReward",
    "Recommendations",
    "Recommender",
    "RecurrentBackbone",
    "ResidualStop",
    "RotaryBlock",
    "SampledSoftmax",
    "SequenceDataModule",
    "SequenceDataset",
    "Spark",
    "StepPerInstance",
    "StopRule",
    "TargetAmongBest",
    "TedRecEmbedder",
    "TextOptions",
    "TransformerBlock",
    "UniformDepth",
    "WarmupCosine",
    "WholeCatalogue",
    "ZeroState",
    "load_stage",
    "prepare",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
