"""How many kernels an update launches on a card, counted without one; a bound that more than today's number would break.

Four steps, forward and backward. Before this was bounded they were 709, 1,045, 903, 1,097 and 1,116.
With compiled steps a call of a step, and its gradient, is one launch each.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lares_pl import RPT, SPT, BackboneConfig, ConstantDepth, SequenceDataModule
from lares_pl.model.backbone import RecurrentBackbone
from lares_pl.model.layout import Layout
from lares_pl.stages.averaging import update_average
from lares_pl.stages.base import BaseStage
from lares_pl.stages.gradient_check import GradientCheck, Update
from lares_pl.stages.optimizers import fused
from tests.released import released_backbone
from tests.stages.operations import LaunchCounter, fused_kernels, one_kernel
from tests.stages.test_no_waiting import batch_for, on_meta
from tests.training import released_rpt, released_spt

FOUR_STEPS = BackboneConfig(depth=ConstantDepth(4))
RELEASED = released_backbone(depth=ConstantDepth(4))
#: the stage, its instances, and what forward and backward may launch: with steps as they are, and compiled
UPDATES: dict[str, tuple[Callable[[], BaseStage], str, int, int]] = {
    "recipe": (lambda: SPT(FOUR_STEPS), "sequence", 524, 223),
    "recipe, alignment": (lambda: SPT(FOUR_STEPS, alpha=0.1, gamma=0.1), "sequence", 818, 410),
    "released": (lambda: released_spt(RELEASED), "prefix", 784, 379),
    "recipe, RPT": (lambda: RPT(backbone=FOUR_STEPS), "sequence", 844, 552),
    "released RPT": (lambda: released_rpt(backbone=RELEASED), "prefix", 1027, 622),
}


class Calls:
    """Stands for the compiled steps of a backbone, which read all parameters of the core."""

    def __init__(self, backbone: RecurrentBackbone) -> None:
        parts = (backbone.core_norm, backbone.injection, backbone.core_blocks)
        self.parameters = [parameter for part in parts for parameter in part.parameters()]

    def step(self, state: Tensor, context: Tensor, layout: Layout) -> Tensor:
        return one_kernel(state, context, *self.parameters)

    def last_step(self, state: Tensor, context: Tensor, layout: Layout) -> Tensor:
        return self.step(state, context, layout)[:, 0]


@pytest.mark.parametrize("compiled", [False, True], ids=["", "compiled"])
@pytest.mark.parametrize("name", UPDATES)
def test_an_update_launches_few_kernels(name: str, compiled: bool, toy_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, instances, *bounds = UPDATES[name]
    stage, most = make(), bounds[compiled]
    items = SequenceDataModule(str(toy_dataset)).sequences.catalogue_size
    on_meta(stage, items, stage.backbone_config)
    if compiled:
        stage.backbone._compiled = Calls(stage.backbone)  # type: ignore[assignment]
    monkeypatch.setattr(stage, "log_training", lambda values, batch: None)
    batch = batch_for(stage, toy_dataset, instances).to("meta")
    with fused_kernels(), LaunchCounter() as counter:
        stage.training_step(batch).backward()
    assert 0.95 * most < counter.total <= most, counter.launches.most_common(12)


def test_what_follows_the_gradient_launches_a_few_more() -> None:
    """Check of the gradient, Adam and the average, for all parameters at once."""
    trained, average = (torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(6))) for _ in range(2))
    parameters = list(trained.parameters())
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer = fused(torch.optim.Adam)(parameters)
    check, update = GradientCheck(waits=False), Update(1, 0, {}, torch.empty(0))
    optimizer.step()  # makes its state
    with LaunchCounter("cpu") as counter:
        check.check(parameters, optimizer, update)
        optimizer.step()
        update_average(average, trained, 0.99, 10)
    assert counter.launches["_fused_adam_"] == 1
    assert counter.total <= 25, counter.launches.most_common(12)
