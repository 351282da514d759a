"""Checkpoints of the authors' release: what is mapped, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lares_pl import BackboneConfig, LaresError, RecurrentBackbone, reference
from lares_pl.config import from_plain

CONFIG: dict[str, Any] = {
    "adapter_type": "linear",
    "attn_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.5,
    "hidden_size": 8,
    "initializer_range": 0.02,
    "inner_size": 16,
    "layer_norm_eps": 1e-12,
    "mean_recurrence": 3,
    "n_core_layers": 1,
    "n_heads": 2,
    "n_pre_layers": 1,
    "sampling_scheme": "uniform",
    "sem_func": "dot",
    "state_init_method": "normal_zero",
    "state_scale": 3.0,
    "state_std": 1.0,
    "tau": 1.0,
}
KEY = "pre_encoder.layer.0.multi_head_attention.query.weight"


def built(**changes: Any) -> BackboneConfig:
    plain = reference.backbone_config({**CONFIG, **changes}, {KEY: torch.zeros(8, 8)})
    config: BackboneConfig = from_plain(BackboneConfig, plain, "backbone")
    return config


@pytest.mark.parametrize("adapter", ["add", "concat", "linear"])
@pytest.mark.parametrize("initial", ["normal", "zero", "normal_zero"])
@pytest.mark.parametrize("scheme", ["poisson-lognormal", "poisson", "poisson_bounded", "uniform", "constant", "none"])
def test_every_setting_of_the_method_has_a_counterpart(adapter: str, initial: str, scheme: str) -> None:
    config = built(adapter_type=adapter, state_init_method=initial, sampling_scheme=scheme)
    RecurrentBackbone(5, 4, config)
    assert config.depth.evaluation_depth == (1 if scheme == "none" else 3)


def test_the_scalar_of_the_linear_injection_is_mapped() -> None:
    assert reference.from_reference({"adapter": torch.tensor([0.3])})["injection.gate"].shape == ()


def test_what_is_unknown_is_named() -> None:
    with pytest.raises(LaresError, match="adapter_type='gated'"):
        built(adapter_type="gated")
    with pytest.raises(LaresError, match="hidden_act='relu'"):
        built(hidden_act="relu")
    with pytest.raises(LaresError, match=r"parameter 'mystery.weight'"):
        reference.from_reference({"mystery.weight": torch.zeros(2, 2)})
    with pytest.raises(reference.UnknownFamilyError):
        reference.backbone_config(CONFIG, {"complex_weight": torch.zeros(1)})
