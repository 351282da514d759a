"""Updates that are recorded and replayed: what can be shown of them without a card, on which `tests/gpu` runs the rest.

A stand-in for a CUDA graph runs the recorded function again, on the tensors that it was recorded with.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from lares_pl import (
    RPT,
    SPT,
    BackboneConfig,
    BatchAdvantage,
    ConstantDepth,
    LastAndRandomStep,
    LogProbReward,
    SequenceDataModule,
    WholeCatalogue,
    ZeroState,
)
from lares_pl.data.loading.batches import Batch
from lares_pl.data.loading.fitting import BatchSizes
from lares_pl.model.backbone import RecurrentBackbone
from lares_pl.stages import base
from lares_pl.stages.base import BaseStage
from lares_pl.stages.randomness import BatchRandomness
from tests.released import released_backbone
from tests.stages.test_no_waiting import LENGTH, batches_for
from tests.training import released_spt, trainer

STAGES: dict[str, tuple[Callable[[float], BaseStage], str]] = {
    "recipe": (lambda p: SPT(BackboneConfig(dropout=p)), "sequence"),
    "recipe, prefix": (lambda p: SPT(BackboneConfig(dropout=p)), "prefix"),
    "recipe, alignment": (lambda p: SPT(BackboneConfig(dropout=p), alpha=0.1, gamma=0.1), "sequence"),
    "recipe, RPT": (lambda p: RPT(backbone=BackboneConfig(dropout=p), reward=LogProbReward()), "sequence"),
    "RPT, whole catalogue": (
        lambda p: RPT(backbone=BackboneConfig(dropout=p), reward=LogProbReward(), actions=WholeCatalogue()),
        "prefix",
    ),
    "released": (lambda p: released_spt(released_backbone(dropout=p, initial_state=ZeroState())), "prefix"),
}


class Rerun:
    """Stands for CUDA graphs."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, function: Callable[[], None], generators: Sequence[torch.Generator]) -> Callable[[], None]:
        function()
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            function()

        return replay


def built(make: Callable[[float], BaseStage], dropout: float, items: int) -> BaseStage:
    """A stage outside a trainer."""
    torch.manual_seed(0)
    stage = make(dropout)
    stage.backbone = RecurrentBackbone(items, LENGTH, stage.backbone_config).train()
    if isinstance(stage, RPT):
        stage.reference = RecurrentBackbone(items, LENGTH, stage.backbone_config).requires_grad_(False).eval()
    stage.randomness = BatchRandomness(1, 0, torch.device("cpu"))
    stage.log_training = lambda values, batch: None  # type: ignore[method-assign]
    return stage


def unrecorded(stage: BaseStage) -> BaseStage:
    stage.recorded = lambda batch, numbers, compute: compute(batch)  # type: ignore[method-assign]
    return stage


def loss_and_gradients(stage: BaseStage, batch: Batch, number: int) -> list[Tensor]:
    """Of one update."""
    stage.zero_grad()
    stage.randomness.begin(0, number)
    loss = stage.training_step(batch)
    (2 * loss).backward()
    return [loss.detach(), *(p.grad.clone() for p in stage.parameters() if p.grad is not None)]


def fitted(some: list[Batch]) -> list[Batch]:
    sizes = BatchSizes.of(some, LENGTH)
    return [sizes.fit(batch).in_one_buffer() for batch in some]


@pytest.mark.parametrize("name", STAGES)
def test_a_fitted_batch_has_the_same_loss(name: str, toy_dataset: Path) -> None:
    make, instances = STAGES[name]
    stage = unrecorded(built(make, 0.0, SequenceDataModule(str(toy_dataset)).sequences.catalogue_size))
    some = batches_for(stage, toy_dataset, instances)
    together = fitted(some)
    assert len({batch.shapes for batch in together}) == 1
    for number, (batch, other) in enumerate(zip(some, together, strict=True)):
        assert other.real == len(batch) == len(other) < len(other.targets)
        own, found = (loss_and_gradients(stage, x, number) for x in (batch, other))
        torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", STAGES)
