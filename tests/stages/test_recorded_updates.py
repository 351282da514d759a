"""Updates that are recorded and replayed: what can be shown of them without a card, on which `tests/gpu` runs the rest.

A stand-in for a CUDA graph runs the recorded function again, on the tensors that it was recorded with.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, SingleDeviceStrategy, Strategy
from torch import Tensor

from lares_pl import (
    RPT,
    SPT,
    BackboneConfig,
    BatchAdvantage,
    ConstantDepth,
    ConvTransformerBlock,
    LastAndRandomStep,
    LogProbReward,
    PoissonLogNormal,
    SequenceDataModule,
    UniformDepth,
    WholeCatalogue,
    ZeroState,
)
from lares_pl.data.loading.batches import Batch
from lares_pl.data.loading.fitting import BatchSizes
from lares_pl.data.loading.item_pairs import ItemPairs
from lares_pl.model.backbone import RecurrentBackbone
from lares_pl.model.layout import Layout
from lares_pl.stages import base, spt
from lares_pl.stages.base import BaseStage
from lares_pl.stages.group_loss import rounded_up
from lares_pl.stages.randomness import BatchRandomness
from lares_pl.stages.recorded_updates import RecordedUpdates
from tests.as_on_a_card import as_on_a_card
from tests.released import released_backbone
from tests.stages.test_no_waiting import LENGTH, batches_for
from tests.training import released_spt, trainer

# few depths, so that several updates share a graph
SMALL = partial(BackboneConfig, hidden_size=16, depth=UniformDepth(2))
ALIGNED: dict[str, Any] = {"hidden_size": 16, "depth": UniformDepth(1)}
STAGES: dict[str, tuple[Callable[[float], BaseStage], str]] = {
    "recipe": (lambda p: SPT(SMALL(dropout=p)), "sequence"),
    "recipe, prefix": (lambda p: SPT(SMALL(dropout=p)), "prefix"),
    "recipe, alignment": (lambda p: SPT(BackboneConfig(dropout=p, **ALIGNED), alpha=0.1, gamma=0.1), "sequence"),
    "recipe, RPT": (lambda p: RPT(backbone=SMALL(dropout=p), reward=LogProbReward()), "sequence"),
    "RPT, whole catalogue": (
        lambda p: RPT(backbone=SMALL(dropout=p), reward=LogProbReward(), actions=WholeCatalogue()),
        "prefix",
    ),
    "released": (lambda p: released_spt(released_backbone(dropout=p, initial_state=ZeroState(), **ALIGNED)), "prefix"),
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


@pytest.fixture
def rerun(monkeypatch: pytest.MonkeyPatch) -> Rerun:
    """What records instead of CUDA graphs."""
    found = Rerun()
    monkeypatch.setattr(base, "CudaGraphs", lambda: found)
    return found


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


@pytest.mark.parametrize("name", [name for name in STAGES if "RPT" in name])
def test_a_fitted_batch_logs_the_same_values(name: str, toy_dataset: Path) -> None:
    """Of steps and instances that count, though trajectories are run deeper and batches are larger."""
    make, instances = STAGES[name]
    stage = unrecorded(built(make, 0.0, SequenceDataModule(str(toy_dataset)).sequences.catalogue_size))
    logged: list[dict[str, Any]] = []
    stage.log_training = lambda values, batch: logged.append(values)  # type: ignore[method-assign, arg-type]
    some = batches_for(stage, toy_dataset, instances)
    for number, (batch, other) in enumerate(zip(some, fitted(some), strict=True)):
        for x in (batch, other):
            loss_and_gradients(stage, x, number)
        own, found = logged[-2:]
        torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-6)
    assert all("residual" in values for values in logged)


def test_trajectories_share_few_depths_and_are_run_little_deeper() -> None:
    schedule, generator = PoissonLogNormal(mean=4), torch.Generator().manual_seed(0)
    drawn = [sorted((schedule.sample(generator) for _ in range(4)), reverse=True) for _ in range(1000)]
    run = [rounded_up(depths, 4) for depths in drawn]
    assert all(a >= b > a - 4 for depths, own in zip(run, drawn, strict=True) for a, b in zip(depths, own, strict=True))
    assert len(set(run)) <= 15  # of 1,365
    assert sum(map(sum, run)) < 1.35 * sum(map(sum, drawn))
    assert rounded_up([5, 5], 5) == (5, 5)
    assert rounded_up([3, 1], 0) == (3, 1)


def recording_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Record as in one of several processes."""

    def recording(network: Any, draws: Any, generators: Any, record: Any, apart: bool) -> RecordedUpdates:
        return RecordedUpdates(network, draws, generators, record, apart=True)

    monkeypatch.setattr(base, "RecordedUpdates", recording)


