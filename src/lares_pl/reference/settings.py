"""Conversion between settings of the authors' release (RecBole's flat configuration) and `BackboneConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from inspect import signature
from typing import Any

from torch import Tensor

from lares_pl.errors import LaresError
from lares_pl.model.architecture import BackboneConfig
from lares_pl.model.blocks import BlockFactory
from lares_pl.model.blocks.bsarec import BSARecBlock
from lares_pl.model.blocks.fmlp import FMLPBlock
from lares_pl.model.blocks.transformer import TransformerBlock
from lares_pl.model.depth import BoundedPoisson, ConstantDepth, DepthSchedule, Poisson, PoissonLogNormal, UniformDepth
from lares_pl.model.embedding import ItemEmbedder, TedRecEmbedder
from lares_pl.model.recurrence import (
    AddInjection,
    ConcatInjection,
    LinearInjection,
    NormalState,
    NormalZeroState,
    ZeroState,
)
from lares_pl.model.similarity import CosineSimilarity, DotSimilarity
from lares_pl.reference.names import Family
from lares_pl.serialization import class_of, to_plain

_INJECTIONS = {"add": AddInjection, "concat": ConcatInjection, "linear": LinearInjection}
_INITIAL_STATES = {"normal": NormalState, "zero": ZeroState, "normal_zero": NormalZeroState}
_DEPTHS = {
    "poisson-lognormal": PoissonLogNormal,
    "poisson": Poisson,
    "poisson-bounded": BoundedPoisson,
    "uniform": UniformDepth,
}
# defaults for settings that a file lacks, from docs/method.md; sizes, layers and injection are inferred from the weights
_PAPER: dict[str, Any] = {
    "n_heads": 2,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.5,
    "attn_dropout_prob": 0.5,
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.02,
    "state_init_method": "normal",
    "state_std": 1.0,
    "state_scale": 3.0,
    "mean_recurrence": 4,
    "sampling_scheme": "poisson-lognormal",
    "sem_func": "dot",
    "tau": 1.0,
    "alpha": 0.1,
    "gamma": 0.5,
}
_OF_FAMILY: dict[Family, dict[str, Any]] = {
    "transformer": {},
    "fmlp": {},
    "bsarec": {"a": 0.7, "c": 3},
    "tedrec": {"adaptor_dropout_prob": 0.2},
}


def complete_settings(
    given: Mapping[str, Any], state: Mapping[str, Tensor], family: Family
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Complete the settings that `backbone_config` needs; return them, and those assumed to be the paper's.

    Args:
        given: settings found with the weights, or given by the user.
        state: the release's state dict; sizes, layers and injection are inferred from it.
        family: block family of the model.

    Raises:
        LaresError: if a setting contradicts the weights.
    """
    from_weights = _inferred(state, family)
    defaults = {**_PAPER, **_OF_FAMILY[family]}
    examples = {**defaults, **from_weights}
    given = {key: _converted(key, value, examples.get(key)) for key, value in given.items() if value is not None}
    for key, value in from_weights.items():
        if key in given and given[key] != value:
            raise LaresError(f"reference setting {key}={given[key]!r} contradicts the weights, which have {value!r}")
    assumed = {key: value for key, value in defaults.items() if key not in given}
    if "attn_dropout_prob" in assumed and given.get("hidden_dropout_prob") is not None:
        assumed["attn_dropout_prob"] = given["hidden_dropout_prob"]
    return {**given, **assumed, **from_weights}, assumed


def _converted(key: str, value: Any, example: Any) -> Any:
    """Convert a setting to the type of an example: files may hold `2.0` or `"2"` for 2, and YAML reads `1e-12` as a string."""
    if example is None or isinstance(value, type(example)):
        return value
    try:
        number = float(value)
        converted = type(example)(number)
        if isinstance(example, str) or number != converted:
            raise ValueError
    except (TypeError, ValueError) as error:
        raise LaresError(
            f"reference setting {key}={value!r}: expected {type(example).__name__}, such as {example!r}"
        ) from error
    return converted


