"""The defaults of the stages agree with their configs, and the paper's configs with the released run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lares_pl.cli.options import flat
from tests.cli.test_shipped_configs import resolved

DELIBERATE = {
    "data.dataset",  # the config names a folder; in Python there is none to assume
    "data.max_length",  # None means 20, or the checkpoint's
}
SASREC = {  # what makes the baseline, and the options that its choices don't have; all else is as in spt.yaml
    "model.backbone.pre_layers": 2,
    "model.backbone.core_layers": 0,
    "model.backbone.pre_block": "TransformerBlock",
    "model.backbone.pre_block.width": None,
    "model.backbone.depth": "ConstantDepth",
    "model.backbone.depth.depth": 0,
    "model.backbone.depth.mean": None,
    "model.backbone.repeat_bias": False,
}
PAPER = {  # docs/method.md, "Released run" for Musical Instruments
    "model.alpha": 0.1,
    "model.gamma": 0.5,
    "model.alignment.cosine": False,
    "model.alignment.tau": 1.0,
    "model.alignment.mask_same_target": False,
    "model.loss": "FullSoftmax",
    "model.ema": 0.0,
    "model.exclude_seen": False,
    "model.backbone.hidden_size": 64,
    "model.backbone.embedder": "ItemEmbedder",
    "model.backbone.embedder.positions": True,
    "model.backbone.pre_layers": 2,
    "model.backbone.pre_block": "TransformerBlock",
    "model.backbone.pre_block.heads": 2,
    "model.backbone.pre_block.inner_size": 256,
    "model.backbone.pre_block.dropout": None,  # the backbone's
    "model.backbone.pre_block.attention_dropout": None,
    "model.backbone.core_layers": 2,
    "model.backbone.core_block": "TransformerBlock",
    "model.backbone.core_block.heads": 2,
    "model.backbone.core_block.inner_size": 256,
    "model.backbone.core_block.dropout": None,
    "model.backbone.core_block.attention_dropout": None,
    "model.backbone.dropout": 0.5,
    "model.backbone.injection": "AddInjection",
    "model.backbone.initial_state": "NormalState",
    "model.backbone.initial_state.std": 1.0,
    "model.backbone.initial_state.scale": 3.0,
    "model.backbone.depth": "PoissonLogNormal",
    "model.backbone.depth.mean": 4,
    "model.backbone.depth.sigma": 0.5,
    "model.backbone.similarity": "DotSimilarity",
    "model.backbone.policy_similarity": None,  # as in ranking
    "model.backbone.repeat_bias": False,
    "model.backbone.initializer_range": 0.02,
    "model.backbone.layer_norm_eps": 1e-12,
    "model.optimizer": "Adam",
    "model.optimizer.lr": 1e-3,
    "model.optimizer.weight_decay": 0.0,
    "model.scheduler": None,
    "data.max_length": 20,
    "data.instances": "prefix",
    "data.batch_size": 1024,
}
PAPER_RPT = {
    "model.group_size": 4,
    "model.reward": "RecallReward",
    "model.reward.k": 10,
    "model.advantage": "GroupAdvantage",
    "model.actions": "WholeCatalogue",
    "model.beta": 1.0,
    "model.anchor": 0.0,
    "model.dropout": 0.1,
    "model.pruning.passes": 3,
    "model.pruning.top": 100,
    "model.ema": 0.0,
    "model.exclude_seen": False,
    "model.optimizer": "Adam",
    "model.optimizer.lr": 5e-4,
    "model.optimizer.weight_decay": 0.0,
    "model.scheduler": None,
    "data.instances": "prefix",
    "data.batch_size": 400,
}


def values(config: dict[str, Any]) -> dict[str, Any]:
    """Model and data by whole key; the value of a chosen class is its name, its options have keys of their own."""
    found = {}
    for key, value in flat({"model": config["model"], "data": config["data"]}).items():
        if not isinstance(value, dict):
            found[key] = value
        elif "class_path" in value:
            found[key] = value["class_path"].rsplit(".", 1)[-1]
    return found


def of_config(folder: Path, *names: str) -> dict[str, Any]:
    """The values that configs give together."""
    return values(resolved(folder, *(word for name in names for word in ("--config", name))))


def of_python(folder: Path, stage: str) -> dict[str, Any]:
    """The values that the constructors default to."""
    return values(resolved(folder, "--model", f"lares_pl.{stage}"))


def changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The keys whose value changes; None for keys that are gone."""
    return {key: after.get(key) for key in before | after if before.get(key, ...) != after.get(key, ...)}


@pytest.mark.parametrize(
    ("name", "stage", "changed"), [("spt.yaml", "SPT", {}), ("rpt.yaml", "RPT", {}), ("sasrec.yaml", "SPT", SASREC)]
)
def test_configs_agree_with_the_defaults_of_the_constructors(
    name: str, stage: str, changed: dict[str, Any], tmp_path: Path
) -> None:
    found = changes(of_python(tmp_path, stage), of_config(tmp_path, name))
    assert {key: value for key, value in found.items() if key not in DELIBERATE} == changed


@pytest.mark.parametrize(
    ("recipe", "overlay", "released"), [("spt.yaml", "paper.yaml", PAPER), ("rpt.yaml", "paper-rpt.yaml", PAPER_RPT)]
)
def test_the_papers_configs_give_the_released_run(recipe: str, overlay: str, released: dict[str, Any], tmp_path: Path) -> None:
    found = of_config(tmp_path, recipe, overlay)
    assert {key: found[key] for key in released} == released
    changed = changes(of_config(tmp_path, recipe), found)
    assert {key for key in changed if key in found} <= released.keys()  # nothing else is changed


@pytest.mark.parametrize(("stage", "overlay"), [("spt.yaml", "paper.yaml"), ("rpt.yaml", "paper-rpt.yaml")])
def test_the_released_run_is_selected_by_validation_ndcg(stage: str, overlay: str, tmp_path: Path) -> None:
    callbacks = resolved(tmp_path, "--config", stage, "--config", overlay)["callbacks"]
    stopping, best = (callbacks[name]["init_args"] for name in ("early_stopping", "best_checkpoint"))
    assert stopping["monitor"] == best["monitor"] == "val/ndcg@10"
    assert stopping["patience"] == 10