@pytest.mark.parametrize("apart", [False, True], ids=["one process", "as with DDP"])
@pytest.mark.parametrize("name", STAGES)
def test_a_replayed_update_is_the_update(
    name: str, apart: bool, toy_dataset: Path, rerun: Rerun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout, so that random draws are those that the update would have made."""
    if apart:
        recording_apart(monkeypatch)
    make, instances = STAGES[name]
    items = SequenceDataModule(str(toy_dataset)).sequences.catalogue_size
    recorded, plain = built(make, 0.3, items), unrecorded(built(make, 0.3, items))
    some = fitted(batches_for(plain, toy_dataset, instances))
    for number in range(8):
        values = [loss_and_gradients(stage, some[number % len(some)], number) for stage in (plain, recorded)]
        torch.testing.assert_close(values[1], values[0], rtol=1e-5, atol=1e-7)
    assert 1 < rerun.recorded < rerun.replayed == 8


class LayerDrop(ConvTransformerBlock):
    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        return super().forward(x, layout) if np.random.random() < 2 else x


DRAWING: dict[str, Callable[[float], BaseStage]] = {
    "torch": lambda p: SPT(BackboneConfig(dropout=p), supervision=LastAndRandomStep()),
    "numpy": lambda p: SPT(BackboneConfig(dropout=p, core_block=LayerDrop)),
}


@pytest.mark.parametrize("name", DRAWING)
def test_what_draws_on_the_host_is_not_recorded(name: str, toy_dataset: Path, rerun: Rerun) -> None:
    """It would be a constant of the graph; nothing is drawn twice for having been tried."""
    items = SequenceDataModule(str(toy_dataset)).sequences.catalogue_size
    stages = [built(DRAWING[name], 0.3, items) for _ in range(2)]
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


class Hiding(ConvTransformerBlock):
    """Keeps a parameter where nobody looks for it."""

    def __init__(self, hidden_size: int, **options: Any) -> None:
        super().__init__(hidden_size, **options)
        self.scale = torch.nn.Parameter(torch.ones(hidden_size))
        self.kept = [self.scale]

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        return super().forward(x, layout) * self.kept[0]


def test_a_parameter_that_is_read_from_elsewhere_is_trained_without_a_graph(
    toy_dataset: Path, rerun: Rerun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With DDP, where others stand in for parameters: its gradient would be missed."""
    recording_apart(monkeypatch)
    stage = built(lambda p: SPT(BackboneConfig(core_block=Hiding)), 0.0, 40)
    batch = fitted(batches_for(stage, toy_dataset, "sequence"))[0]
    with pytest.warns(UserWarning, match="can't be recorded.*elsewhere than its attributes"):
        loss_and_gradients(stage, batch, 0)
    core = stage.backbone.core_blocks[0]
    assert isinstance(core, Hiding)
    assert core.scale.grad is not None
    assert core.scale.grad.abs().sum() > 0
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
    def training_step(self, batch: Batch, batch_idx: int = 0) -> Tensor:  # as Lightning writes it
        return super().training_step(batch, batch_idx)


class Normed(ConvTransformerBlock):
    def __init__(self, hidden_size: int, **options: Any) -> None:
        super().__init__(hidden_size, **options)
        self.statistics = torch.nn.BatchNorm1d(hidden_size)


ON_CUDA = SingleDeviceStrategy(device=torch.device("cuda"))
NO_STEP = BackboneConfig(pre_layers=1, core_layers=0, depth=ConstantDepth(0))


@pytest.mark.parametrize(
    ("make", "strategy", "expected"),
    [
        (SPT, ON_CUDA, True),
        (SPT, SingleDeviceStrategy(device=torch.device("cpu")), False),
        (SPT, DDPStrategy(parallel_devices=[torch.device("cuda")]), True),
        (SPT, DDPStrategy(parallel_devices=[torch.device("cpu")]), False),
        (SPT, FSDPStrategy(parallel_devices=[torch.device("cuda")]), False),
        (lambda: SPT(cuda_graphs=False), ON_CUDA, False),
        (Own, ON_CUDA, False),
        (lambda: SPT(BackboneConfig(core_block=Normed)), ON_CUDA, False),
        (lambda: RPT(backbone=BackboneConfig()), ON_CUDA, True),
        (lambda: RPT(backbone=BackboneConfig(), advantage=BatchAdvantage()), ON_CUDA, False),
        (lambda: RPT(backbone=NO_STEP), ON_CUDA, False),
    ],
)
def test_what_is_recorded(make: Callable[[], BaseStage], strategy: Strategy, expected: bool) -> None:
    stage = make()
    stage.backbone = RecurrentBackbone(9, LENGTH, stage.backbone_config)
    stage._trainer = SimpleNamespace(strategy=strategy, precision_plugin=None)  # type: ignore[assignment]
    assert stage.needs_fitted == expected


def test_alignment_with_rows_of_other_processes_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spt, "alone", lambda group: False)
    for stage, expected in ((SPT(alpha=0.1), False), (SPT(alpha=0.1, gather_negatives=False), True), (SPT(), True)):
        stage.backbone = RecurrentBackbone(9, LENGTH, stage.backbone_config)
        stage._trainer = SimpleNamespace(strategy=ON_CUDA, precision_plugin=None)  # type: ignore[assignment]
        assert stage.needs_fitted == expected