def _inferred(state: Mapping[str, Tensor], family: Family) -> dict[str, Any]:
    """Settings that the shapes of the weights determine."""
    adapter = [value for name, value in state.items() if name.startswith("adapter") and not name.endswith("bias")]
    settings: dict[str, Any] = {
        "hidden_size": state["item_embedding.weight"].shape[1],
        "n_pre_layers": _layers(state, "pre"),
        "n_core_layers": _layers(state, "core"),
        "adapter_type": "add" if not adapter else "linear" if adapter[0].numel() == 1 else "concat",
    }
    if family != "fmlp":  # FMLP-Rec always uses 4 d and ignores the setting
        settings["inner_size"] = next(v.shape[0] for n, v in state.items() if n.endswith("feed_forward.dense_1.weight"))
    if family == "tedrec":
        settings["n_exps"] = state["moe_adaptor.w_gate"].shape[1]
    return settings


def _layers(state: Mapping[str, Tensor], stack: str) -> int:
    return len({name.split(".")[2] for name in state if name.startswith(f"{stack}_encoder.")})


# ---------------------------------------------------------------- release to BackboneConfig


def backbone_config(settings: Mapping[str, Any], family: Family) -> BackboneConfig:
    """Build the architecture that the release's settings describe.

    Args:
        settings: the release's settings, complete.
        family: block family of the model.

    Raises:
        LaresError: for a setting that this package does not support.
    """
    if settings["hidden_act"] != "gelu":
        raise LaresError(f"reference setting hidden_act={settings['hidden_act']!r}: only gelu is supported")
    block = partial(_BLOCKS[family], **_block_arguments(settings, family))
    initial = _choice(_INITIAL_STATES, settings, "state_init_method")
    spread = {} if initial is ZeroState else {"std": settings["state_std"], "scale": settings["state_scale"]}
    is_cosine = _choice({"dot": False, "cos": True}, settings, "sem_func")
    return BackboneConfig(
        hidden_size=settings["hidden_size"],
        embedder=(
            TedRecEmbedder(settings["n_exps"], settings["adaptor_dropout_prob"]) if family == "tedrec" else ItemEmbedder()
        ),
        pre_block=block,
        pre_layers=settings["n_pre_layers"],
        core_block=block,
        core_layers=settings["n_core_layers"],
        dropout=settings["hidden_dropout_prob"],
        injection=_choice(_INJECTIONS, settings, "adapter_type")(),
        initial_state=initial(**spread),
        depth=_depth(settings),
        similarity=CosineSimilarity(settings["tau"]) if is_cosine else DotSimilarity(),
        # the release's per-step log-probabilities use dot products (TedRec: cosines), independently of sem_func
        policy_similarity=CosineSimilarity(1.0) if family == "tedrec" else DotSimilarity(),
        repeat_bias=False,
        initializer_range=settings["initializer_range"],
        layer_norm_eps=settings["layer_norm_eps"],
    )


def _block_arguments(settings: Mapping[str, Any], family: Family) -> dict[str, Any]:
    arguments = {"dropout": settings["hidden_dropout_prob"], "layer_norm_eps": settings["layer_norm_eps"]}
    if family == "fmlp":
        return arguments
    attention = {"heads": settings["n_heads"], "inner_size": settings["inner_size"]}
    arguments |= {**attention, "attention_dropout": settings["attn_dropout_prob"]}
    if family == "bsarec":
        arguments |= {"frequency_share": settings["a"], "cutoff": settings["c"]}
    return arguments


def _choice(known: Mapping[str, Any], settings: Mapping[str, Any], key: str) -> Any:
    """Look up the value of a setting; dashes and underscores are equivalent."""
    named = {name.replace("-", "_"): value for name, value in known.items()}
    name = str(settings[key]).replace("-", "_")
    if name not in named:
        raise LaresError(f"reference setting {key}={settings[key]!r} is unknown; expected one of {', '.join(known)}")
    return named[name]


def _depth(settings: Mapping[str, Any]) -> DepthSchedule:
    mean, scheme = settings["mean_recurrence"], settings["sampling_scheme"]
    if scheme in ("constant", "none"):
        return ConstantDepth(mean if scheme == "constant" else 1)
    schedule: DepthSchedule = _choice(_DEPTHS, settings, "sampling_scheme")(mean=mean)
    return schedule


# ---------------------------------------------------------------- BackboneConfig to release


