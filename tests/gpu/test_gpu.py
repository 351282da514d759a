"""On a CUDA device (`make test-gpu`): the numbers of a CPU, no waiting within an update, CUDA graphs, memory, two cards.

LARES_TEST_DEVICE=cpu runs what a CPU can of it, to try the tests themselves.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from lares_pl import (
    RPT,
    SPT,
    BackboneConfig,
    ConstantDepth,
    ConvTransformerBlock,
    EveryStep,
    FlopBudget,
    MatmulPrecision,
    Pruning,
    RecurrentBackbone,
    SequenceDataModule,
    TransformerBlock,
    load_stage,
)
from lares_pl.data.loading.histories import Histories
from lares_pl.model.layout import Layout
from lares_pl.stages.base import BaseStage
from tests.console import SMALL as SMALL_OPTIONS
from tests.console import lares
from tests.training import SMALL, released_rpt, released_spt, trainer


class Waiting(ConvTransformerBlock):
    """Reads a value, for which a graph can't wait."""

    def forward(self, x: torch.Tensor, layout: Layout) -> torch.Tensor:
        return super().forward(x, layout) if float(x.detach().abs().sum()) >= 0 else x


DEVICE = os.environ.get("LARES_TEST_DEVICE", "cuda")
ACCELERATOR = "gpu" if DEVICE == "cuda" else "cpu"
ON_CUDA = DEVICE == "cuda" and torch.cuda.is_available()
pytestmark = pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(scope="module")
def spt(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a run on the device."""
    path = tmp_path_factory.mktemp("gpu") / "spt.ckpt"
    fit = trainer(path.parent, accelerator=ACCELERATOR, max_epochs=2)
    fit.fit(SPT(), SequenceDataModule(str(toy_dataset), max_length=8))
    fit.save_checkpoint(path)
    return path


def test_evaluation_gives_the_numbers_of_a_cpu(spt: Path, toy_dataset: Path, tmp_path: Path) -> None:
    values = []
    for accelerator in (ACCELERATOR, "cpu"):
        fit = trainer(tmp_path, accelerator=accelerator)
        (found,) = fit.test(load_stage(spt), SequenceDataModule(str(toy_dataset), max_length=8), verbose=False)
        values.append(found)
    assert values[0] == pytest.approx(values[1], abs=2e-2)  # 61 users, of whom one may stand at a tie
    assert values[0].keys() == values[1].keys()


def test_scores_are_those_of_a_cpu(spt: Path) -> None:
    model = load_stage(spt).backbone.eval()
    histories = Histories.from_lists([[1, 2, 3], [4], [5, 6, 7, 8, 9]])
    scores = []
    for device in ("cpu", DEVICE):
        model.to(device)
        moved = histories.to(device)
        with torch.no_grad():
            states = model.rollout(moved, [4])[0][-1]
            scores.append(model.head(moved).scores(states).cpu())
    torch.testing.assert_close(scores[1], scores[0], rtol=1e-4, atol=1e-4)


class NoWaiting(Callback):
    """Any wait of the host for the device within an update is an error, from the third update on."""

    def __init__(self) -> None:
        self.updates = 0

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step >= 2 and ON_CUDA:
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.updates += 1
        if ON_CUDA:
            torch.cuda.set_sync_debug_mode("default")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if ON_CUDA:
            torch.cuda.set_sync_debug_mode("default")


STAGES: dict[str, Callable[[Path], L.LightningModule]] = {
    "recipe": lambda _: SPT(),
    "recipe, alignment": lambda _: SPT(alpha=0.1, gamma=0.1),
    "released": lambda _: released_spt(),
    "RPT": lambda start: RPT(str(start), pruning=None),
}


@pytest.mark.parametrize("name", STAGES)
def test_an_update_does_not_wait(name: str, spt: Path, toy_dataset: Path, tmp_path: Path) -> None:
    callback = NoWaiting()
    options: dict[str, Any] = {"limit_val_batches": 0, "log_every_n_steps": 1000, "callbacks": [callback, FlopBudget(3)]}
    data = SequenceDataModule(str(toy_dataset), max_length=8, batch_size=8)
    trainer(tmp_path, accelerator=ACCELERATOR, max_steps=6, max_epochs=-1, **options).fit(STAGES[name](spt), data)
    assert callback.updates == 6


#: attention draws its dropout in one kernel, or in several within a graph; these differ, so that there is none
WITHOUT = BackboneConfig(core_block=partial(ConvTransformerBlock, attention_dropout=0.0))
PLAIN = partial(TransformerBlock, inner_size=32, attention_dropout=0.0)
RELEASED = replace(SMALL, pre_block=PLAIN, core_block=PLAIN)
RECORDED: dict[str, tuple[Callable[[Path], BaseStage], str]] = {
    "recipe": (lambda _: SPT(WITHOUT), "sequence"),
    "recipe, prefix": (lambda _: SPT(WITHOUT), "prefix"),
    "recipe, alignment": (lambda _: SPT(WITHOUT, alpha=0.1, gamma=0.1), "sequence"),
    "recipe, every step": (lambda _: SPT(WITHOUT, supervision=EveryStep(0.9)), "sequence"),
    "without recurrence": (
        lambda _: SPT(replace(RELEASED, pre_layers=2, core_layers=0, depth=ConstantDepth(0))),
        "sequence",
    ),
    "released": (lambda _: released_spt(RELEASED), "prefix"),
    "RPT": (lambda start: RPT(str(start), backbone=WITHOUT, pruning=None), "sequence"),
    "released RPT": (lambda start: released_rpt(str(start), backbone=WITHOUT, pruning=None), "prefix"),
}


class Losses(Callback):
    """Keeps the loss of each batch, and what was recorded."""

    def __init__(self, records: bool) -> None:
        self.records = records
        self.losses: list[float] = []
        self.recordings = 0

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if not self.records:  # the same batches, update by update
            pl_module.recorded = lambda batch, numbers, compute: compute(batch)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))
        self.recordings = len(pl_module._recorded._recordings) if pl_module._recorded is not None else 0


Training = tuple[torch.Tensor, torch.Tensor]


def trained(
    make: Callable[[], BaseStage],
    seen: Losses,
    dataset: Path,
    folder: Path,
    instances: str,
    more: Sequence[Callback] = (),
    **options: Any,
) -> Training:
    """Losses of a short run, and the weights in the end; that nothing can be recorded is an error."""
    L.seed_everything(1)
    stage = make()
    data = SequenceDataModule(str(dataset), max_length=8, batch_size=8, instances=instances)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="cuda_graphs")
        budget: dict[str, Any] = {"max_epochs": 4, "limit_val_batches": 0, "accumulate_grad_batches": 2}
        trainer(folder, accelerator="gpu", callbacks=[seen, *more], **budget, **options).fit(stage, data)
    return torch.tensor(seen.losses), torch.cat([p.detach().flatten() for p in stage.parameters()]).cpu()


def assert_same_training(runs: list[Training], exact: bool = True) -> None:
    """Sums are in another order from one update to the next, and their differences grow."""
    one, other = runs
    torch.testing.assert_close(other[0][:8], one[0][:8], rtol=1e-4 if exact else 1e-2, atol=1e-5)
    torch.testing.assert_close(other[0], one[0], rtol=1e-2 if exact else 1e-1, atol=1e-3)
    assert float((other[1] - one[1]).norm() / one[1].norm()) < 1e-2


@pytest.mark.skipif(not ON_CUDA, reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", RECORDED)
def test_replayed_updates_are_the_updates(name: str, precision: Any, spt: Path, toy_dataset: Path, tmp_path: Path) -> None:
    """With dropout and noise, two batches an update, and an average: loss by loss, and the weights in the end."""
    make, instances = RECORDED[name]
    runs = []
    for records in (False, True):
        seen = Losses(records)
        runs.append(trained(partial(make, spt), seen, toy_dataset, tmp_path, instances, precision=precision))
        assert (seen.recordings > 0) == records
    assert_same_training(runs, exact=precision == "32-true")


@pytest.mark.skipif(not ON_CUDA, reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["recipe", "RPT"])
def test_updates_are_recorded_with_ddp(name: str, spt: Path, toy_dataset: Path, tmp_path: Path) -> None:
    """Of one process, which is tied to streams as each of many is."""
    make, instances = RECORDED[name]
    runs = []
    try:
        for strategy in ("auto", "ddp"):
            seen = Losses(True)
            runs.append(trained(partial(make, spt), seen, toy_dataset, tmp_path, instances, strategy=strategy, devices=1))
            assert seen.recordings > 0
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    assert_same_training(runs)


@pytest.mark.skipif(not ON_CUDA, reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["recipe", "RPT"])
def test_products_in_tf32_train_alike(name: str, spt: Path, toy_dataset: Path, tmp_path: Path) -> None:
    """Within the graphs as well: losses differ, and by little."""
    make, instances = RECORDED[name]
    runs = []
    for more in ([], [MatmulPrecision("high")]):
        seen = Losses(True)
        fit = partial(trained, partial(make, spt), seen, toy_dataset, tmp_path, instances)
        runs.append(fit(more=more))
        assert seen.recordings > 0
    assert not torch.equal(runs[0][0], runs[1][0])
    assert_same_training(runs, exact=False)


@pytest.mark.skipif(not ON_CUDA, reason="needs a CUDA device")
def test_an_update_that_can_not_be_recorded_runs_as_it_is(toy_dataset: Path, tmp_path: Path) -> None:
    seen = Losses(True)
    stage = SPT(BackboneConfig(core_block=Waiting))
    data = SequenceDataModule(str(toy_dataset), max_length=8, batch_size=8)
    with pytest.warns(UserWarning, match="cuda_graphs: this update can't be recorded") as caught:
        trainer(tmp_path, accelerator="gpu", max_epochs=2, limit_val_batches=0, callbacks=[seen]).fit(stage, data)
    assert sum("cuda_graphs" in str(warning.message) for warning in caught) == 1
    assert seen.recordings == 0
    assert all(loss > 0 for loss in seen.losses)


def test_memory_does_not_grow_with_rows_times_catalogue() -> None:
    items, rows = 200_000, 4096  # all scores would be 3,125 MiB, and their gradient as much
    model = RecurrentBackbone(items, 8, BackboneConfig()).to(DEVICE).train()
    histories = Histories.from_lists([[1 + row, 2 + row] for row in range(rows)]).to(DEVICE)
    targets = torch.arange(1, rows + 1, device=DEVICE)
    if ON_CUDA:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    states = model.rollout(histories, [2])[0][-1]
    model.head(histories).cross_entropy(states, targets).backward()
    if ON_CUDA:
        assert torch.cuda.max_memory_allocated() - before < 2.5 * 2**30


def test_pruning_keeps_what_a_cpu_keeps(spt: Path, toy_dataset: Path, tmp_path: Path) -> None:
    kept = []
    for accelerator in (ACCELERATOR, "cpu"):
        model = RPT(str(spt), pruning=Pruning(passes=1, top=10))
        options = {"accelerator": accelerator, "max_steps": 1, "limit_val_batches": 0}
        trainer(tmp_path, **options).fit(model, SequenceDataModule(str(toy_dataset), max_length=8))
        assert model.kept is not None
        kept.append(model.kept.mask)
    assert (kept[0] != kept[1]).mean() < 0.02


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_cards_equal_one(toy_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "prepared").symlink_to(toy_dataset)
    two = ["--trainer.accelerator", "gpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    lares(tmp_path, "fit", "--config", "spt.yaml", *two, "--trainer.max_epochs", "1", *SMALL_OPTIONS)
    run = tmp_path / "runs" / "default" / "spt"
    best = str(run / "checkpoints" / "best.ckpt")
    lares(tmp_path, "test", "--ckpt_path", best, "--trainer.devices", "1", "--output", "one.json")
    one = json.loads((tmp_path / "one.json").read_text())["metrics"]
    assert json.loads((run / "test.json").read_text())["metrics"] == pytest.approx(one, rel=1e-4)