def test_a_stage_that_records_can_be_copied(toy_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "CudaGraphs", Rerun)
    stage = built(lambda p: SPT(), 0.0, SequenceDataModule(str(toy_dataset)).sequences.catalogue_size)
    del stage.log_training
    monkeypatch.setattr(type(stage), "log_training", lambda self, values, batch: None)
    batch = fitted(batches_for(stage, toy_dataset, "sequence"))[0]
    loss_and_gradients(stage, batch, 0)
    assert stage._recorded is not None
    same = copy.deepcopy(stage)
    assert same._recorded is None
    torch.testing.assert_close(loss_and_gradients(same, batch, 1), loss_and_gradients(stage, batch, 1))


@pytest.mark.parametrize("changed", ["parameter", "weight of a loss", "hook"])
def test_what_changes_between_updates_is_not_replayed(changed: str, toy_dataset: Path, rerun: Rerun) -> None:
    make = partial(SPT, BackboneConfig(dropout=0.0, depth=ConstantDepth(2)), gamma=0.1)
    stage = built(lambda p: make(), 0.0, SequenceDataModule(str(toy_dataset)).sequences.catalogue_size)
    assert isinstance(stage, SPT)
    batch = fitted(batches_for(stage, toy_dataset, "sequence"))[0]
    before = [loss_and_gradients(stage, batch, 0) for _ in range(2)]
    assert (rerun.recorded, rerun.replayed) == (1, 2)
    weight = next(stage.backbone.parameters())
    if changed == "parameter":
        weight.data = weight.data.clone()
    elif changed == "weight of a loss":
        stage.gamma = 5.0
    else:
        weight.register_hook(lambda gradient: gradient * 0.1)
    after = loss_and_gradients(stage, batch, 0)
    assert (rerun.recorded, rerun.replayed) == ((1, 2) if changed == "hook" else (2, 3))
    assert (float(after[0]) == pytest.approx(float(before[1][0]))) == (changed != "weight of a loss")


@pytest.mark.usefixtures("rerun")
def test_a_batch_that_somebody_changed_is_read(toy_dataset: Path) -> None:
    items = SequenceDataModule(str(toy_dataset)).sequences.catalogue_size
    stage = built(lambda p: SPT(BackboneConfig(dropout=0.0)), 0.0, items)
    batch = fitted(batches_for(stage, toy_dataset, "sequence"))[0]
    changed = replace(batch, targets=torch.full_like(batch.targets, 7))
    assert changed.to("cpu").targets.tolist() == changed.targets.tolist()
    own, other = (loss_and_gradients(stage, some, 0)[0] for some in (batch, changed))
    torch.testing.assert_close(other, loss_and_gradients(unrecorded(stage), changed, 0)[0])
    assert not torch.allclose(own, other)


def test_many_tiles_of_rows_count_filling_pairs_once(toy_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a card whose tiles hold fewer rows than a group has, with a bias of repeats that has learned something."""
    monkeypatch.setattr(ItemPairs, "within_rows", ItemPairs.counted_within_rows)
    config = BackboneConfig(dropout=0.0)
    stage = unrecorded(built(lambda p: RPT(backbone=config, actions=WholeCatalogue(), reward=LogProbReward()), 0.0, 40))
    assert isinstance(stage, RPT)
    stage.backbone.repeat_bias.data += 0.3
    some = batches_for(stage, toy_dataset, "sequence")
    for number, (batch, other) in enumerate(zip(some, fitted(some), strict=True)):
        own, found = (loss_and_gradients(stage, x, number) for x in (batch, other))
        torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("card", [False, True])
def test_a_run_of_fitted_batches_learns_what_a_run_of_others_does(
    card: bool, toy_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the trainer and the data module, with an average, clipping and two batches an update; also as a card computes."""
    weights, losses = [], []
    for fits in (False, True):
        rerun = Rerun()
        monkeypatch.setattr(base, "CudaGraphs", lambda rerun=rerun: rerun)
        monkeypatch.setattr(BaseStage, "needs_fitted", fits)
        if fits and card:
            as_on_a_card(monkeypatch)
        L.seed_everything(1)
        stage = SPT(BackboneConfig(dropout=0.0, **ALIGNED), alpha=0.1, gamma=0.1, ema=0.9)
        options: dict[str, Any] = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5, "max_epochs": 2}
        run = trainer(tmp_path, **options)
        run.fit(stage, SequenceDataModule(str(toy_dataset), max_length=LENGTH, batch_size=8))
        assert (rerun.replayed > 8) == fits
        weights.append(torch.cat([p.detach().flatten() for p in stage.parameters()]))
        losses.append({name: float(value) for name, value in run.callback_metrics.items() if "per_second" not in name})
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-5)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
