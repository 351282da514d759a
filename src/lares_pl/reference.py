"""Names and settings of the authors' release (RecBole code), to ours and back.

Only the transformer family so far; `UnknownFamilyError` names what can't be mapped yet.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lares_pl.errors import LaresError

_MODEL = "lares_pl.model"
_INJECTIONS = {"add": "AddInjection", "concat": "ConcatInjection", "linear": "LinearInjection"}
_INITIAL_STATES = {"normal": "NormalState", "zero": "ZeroState", "normal-zero": "NormalZeroState"}
_DEPTHS = {
    "poisson-lognormal": "PoissonLogNormal",
    "poisson": "Poisson",
    "poisson-bounded": "BoundedPoisson",
    "uniform": "UniformDepth",
}


class UnknownFamilyError(LaresError):
    """A checkpoint of a block family that this package has no counterpart for."""


def backbone_config(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Plain `BackboneConfig` of a reference model.

    Args:
        config: the reference's settings (`hidden_size`, `adapter_type`, …).
        state: its state dict, which tells the block family.

    Raises:
        UnknownFamilyError: for a family not built here.
        LaresError: for a setting this package does not know.
    """
    if "pre_encoder.layer.0.multi_head_attention.query.weight" not in state or "plm_embedding.weight" in state:
        raise UnknownFamilyError("this is not a checkpoint of the transformer family, the only one supported so far")
    if config.get("hidden_act", "gelu") != "gelu":
        raise LaresError(f"reference setting hidden_act={config['hidden_act']!r}: only gelu is built here")
    block = {
        "class_path": f"{_MODEL}.blocks.transformer.TransformerBlock",
        "init_args": {
            "heads": config["n_heads"],
            "inner_size": config["inner_size"],
            "dropout": config["hidden_dropout_prob"],
            "attention_dropout": config["attn_dropout_prob"],
            "layer_norm_eps": config["layer_norm_eps"],
        },
    }
    state_args = {"std": config["state_std"], "scale": config["state_scale"]}
    initial = _choice(_INITIAL_STATES, config, "state_init_method", "recurrence")
    if config["state_init_method"] != "zero":
        initial["init_args"] = state_args
    is_cosine = config["sem_func"] == "cos"
    return {
        "hidden_size": config["hidden_size"],
        "pre_block": block,
        "pre_layers": config["n_pre_layers"],
        "core_block": block,
        "core_layers": config["n_core_layers"],
        "dropout": config["hidden_dropout_prob"],
        "injection": _choice(_INJECTIONS, config, "adapter_type", "recurrence"),
        "initial_state": initial,
        "depth": _depth(config),
        "similarity": {
            "class_path": f"{_MODEL}.scoring.{'CosineSimilarity' if is_cosine else 'DotSimilarity'}",
            "init_args": {"tau": config["tau"]} if is_cosine else {},
        },
        # the release's per-step log-probabilities are plain dot products, whatever ranks
        "policy_similarity": {"class_path": f"{_MODEL}.scoring.DotSimilarity", "init_args": {}},
        "initializer_range": config["initializer_range"],
        "layer_norm_eps": config["layer_norm_eps"],
    }


def _choice(names: Mapping[str, str], config: Mapping[str, Any], key: str, module: str) -> dict[str, Any]:
    name = str(config[key]).replace("_", "-")
    if name not in names:
        raise LaresError(f"reference setting {key}={config[key]!r} is unknown; known are {', '.join(names)}")
    return {"class_path": f"{_MODEL}.{module}.{names[name]}", "init_args": {}}


def _depth(config: Mapping[str, Any]) -> dict[str, Any]:
    mean, scheme = config["mean_recurrence"], config["sampling_scheme"]
    if scheme in ("constant", "none"):
        depth = mean if scheme == "constant" else 1
        return {"class_path": f"{_MODEL}.depth.ConstantDepth", "init_args": {"depth": depth}}
    choice = _choice(_DEPTHS, config, "sampling_scheme", "depth")
    return {**choice, "init_args": {"mean": mean}}


_SIMPLE = {
    "item_embedding.weight": "embedding.item.weight",
    "position_embedding.weight": "embedding.position.weight",
    "layernorm_1.weight": "embedding.norm.weight",
    "layernorm_1.bias": "embedding.norm.bias",
    "layernorm_2.weight": "core_norm.weight",
    "layernorm_2.bias": "core_norm.bias",
    "adapter.weight": "injection.linear.weight",
    "adapter.bias": "injection.linear.bias",
}
_IN_BLOCK = {
    "multi_head_attention.dense": "output",
    "multi_head_attention.LayerNorm": "norm",
    "feed_forward.dense_1": "feed_forward.inner",
    "feed_forward.dense_2": "feed_forward.outer",
    "feed_forward.LayerNorm": "feed_forward.norm",
}
_PARTS = ("query", "key", "value")
_BLOCK_NAME = re.compile(r"(pre|core)_encoder\.layer\.(\d+)\.(.+)\.(weight|bias)")


def from_reference(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of `RecurrentBackbone` from a reference state dict (or from gradients under the same names).

    Raises:
        LaresError: if a name can't be mapped.
    """
    ours: dict[str, Tensor] = {}
    fused: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        block = _BLOCK_NAME.fullmatch(name)
        if name in _SIMPLE:
            ours[_SIMPLE[name]] = value
        elif name == "adapter" or (name.startswith("adapter.") and value.numel() == 1):
            ours["injection.gate"] = value.reshape(())
        elif block and block[3] in _IN_BLOCK:
            ours[f"{block[1]}_blocks.{block[2]}.{_IN_BLOCK[block[3]]}.{block[4]}"] = value
        elif block and (part := block[3].removeprefix("multi_head_attention.")) in _PARTS:
            fused.setdefault(f"{block[1]}_blocks.{block[2]}.query_key_value.{block[4]}", {})[part] = value
        else:
            raise LaresError(f"parameter {name!r} of the reference checkpoint has no counterpart here")
    for name, parts in fused.items():
        ours[name] = torch.cat([parts[part] for part in _PARTS])
    return ours