def reference_settings(config: BackboneConfig) -> tuple[dict[str, Any], Family]:
    """Convert an architecture to the release's settings and block family.

    Raises:
        LaresError: if the release cannot express the architecture; names the options it lacks.
    """
    pre, core = class_of(config.pre_block), class_of(config.core_block)
    is_tedrec = isinstance(config.embedder, TedRecEmbedder)
    family = next((f for f, block in _BLOCKS.items() if block is core and (f == "tedrec") == is_tedrec), None)
    if family is None or to_plain(config.pre_block) != to_plain(config.core_block):
        raise LaresError(
            f"the release has no model with pre-block {pre.__name__}, core-block {core.__name__} and "
            f"{type(config.embedder).__name__}: pre-block and core-block must be the same block with the same options "
            f"({', '.join(sorted({block.__name__ for block in _BLOCKS.values()}))})"
        )
    options = _options(config, config.core_block)
    is_cosine = isinstance(config.similarity, CosineSimilarity)
    initial = config.initial_state
    settings = {
        "hidden_size": config.hidden_size,
        "n_pre_layers": config.pre_layers,
        "n_core_layers": config.core_layers,
        "hidden_act": "gelu",
        "hidden_dropout_prob": options["dropout"],
        "layer_norm_eps": config.layer_norm_eps,
        "initializer_range": config.initializer_range,
        "adapter_type": _name_of(_INJECTIONS, type(config.injection)),
        "state_init_method": _name_of(_INITIAL_STATES, type(initial)),
        "state_std": initial.std if isinstance(initial, NormalState) else 1.0,
        "state_scale": initial.scale if isinstance(initial, NormalState) else 3.0,
        "mean_recurrence": config.depth.evaluation_depth,
        "sampling_scheme": _name_of({"constant": ConstantDepth, **_DEPTHS}, type(config.depth)),
        "sem_func": "cos" if is_cosine else "dot",
        "tau": config.similarity.tau,
    }
    if family != "fmlp":
        settings["n_heads"] = options["heads"]
        settings["inner_size"] = options["inner_size"]
        settings["attn_dropout_prob"] = options["attention_dropout"]
    if family == "bsarec":
        settings["a"] = options["frequency_share"]
        settings["c"] = options["cutoff"]
    if isinstance(config.embedder, TedRecEmbedder):
        settings["n_exps"] = config.embedder.experts
        settings["adaptor_dropout_prob"] = config.embedder.expert_dropout
    if lost := _differences(config, backbone_config(settings, family)):
        raise LaresError(f"the release can't express {', '.join(lost)}")
    return settings, family


def _differences(config: BackboneConfig, restored: BackboneConfig) -> list[str]:
    """Options, as `key=value`, of an architecture that are lost in the conversion to the release's settings and back."""
    ours, theirs = _flat(config), _flat(restored)
    return [f"{key}={value}" for key, value in ours.items() if theirs.get(key) != value]


def _flat(config: BackboneConfig) -> dict[str, Any]:
    """All options that the release has to express, flattened, with defaults filled in."""
    flat: dict[str, Any] = {}
    for name, value in to_plain(config).items():
        if name == "policy_similarity":  # used by RPT only; fixed in the release
            continue
        flat[name] = value["class_path"] if isinstance(value, dict) else value
        options = dict(value["init_args"]) if isinstance(value, dict) else {}
        if name.endswith("_block"):
            options = _options(config, getattr(config, name))
        flat |= {f"{name}.{key}": option for key, option in options.items()}
    return flat


def _options(config: BackboneConfig, block: BlockFactory) -> dict[str, Any]:
    """All options of a block, with the defaults that the backbone and the block would fill in."""
    kind = class_of(block)
    options = {key: option.default for key, option in signature(kind).parameters.items() if key != "hidden_size"}
    options |= to_plain(block)["init_args"]
    options.pop("max_length", None)
    options["dropout"] = _or(options["dropout"], config.dropout)
    if "attention_dropout" in options:
        options["attention_dropout"] = _or(options["attention_dropout"], options["dropout"])
    if kind is FMLPBlock:
        options["inner_size"] = _or(options["inner_size"], 4 * config.hidden_size)
    return options


def _or(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value


def _name_of(names: Mapping[str, type], kind: type) -> str:
    for name, known in names.items():
        if known is kind:
            return name
    raise LaresError(f"the release has no {kind.__name__}; it has {', '.join(each.__name__ for each in names.values())}")


_BLOCKS: dict[Family, type] = {
    "transformer": TransformerBlock,
    "fmlp": FMLPBlock,
    "bsarec": BSARecBlock,
    "tedrec": TransformerBlock,
}
