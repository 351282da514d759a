"""The public names, each with the module it is defined in: the one list, for type checkers and for the lazy imports alike."""

from lares_pl.callbacks.depth_sweep import DepthSweep as DepthSweep
from lares_pl.callbacks.flop_budget import FlopBudget as FlopBudget
from lares_pl.callbacks.lineage import Lineage as Lineage
from lares_pl.callbacks.tracking import Wandb as Wandb
from lares_pl.data.dataset.prepared import SequenceDataset as SequenceDataset
from lares_pl.data.loading.histories import Histories as Histories
from lares_pl.data.module import SequenceDataModule as SequenceDataModule
from lares_pl.data.prepare.columns import Columns as Columns
from lares_pl.data.prepare.command import prepare as prepare
from lares_pl.data.prepare.engines import DuckDB as DuckDB
from lares_pl.data.prepare.spark import Spark as Spark
from lares_pl.data.prepare.text import TextOptions as TextOptions
from lares_pl.errors import LaresError as LaresError
from lares_pl.model.backbone import BackboneConfig as BackboneConfig
from lares_pl.model.backbone import RecurrentBackbone as RecurrentBackbone
from lares_pl.model.blocks.bsarec import BSARecBlock as BSARecBlock
from lares_pl.model.blocks.fmlp import FMLPBlock as FMLPBlock
from lares_pl.model.blocks.lru import LRUBlock as LRUBlock
from lares_pl.model.blocks.rotary import RotaryBlock as RotaryBlock
from lares_pl.model.blocks.transformer import TransformerBlock as TransformerBlock
from lares_pl.model.depth import BoundedPoisson as BoundedPoisson
from lares_pl.model.depth import ConstantDepth as ConstantDepth
from lares_pl.model.depth import Poisson as Poisson
from lares_pl.model.depth import PoissonLogNormal as PoissonLogNormal
from lares_pl.model.depth import UniformDepth as UniformDepth
from lares_pl.model.embedding import ItemEmbedder as ItemEmbedder
from lares_pl.model.embedding import ItemText as ItemText
from lares_pl.model.embedding import TedRecEmbedder as TedRecEmbedder
from lares_pl.model.reasoning import DivergenceStop as DivergenceStop
from lares_pl.model.reasoning import Reasoning as Reasoning
from lares_pl.model.reasoning import ResidualStop as ResidualStop
from lares_pl.model.reasoning import StopRule as StopRule
from lares_pl.model.recurrence import AddInjection as AddInjection
from lares_pl.model.recurrence import ConcatInjection as ConcatInjection
from lares_pl.model.recurrence import LinearInjection as LinearInjection
from lares_pl.model.recurrence import NormalState as NormalState
from lares_pl.model.recurrence import NormalZeroState as NormalZeroState
from lares_pl.model.recurrence import ZeroState as ZeroState
from lares_pl.model.scoring import CosineSimilarity as CosineSimilarity
from lares_pl.model.scoring import DotSimilarity as DotSimilarity
from lares_pl.objectives.rewards import NDCGReward as NDCGReward
from lares_pl.objectives.rewards import RecallReward as RecallReward
from lares_pl.objectives.softmax import FullSoftmax as FullSoftmax
from lares_pl.objectives.softmax import SampledSoftmax as SampledSoftmax
from lares_pl.recommender.api import Recommender as Recommender
from lares_pl.recommender.recommendations import Recommendations as Recommendations
from lares_pl.stages.checkpoint_io import AtomicCheckpointIO as AtomicCheckpointIO
from lares_pl.stages.loading import load_stage as load_stage
from lares_pl.stages.pruning import Pruning as Pruning
from lares_pl.stages.rpt import RPT as RPT
from lares_pl.stages.schedules import WarmupCosine as WarmupCosine
from lares_pl.stages.spt import SPT as SPT

__version__: str
__all__: list[str]