def test_a_replayed_update_is_the_update(name: str, toy_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout, so that random draws are those that the update would have made."""
    rerun = Rerun()
    monkeypatch.setattr(base, "CudaGraphs", lambda: rerun)
    make, instances = STAGES[name]
    items = SequenceDataModule(str(toy_dataset)).sequences.catalogue_size
    recorded, plain = built(make, 0.3, items), unrecorded(built(make, 0.3, items))
    some = fitted(batches_for(plain, toy_dataset, instances))
    for number in range(12):
        values = [loss_and_gradients(stage, some[number % len(some)], number) for stage in (plain, recorded)]
        torch.testing.assert_close(values[1], values[0], rtol=1e-5, atol=1e-7)
    assert 1 < rerun.recorded <= rerun.replayed == 12


def test_what_draws_on_the_host_is_not_recorded(toy_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be a constant of the graph; nothing is drawn twice for having been tried."""
    rerun = Rerun()
    monkeypatch.setattr(base, "CudaGraphs", lambda: rerun)
    items = SequenceDataModule(str(toy_dataset)).sequences.catalogue_size
    stages = [built(lambda p: SPT(BackboneConfig(dropout=p), supervision=LastAndRandomStep()), 0.3, items) for _ in range(2)]
    recorded, plain = stages[0], unrecorded(stages[1])
    some = fitted(batches_for(plain, toy_dataset, "sequence"))
    with warnings.catch_warnings(record=True) as caught:
        for number in range(6):
            values = [loss_and_gradients(stage, some[number % len(some)], number) for stage in (plain, recorded)]
            torch.testing.assert_close(values[1], values[0])
    (warning,) = caught
    assert "cuda_graphs" in str(warning.message)
    assert "draws random numbers on the host" in str(warning.message)
    assert rerun.recorded == 0


def test_a_batch_that_does_not_fit_stays_as_it_is(toy_dataset: Path) -> None:
    stage = built(lambda p: SPT(), 0.0, 40)
    some = batches_for(stage, toy_dataset, "sequence")
    few = BatchSizes.of(some[:1], LENGTH)
    assert few.fit(some[0]).real == len(some[0])
    for name in ("rows", "tokens", "instances", "pairs"):
        assert replace(few, **{name: 1}).fit(some[0]) is some[0]


def test_nor_does_one_with_too_many_aligned_histories(toy_dataset: Path) -> None:
    stage = built(lambda p: SPT(alpha=0.1), 0.0, 40)
    some = batches_for(stage, toy_dataset, "sequence")
    few = BatchSizes.of(some[:1], LENGTH)
    assert few.fit(some[0]).real == len(some[0])
    for name in ("aligned_rows", "aligned_tokens", "partner_tokens"):
        assert replace(few, **{name: 1}).fit(some[0]) is some[0]


class Own(SPT):
    def training_step(self, batch: Batch) -> Tensor:
        return super().training_step(batch)


@pytest.mark.parametrize(
    ("make", "device", "processes", "expected"),
    [
        (SPT, "cuda", 1, True),
        (SPT, "cpu", 1, False),
        (SPT, "cuda", 2, False),
        (lambda: SPT(cuda_graphs=False), "cuda", 1, False),
        (Own, "cuda", 1, False),
        (lambda: RPT(backbone=BackboneConfig()), "cuda", 1, True),
        (lambda: RPT(backbone=BackboneConfig(), advantage=BatchAdvantage()), "cuda", 1, False),
        (lambda: RPT(backbone=BackboneConfig(pre_layers=1, core_layers=0, depth=ConstantDepth(0))), "cuda", 1, False),
    ],
)
def test_what_is_recorded(make: Callable[[], BaseStage], device: str, processes: int, expected: bool) -> None:
    stage = make()
    strategy = SimpleNamespace(root_device=torch.device(device))
    stage._trainer = SimpleNamespace(world_size=processes, strategy=strategy, precision_plugin=None)  # type: ignore[assignment]
    assert stage.needs_fitted == expected


def test_a_run_of_fitted_batches_learns_what_a_run_of_others_does(
    toy_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the trainer and the data module, with an average, clipping and two batches an update."""
    weights, losses = [], []
    for fits in (False, True):
        rerun = Rerun()
        monkeypatch.setattr(base, "CudaGraphs", lambda rerun=rerun: rerun)
        monkeypatch.setattr(BaseStage, "needs_fitted", fits)
        L.seed_everything(1)
        stage = SPT(BackboneConfig(dropout=0.0), alpha=0.1, gamma=0.1, ema=0.9)
        options: dict[str, Any] = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5, "max_epochs": 2}
        run = trainer(tmp_path, **options)
        run.fit(stage, SequenceDataModule(str(toy_dataset), max_length=LENGTH, batch_size=8))
        assert (rerun.replayed > 8) == fits
        weights.append(torch.cat([p.detach().flatten() for p in stage.parameters()]))
        losses.append({name: float(value) for name, value in run.callback_metrics.items() if "per_second" not in name})
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-5)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
