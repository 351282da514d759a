"""The released method's settings, for tests of what only it uses (noise, alignment, dropout of the policy)."""

from __future__ import annotations

from typing import Any

from lares_pl import (
    AddInjection,
    BackboneConfig,
    DotSimilarity,
    ItemEmbedder,
    NormalState,
    PoissonLogNormal,
    TransformerBlock,
)


def released_backbone(**options: Any) -> BackboneConfig:
    """The released architecture, with some options changed."""
    choices: dict[str, Any] = {
        "hidden_size": 64,
        "embedder": ItemEmbedder(),
        "pre_block": TransformerBlock,
        "pre_layers": 2,
        "core_block": TransformerBlock,
        "core_layers": 2,
        "dropout": 0.5,
        "injection": AddInjection(),
        "initial_state": NormalState(),
        "depth": PoissonLogNormal(),
        "similarity": DotSimilarity(),
        "policy_similarity": None,
        "repeat_bias": False,
    }
    return BackboneConfig(**{**choices, **options})
