"""Arguments of another type are refused by name where they are given, not by an error of Python somewhere below."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lares_pl import (
    RPT,
    SPT,
    BackboneConfig,
    LaresError,
    LastK,
    NDCGReward,
    PoissonLogNormal,
    Reasoning,
    Recall,
    RecurrentBackbone,
    ResidualStop,
    UniformDepth,
)

CONFIG = BackboneConfig()


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (BackboneConfig, {"hidden_size": "64"}, r"^BackboneConfig: hidden_size must be a whole number; got '64'"),
        (BackboneConfig, {"hidden_size": True}, r"hidden_size must be a whole number; got True"),
        (BackboneConfig, {"dropout": "0.5"}, r"dropout must be a number; got '0.5'"),
        (BackboneConfig, {"repeat_bias": "no"}, r"repeat_bias must be True or False; got 'no'"),
        (BackboneConfig, {"policy_similarity": "dot"}, r"a Similarity of lares_pl, such as DotSimilarity\(\), got 'dot'"),
        (BackboneConfig, {"core_block": "x"}, r"core_block must be a class of blocks or functools.partial.*; got 'x'"),
        (UniformDepth, {"mean": 2.5}, r"UniformDepth: mean must be a whole number; got 2.5"),
        (PoissonLogNormal, {"sigma": None}, r"PoissonLogNormal: sigma must be a number; got None"),
        (ResidualStop, {"threshold": "0.1"}, r"ResidualStop: threshold must be a number; got '0.1'"),
        (Reasoning, {"depth": 4, "trajectories": "2"}, r"Reasoning: trajectories must be a whole number; got '2'"),
        (NDCGReward, {"k": "10"}, r"NDCGReward: k must be a whole number; got '10'"),
        (LastK, {"k": "3"}, r"LastK: k must be a whole number; got '3'"),
        (Recall, {"cutoffs": 10}, r"Recall: cutoffs must be a list of different numbers from 1 on, got 10"),
        (Recall, {"cutoffs": ["10"]}, r"Recall: cutoffs must be different numbers from 1 on; got '10'"),
        (SPT, {"alpha": "1"}, r"SPT: alpha must be a number; got '1'"),
        (SPT, {"ema": None}, r"SPT: ema must be a number; got None"),
        (SPT, {"supervision": None}, r"supervision must be a Supervision of lares_pl, such as LastStep\(\), got None"),
        (SPT, {"backbone": None}, r"backbone must be a BackboneConfig of lares_pl, such as BackboneConfig\(\), got None"),
        (SPT, {"alignment": None}, r"alignment must be an Alignment of lares_pl, such as Alignment\(\), got None"),
        (SPT, {"optimizer": None}, r"optimizer must be a class or functools.partial\(Class, key=value\); got None"),
        (SPT, {"metrics": Recall()}, r"metrics must be a list of metrics, such as \[Recall\(\), NDCG\(\)\]; got Recall"),
        (RPT, {"backbone": CONFIG, "group_size": "4"}, r"RPT: group_size must be a whole number; got '4'"),
        (RPT, {"backbone": CONFIG, "dropout": "0.1"}, r"RPT: dropout must be a number; got '0.1'"),
        (RecurrentBackbone, {"items": 0, "max_length": 5}, r"^items must be a whole number, at least 1; got 0"),
        (RecurrentBackbone, {"items": 5, "max_length": "5"}, r"max_length must be a whole number, at least 1; got '5'"),
        (RecurrentBackbone, {"items": 5, "max_length": 5, "config": {}}, r"config must be a BackboneConfig of lares_pl"),
    ],
)
def test_an_argument_of_another_type_is_named(kind: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(LaresError, match=message):
        kind(**given)


@pytest.mark.parametrize("depth", ["8", 2.5, None])
def test_a_depth_of_evaluation_that_is_no_whole_number_is_named(depth: Any) -> None:
    stage = SPT()
    stage.evaluation_depth = depth
    with pytest.raises(LaresError, match=f"evaluation_depth must be a whole number; got {depth!r}"):
        stage.reasoning  # noqa: B018


def test_numbers_of_numpy_are_numbers() -> None:
    eight: Any = np.int64(8)
    config = BackboneConfig(hidden_size=eight, dropout=float(np.float32(0.5)), core_layers=1)
    assert RecurrentBackbone(eight, 5, config).item_vectors.shape == (9, 8)
