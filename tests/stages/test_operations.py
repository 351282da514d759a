"""How many kernels an update launches on a card, counted without one; a bound that more than today's number would break.

Four steps, forward and backward. Before this was bounded they were 709, 1,045, 903, 1,097 and 1,116.
On a card all of them are one CUDA graph, which is launched once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lares_pl import RPT, SPT, BackboneConfig, ConstantDepth, SequenceDataModule
from lares_pl.stages.averaging import Average
from lares_pl.stages.base import BaseStage
from lares_pl.stages.gradient_check import GradientCheck, Update
from lares_pl.stages.optimizers import fused
from tests.released import released_backbone
from tests.stages.operations import fused_kernels
from tests.stages.test_no_waiting import batch_for, on_meta
from tests.training import released_rpt, released_spt
from traffic import Traffic

FOUR_STEPS = BackboneConfig(depth=ConstantDepth(4))
RELEASED = released_backbone(depth=ConstantDepth(4))
#: the stage, its instances, and what forward and backward may launch
UPDATES: dict[str, tuple[Callable[[], BaseStage], str, int]] = {
    "recipe": (lambda: SPT(FOUR_STEPS), "sequence", 495),
    "recipe, alignment": (lambda: SPT(FOUR_STEPS, alpha=0.1, gamma=0.1), "sequence", 795),
    "released": (lambda: released_spt(RELEASED), "prefix", 748),
    "recipe, RPT": (lambda: RPT(backbone=FOUR_STEPS), "sequence", 852),
    "released RPT": (lambda: released_rpt(backbone=RELEASED), "prefix", 995),
}


@pytest.mark.parametrize("name", UPDATES)
def test_an_update_launches_few_kernels(name: str, toy_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, instances, most = UPDATES[name]
    stage = make()
    items = SequenceDataModule(str(toy_dataset)).sequences.catalogue_size
    on_meta(stage, items, stage.backbone_config)
    monkeypatch.setattr(stage, "log_training", lambda values, batch: None)
    batch = batch_for(stage, toy_dataset, instances).to("meta")
    with fused_kernels(), Traffic() as counter:
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
    with Traffic("cpu") as counter:
        check.check(parameters, optimizer, update)
        optimizer.step()
        Average(average, trained, 0.99).update(10)
    assert counter.launches["_fused_adam_"] == 1
    assert counter.total <= 25, counter.launches.most_common(12)
