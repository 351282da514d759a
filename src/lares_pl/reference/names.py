"""Parameter names of the authors' release and ours, in both directions.

A rule pairs two name templates. `{stack}` is pre or core, `{i}` a layer, `{k}` an expert, `{w}` weight or bias.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from lares_pl.errors import LaresError

Family = Literal["transformer", "fmlp", "bsarec", "tedrec"]

_HOLES = {"stack": "pre|core", "i": r"\d+", "k": r"\d+", "w": "weight|bias"}


@dataclass(frozen=True)
class Rule:
    """One parameter under both names.

    Args:
        theirs: template of its name in the release.
        ours: template of its name here.
        leading: number of leading dimensions of size 1 in the release.
        part: which third of our tensor it is, if ours has query, key and value in one.
    """

    theirs: str
    ours: str
    leading: int = 0
    part: int | None = None


_COMMON = [
    Rule("item_embedding.weight", "embedding.item.weight"),
    Rule("position_embedding.weight", "embedding.position.weight"),
    Rule("layernorm_1.{w}", "embedding.norm.{w}"),
    Rule("layernorm_2.{w}", "core_norm.{w}"),
    Rule("adapter.{w}", "injection.linear.{w}"),
    Rule("adapter", "injection.gate"),
]


def _attention(theirs: str) -> list[Rule]:
    ours = "{stack}_blocks.{i}.attention"
    return [
        *(
            Rule(f"{theirs}.{p}.{{w}}", f"{ours}.query_key_value.{{w}}", part=n)
            for n, p in enumerate(("query", "key", "value"))
        ),
        Rule(theirs + ".dense.{w}", ours + ".output.{w}"),
        Rule(theirs + ".LayerNorm.{w}", ours + ".norm.{w}"),
    ]


def _feed_forward(theirs: str) -> list[Rule]:
    parts = {"dense_1": "inner", "dense_2": "outer", "LayerNorm": "norm"}
    return [Rule(f"{theirs}.{p}.{{w}}", f"{{stack}}_blocks.{{i}}.feed_forward.{q}.{{w}}") for p, q in parts.items()]


_LAYER, _BLOCK = "{stack}_encoder.layer.{i}", "{stack}_encoder.blocks.{i}"
_TRANSFORMER = _attention(f"{_LAYER}.multi_head_attention") + _feed_forward(f"{_LAYER}.feed_forward")
_FAMILIES: dict[Family, list[Rule]] = {
    "transformer": _COMMON + _TRANSFORMER,
    "fmlp": [
        *_COMMON,
        Rule(_LAYER + ".filterlayer.complex_weight", "{stack}_blocks.{i}.filter.weight", leading=1),
        Rule(_LAYER + ".filterlayer.LayerNorm.{w}", "{stack}_blocks.{i}.norm.{w}"),
        *_feed_forward(f"{_LAYER}.intermediate"),
    ],
    "bsarec": [
        *_COMMON,
        Rule(_BLOCK + ".layer.filter_layer.sqrt_beta", "{stack}_blocks.{i}.frequency.beta", leading=2),
        Rule(_BLOCK + ".layer.filter_layer.LayerNorm.{w}", "{stack}_blocks.{i}.frequency.norm.{w}"),
        *_attention(f"{_BLOCK}.layer.attention_layer"),
        *_feed_forward(f"{_BLOCK}.feed_forward"),
    ],
    "tedrec": [
        *_COMMON,
        *_TRANSFORMER,
        Rule("plm_embedding.weight", "embedding.text.vectors"),
        Rule("complex_weight", "embedding.item_filter.weight", leading=1),
        Rule("item_gating.{w}", "embedding.item_gate.{w}"),
        Rule("fusion_gating.{w}", "embedding.fusion_gate.{w}"),
        Rule("moe_adaptor.w_gate", "embedding.mixture.gate"),
        Rule("moe_adaptor.w_noise", "embedding.mixture.gate_noise"),
        Rule("moe_adaptor.experts.{k}.bias", "embedding.mixture.experts.{k}.bias", leading=1),
        Rule("moe_adaptor.experts.{k}.lin.weight", "embedding.mixture.experts.{k}.linear.weight"),
    ],
}


def family_of(state: Mapping[str, Tensor]) -> Family:
    """Determine the block family of a reference state dict.

    Raises:
        LaresError: if it is none of the four.
    """
    marks: dict[str, Family] = {  # the first that occurs in a name decides
        "plm_embedding.": "tedrec",
        ".filter_layer.": "bsarec",
        ".filterlayer.": "fmlp",
        ".multi_head_attention.": "transformer",
    }
    for mark, family in marks.items():
        if any(mark in f".{name}" for name in state):
            return family
    raise LaresError(
        "no parameters of a LARES model of the release in it (transformer, FMLP-Rec, BSARec or TedRec); "
        f"it has {', '.join(list(state)[:5]) or 'none at all'}"
    )


@cache
def _pattern(template: str) -> re.Pattern[str]:
    pattern = re.escape(template)
    for hole, allowed in _HOLES.items():
        pattern = pattern.replace(re.escape("{" + hole + "}"), f"(?P<{hole}>{allowed})")
    return re.compile(pattern)


def _matches(name: str, template: str, into: str) -> str | None:
    """`name` as `into` says it, if it fits `template`."""
    found = _pattern(template).fullmatch(name)
    return into.format(**found.groupdict()) if found else None


def from_reference(state: Mapping[str, Tensor], family: Family) -> tuple[dict[str, Tensor], list[str]]:
    """Convert a state dict of the release (or gradients under the same names) to one of `RecurrentBackbone`.

    Args:
        state: the release's state dict.
        family: its block family.

    Returns:
        Our state dict, and the names that have no counterpart here.
    """
    ours: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    unknown: list[str] = []
    for name, value in state.items():
        if name.startswith("adapter") and value.numel() == 1:  # a scalar, whatever the release wraps it in
            ours["injection.gate"] = value.reshape(())
            continue
        for rule in _FAMILIES[family]:
            target = _matches(name, rule.theirs, rule.ours)
            if target is None:
                continue
            value = value.reshape(value.shape[rule.leading :])
            if rule.part is None:
                ours[target] = value
            else:
                parts.setdefault(target, {})[rule.part] = value
            break
        else:
            unknown.append(name)
    for target, thirds in parts.items():
        ours[target] = torch.cat([thirds[n] for n in sorted(thirds)])
    return ours, unknown


def to_reference(state: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    """The inverse of `from_reference`.

    Args:
        state: state dict of a `RecurrentBackbone`.
        family: the release's family to write it as.

    Raises:
        LaresError: if a parameter has no counterpart in the release.
    """
    theirs: dict[str, Tensor] = {}
    for name, value in state.items():
        found = list(_counterparts(name, value, family))
        if not found:
            raise LaresError(f"parameter {name!r} has no counterpart in the release's {family} family")
        theirs.update(found)
    return theirs


def _counterparts(name: str, value: Tensor, family: Family) -> Iterator[tuple[str, Tensor]]:
    for rule in _FAMILIES[family]:
        target = _matches(name, rule.ours, rule.theirs)
        if target is not None:
            mine = value if rule.part is None else value.chunk(3)[rule.part]
            yield target, mine.reshape((1,) * rule.leading + tuple(mine.shape)).clone()
