"""A gradient that is not finite never reaches the weights, whether or not the host waits for the device."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from lares_pl import LaresError
from lares_pl.stages.distributed import clip
from lares_pl.stages.gradient_check import GradientCheck, Update
from lares_pl.stages.optimizers import fused
from tests.training import FAST, SMALL, Poisoned, data, trainer


def update(number: int) -> Update:
    return Update(number, 0, {}, torch.empty(0))


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("factory", [partial(Adam, lr=0.1), partial(AdamW, lr=0.1), partial(SGD, lr=0.1, momentum=0.9)])
def test_weights_and_state_are_those_without_the_update(factory: Any, waits: bool) -> None:
    results = []
    for gradients in ([1.0, torch.nan, 2.0, torch.inf], [1.0, 2.0]):
        weight = torch.nn.Parameter(torch.ones(3))
        optimizer = fused(factory)([weight])
        check = GradientCheck(waits)
        found = []
        for number, value in enumerate(gradients, start=1):
            weight.grad = torch.tensor([1.0, value, 3.0])
            found.append(check.check([weight], optimizer, update(number)))
            optimizer.step()
        found.append(check.last())
        named = [failed.number for failed in found if failed is not None]
        assert named == ([2, 4] if len(gradients) == 4 else [])
        results.append(weight.detach())
    assert torch.equal(*results)


def test_an_optimizer_that_can_not_skip_waits() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = fused(RMSprop)([weight])
    weight.grad = torch.tensor([1.0, torch.nan])
    failed = GradientCheck(waits=False).check([weight], optimizer, update(7))
    assert failed is not None
    assert failed.number == 7
    optimizer.step()
    assert torch.equal(weight, torch.ones(2))


class NeverWaiting(Poisoned):
    """Its host never waits, as on a card."""

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self._gradients = GradientCheck(waits=False)


@pytest.mark.parametrize("updates", [3, 5])  # the last of training; one in the middle
def test_a_stage_names_the_update_after_the_fact(updates: int, toy_dataset: Path, tmp_path: Path) -> None:
    model = NeverWaiting(SMALL, optimizer=FAST)
    with pytest.raises(LaresError, match=r"gradient of update 3 \(epoch 0\) is not finite.*training instances \d+, \d+"):
        trainer(tmp_path, max_steps=updates).fit(model, data(toy_dataset, batch_size=32))
    assert all(bool(value.isfinite().all()) for value in model.backbone.state_dict().values())
    model = NeverWaiting(SMALL, optimizer=FAST, on_nonfinite="skip")
    trainer(tmp_path, max_steps=updates).fit(model, data(toy_dataset, batch_size=32))
    assert model.skipped_updates == 1


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_clipping_and_skipping_go_together_with_a_fused_optimizer(precision: Any, toy_dataset: Path, tmp_path: Path) -> None:
    model = Poisoned(SMALL, optimizer=FAST, on_nonfinite="skip")
    fit = trainer(tmp_path, max_steps=4, precision=precision, gradient_clip_val=0.1)
    fit.fit(model, data(toy_dataset, batch_size=32))
    assert model.skipped_updates == 1
    assert fit.optimizers[0].param_groups[0]["fused"] is True


@pytest.mark.parametrize("by_norm", [True, False])
@pytest.mark.parametrize("most", [0.1, 100.0])
def test_gradients_are_clipped_as_torch_does_it(most: float, by_norm: bool) -> None:
    sides = []
    for own in (True, False):
        torch.manual_seed(2)
        parameters = [torch.nn.Parameter(torch.zeros(size)) for size in (3, 5)]
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        if own:
            clip(parameters, most, by_norm)
        elif by_norm:
            torch.nn.utils.clip_grad_norm_(parameters, most)
        else:
            torch.nn.utils.clip_grad_value_(parameters, most)
        sides.append(torch.cat([parameter.grad for parameter in parameters if parameter.grad is not None]))
    assert torch.equal(*sides)


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        (Adam, True),
        (partial(Adam, lr=0.1), True),
        (partial(SGD, lr=0.1), True),
        (partial(Adam, fused=False), False),
        (partial(Adam, foreach=True), None),
        (partial(Adam, capturable=True), None),
        (RMSprop, None),
    ],
)
def test_optimizers_are_fused_unless_told_otherwise(factory: Any, expected: bool | None) -> None:
    optimizer: Optimizer = fused(factory)([torch.nn.Parameter(torch.zeros(1))])
    assert optimizer.param_groups[0].get("fused") is expected
