"""The architecture of a backbone, as a typed value: what a config's `backbone` section says."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, replace
from functools import partial

from lares_pl.checks import check_fields, instance_of
from lares_pl.errors import LaresError
from lares_pl.model.blocks import BlockFactory
from lares_pl.model.blocks.conv_transformer import ConvTransformerBlock
from lares_pl.model.depth import DepthSchedule, UniformDepth
from lares_pl.model.embedding import Embedder, ItemEmbedder
from lares_pl.model.recurrence import AddInjection, InitialState, Injection, ZeroState
from lares_pl.model.similarity import DotSimilarity, Similarity
from lares_pl.serialization import class_of


@dataclass(frozen=True)
class BackboneConfig:
    """Architecture of a backbone.

    The defaults are those of `spt.yaml`. The paper's (`paper.yaml`): two pre-blocks and two core-blocks of `TransformerBlock`,
    `NormalState`, `PoissonLogNormal`, no bias of repeats.

    Args:
        hidden_size: size d of item embeddings and states.
        embedder: what turns a history into token states.
        pre_block: block that encodes the history.
        pre_layers: number of pre-blocks, one after the other.
        core_block: block that is repeated.
        core_layers: number of core-blocks in one step; 0 (with depth 0) leaves recurrence out.
        dropout: dropout of the embeddings, and of every block that does not set its own.
        injection: how the encoded history joins the state before each step.
        initial_state: what a trajectory starts from.
        depth: how many steps a training pass makes; its mean is the depth of evaluation.
        similarity: how user states and items are compared in training's cross-entropy and in ranking.
        policy_similarity: how they are compared in the policy of RPT; as in ranking where None. (The authors' release
            uses plain dot products there, whatever ranks.)
        repeat_bias: learn one number that is added to the score of every item the history holds: it falls where users do
            not come back to items, and rises where they do. Starts at 0. (Not part of the paper.)
        initializer_range: standard deviation of initial weights.
        layer_norm_eps: epsilon of the backbone's own normalisations.
    """

    hidden_size: int = 64
    embedder: Embedder = field(default_factory=ItemEmbedder)
    pre_block: BlockFactory = ConvTransformerBlock
    pre_layers: int = 0
    core_block: BlockFactory = ConvTransformerBlock
    core_layers: int = 1
    dropout: float = 0.5
    injection: Injection = field(default_factory=AddInjection)
    initial_state: InitialState = field(default_factory=ZeroState)
    depth: DepthSchedule = field(default_factory=UniformDepth)
    similarity: Similarity = field(default_factory=DotSimilarity)
    policy_similarity: Similarity | None = None
    repeat_bias: bool = True
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        check_fields(self)
        for name, (kind, example) in _CHOICES.items():
            instance_of(name, getattr(self, name), kind, example)
        if self.policy_similarity is not None:
            instance_of("policy_similarity", self.policy_similarity, Similarity)
        for name in ("pre_block", "core_block"):
            if not callable(block := getattr(self, name)):
                raise LaresError(f"{name} must be a class of blocks or functools.partial(Class, key=value); got {block!r}")
        if self.hidden_size < 1 or self.pre_layers < 0 or self.core_layers < 0:
            raise LaresError(
                "hidden_size must be at least 1, pre_layers and core_layers at least 0; "
                f"got {self.hidden_size}, {self.pre_layers} and {self.core_layers}"
            )
        if not 0 <= self.dropout < 1:
            raise LaresError(f"dropout must be within [0, 1), got {self.dropout}")
        if self.depth.evaluation_depth == 0 and self.core_layers > 0:
            raise LaresError(f"depth 0 never uses the core-block: set core_layers to 0 (it is {self.core_layers})")


# base class of a setting that is chosen by class, and one that may be chosen
_CHOICES: dict[str, tuple[type, str]] = {
    "embedder": (Embedder, "ItemEmbedder()"),
    "injection": (Injection, "AddInjection()"),
    "initial_state": (InitialState, "ZeroState()"),
    "depth": (DepthSchedule, "ConstantDepth(4)"),
    "similarity": (Similarity, "DotSimilarity()"),
}


def with_dropout(config: BackboneConfig, dropout: float) -> BackboneConfig:
    """The same architecture with this dropout everywhere, also where a block or the embedder sets its own.

    Args:
        config: the architecture.
        dropout: the new dropout.
    """

    def with_own(factory: BlockFactory) -> BlockFactory:
        kind, given = class_of(factory), getattr(factory, "keywords", {})
        own = [name for name in inspect.signature(kind).parameters if name == "dropout" or name.endswith("_dropout")]
        return partial(kind, **{**given, **dict.fromkeys(own, dropout)})

    pre_block, core_block = with_own(config.pre_block), with_own(config.core_block)
    embedder = config.embedder.with_dropout(dropout)
    return replace(config, dropout=dropout, embedder=embedder, pre_block=pre_block, core_block=core_block)
