"""The FLOPs of training: against a closed form, as a budget, and after resuming."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path

import lightning as L
import pytest
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.flop_counter import FlopCounterMode

from lares_pl import SPT, ConstantDepth, LaresError, Pruning, SequenceDataModule
from lares_pl.callbacks import flop_budget as module
from lares_pl.callbacks.flop_budget import FlopBudget, spent
from lares_pl.runs import StageFolder
from lares_pl.stages import base
from lares_pl.stages.base import BaseStage
from lares_pl.stages.checkpoint import read_checkpoint
from tests.as_on_a_card import as_on_a_card
from tests.console import SMALL as NARROW
from tests.console import cluster_of, error, lares, on_forked_processes
from tests.released import released_backbone
from tests.stages.test_recorded_updates import Rerun
from tests.training import released_rpt, released_spt, trainer

BATCH, SIZE = 16, 8


def flat() -> SPT:
    """No layers and no alignment, so only the softmax over the catalogue multiplies matrices."""
    config = released_backbone(hidden_size=SIZE, pre_layers=0, core_layers=0, depth=ConstantDepth(0))
    return released_spt(config, alpha=0.0, gamma=0.0)


def data(dataset: Path) -> SequenceDataModule:
    return SequenceDataModule(str(dataset), max_length=8, batch_size=BATCH, instances="prefix")


def of_an_update(dataset: Path) -> int:
    """Scores, their gradient to states and to items: three products of B x d x (N + 1), two operations a term."""
    return 6 * BATCH * SIZE * (data(dataset).sequences.catalogue_size + 1)


@pytest.mark.parametrize("every", [1, 3])
def test_the_cost_of_an_update_is_that_of_its_matrix_products(toy_dataset: Path, tmp_path: Path, every: int) -> None:
    cost = FlopBudget(every)
    fit = trainer(tmp_path, callbacks=[cost], max_steps=7)
    fit.fit(flat(), data(toy_dataset))
    assert cost.flops == 7 * of_an_update(toy_dataset)
    assert float(fit.callback_metrics["train/tflops"]) == pytest.approx(cost.flops / 1e12)


@pytest.mark.parametrize("fits", [True, False])
def test_replayed_updates_cost_what_was_counted_when_they_were_recorded(
    fits: bool, toy_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All batches but the first come from graphs; an estimate and each batch's own number are equal for equal batches."""
    monkeypatch.setattr(BaseStage, "needs_fitted", fits)
    rerun = Rerun()
    monkeypatch.setattr(base, "CudaGraphs", lambda: rerun)
    costs = []
    for every in (1, 4):
        fit = trainer(tmp_path, callbacks=[cost := FlopBudget(every)], max_steps=9)
        fit.fit(flat(), data(toy_dataset))
        costs.append(cost.flops)
        assert float(fit.callback_metrics["train/tflops"]) == pytest.approx((cost.flops or 0.0) / 1e12)
    assert rerun.replayed == (16 if fits else 0)
    assert costs[0] == costs[1]
    rows = 1 if not fits else len(next(iter(fit.train_dataloader)).targets) / BATCH  # type: ignore[arg-type]
    assert costs[0] == 9 * rows * of_an_update(toy_dataset)


class ExpectsNoGraphs(FlopBudget):
    """Counts each batch that is due while it runs."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._replays = False


def test_batches_are_counted_by_their_own_graphs(toy_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several depths, to the last operation."""
    as_on_a_card(monkeypatch)  # on a CPU attention depends on the lengths of a batch, which a graph does not
    monkeypatch.setattr(BaseStage, "needs_fitted", True)
    monkeypatch.setattr(base, "CudaGraphs", Rerun)
    exact = []
    for records in (True, False):
        if not records:
            monkeypatch.setattr(BaseStage, "recorded", lambda self, batch, numbers, compute: compute(batch))
        L.seed_everything(1)
        stage = released_spt(released_backbone(dropout=0.1))
        cost = FlopBudget(1) if records else ExpectsNoGraphs(1)
        trainer(tmp_path, callbacks=[cost], max_steps=4).fit(stage, data(toy_dataset))
        exact.append(cost.flops)
    assert exact[0] == exact[1]


def test_training_ends_at_the_cost_of_another_run(toy_dataset: Path, tmp_path: Path) -> None:
    record = StageFolder(tmp_path / "runs" / "a" / "rpt")
    record.path.mkdir(parents=True)
    record.finish(1, 9, "", tested=False, flops=4.5 * of_an_update(toy_dataset))
    fit = trainer(tmp_path, callbacks=[FlopBudget(2, match=str(record.path / "finished.json"))], max_epochs=-1)
    fit.fit(flat(), data(toy_dataset))
    assert fit.global_step == 5


def test_a_resumed_run_continues_counting(toy_dataset: Path, tmp_path: Path) -> None:
    for steps in (3, 8):
        cost = FlopBudget(2)
        fit = trainer(tmp_path, callbacks=[cost], max_steps=steps)
        fit.fit(flat(), data(toy_dataset), ckpt_path=None if steps == 3 else str(tmp_path / "three.ckpt"))
        if steps == 3:
            fit.save_checkpoint(tmp_path / "three.ckpt")
    assert cost.flops == 8 * of_an_update(toy_dataset)


def test_a_run_that_was_not_counted_from_the_start_reports_it(toy_dataset: Path, tmp_path: Path) -> None:
    """Resumed inside an epoch, where no batch has a number to be counted for."""
    start, path = trainer(tmp_path, max_steps=3), str(tmp_path / "three.ckpt")
    start.fit(flat(), data(toy_dataset))
    start.save_checkpoint(path)
    cost = FlopBudget(10)
    fit = trainer(tmp_path, callbacks=[cost], max_steps=5)
    with pytest.warns(UserWarning, match=r"three.ckpt did not count what its 3 updates cost"):
        fit.fit(flat(), data(toy_dataset), ckpt_path=path)
    assert (fit.global_step, cost.flops) == (5, None)
    assert "train/tflops" not in fit.callback_metrics
    fit.save_checkpoint(tmp_path / "five.ckpt")
    fit = trainer(tmp_path, callbacks=[cost := FlopBudget(10)], max_steps=6)
    fit.fit(flat(), data(toy_dataset), ckpt_path=str(tmp_path / "five.ckpt"))
    assert cost.flops is None
    (tmp_path / "budget.json").write_text(json.dumps({"flops": 1.0}))
    limited = trainer(tmp_path, callbacks=[FlopBudget(10, match=str(tmp_path / "budget.json"))], max_steps=6)
    with pytest.raises(LaresError, match="Start a new run without --ckpt_path"):
        limited.fit(flat(), data(toy_dataset), ckpt_path=path)


def test_validation_before_training_is_left_out(toy_dataset: Path, tmp_path: Path) -> None:
    cost = FlopBudget(1)
    trainer(tmp_path, callbacks=[cost], max_steps=2, num_sanity_val_steps=2).fit(flat(), data(toy_dataset))
    assert cost.flops == 2 * of_an_update(toy_dataset)


def test_each_accumulated_batch_counts(toy_dataset: Path, tmp_path: Path) -> None:
    cost = FlopBudget(2)
    trainer(tmp_path, callbacks=[cost], max_steps=2, accumulate_grad_batches=3).fit(flat(), data(toy_dataset))
    assert cost.flops == 6 * of_an_update(toy_dataset)


def test_work_before_the_first_update_counts(toy_dataset: Path, tmp_path: Path) -> None:
    """RPT prunes with the SPT model first."""
    fit = trainer(tmp_path, max_steps=1)
    fit.fit(released_spt(), data(toy_dataset))
    fit.save_checkpoint(tmp_path / "spt.ckpt")
    costs = []
    for pruning in (None, Pruning(passes=1, top=40), Pruning(passes=3, top=40)):
        L.seed_everything(1)
        cost = FlopBudget(1)
        rpt = released_rpt(tmp_path / "spt.ckpt", pruning=pruning)
        trainer(tmp_path, callbacks=[cost], max_steps=1).fit(rpt, data(toy_dataset))
        costs.append(cost.flops or 0.0)
    none, once, thrice = costs
    assert 0 < none < once
    assert (thrice - none) == pytest.approx(3 * (once - none), rel=0.2)


def test_invalid_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LaresError, match=r"finished\.json to match: train it first, to its end"):
        spent(tmp_path / "finished.json")
    with pytest.raises(LaresError, match=r"train it first, `lares fit --config spt\.yaml --run a`, to its end"):
        spent(tmp_path / "runs" / "a" / "spt" / "finished.json")
    (tmp_path / "finished.json").write_text(json.dumps({"epochs": 1}))
    with pytest.raises(LaresError, match="did not count what it cost"):
        spent(tmp_path / "finished.json")
    with pytest.raises(LaresError, match="every must be at least 1"):
        FlopBudget(0)


def test_a_stage_by_name_needs_the_command_line(toy_dataset: Path, tmp_path: Path) -> None:
    fit = trainer(tmp_path, callbacks=[FlopBudget(match="spt")], max_steps=1)
    with pytest.raises(LaresError, match=r"give the path of the run's finished\.json"):
        fit.fit(flat(), data(toy_dataset))


def test_a_missing_budget_is_reported_before_the_former_run_is_moved_aside(toy_dataset: Path, tmp_path: Path) -> None:
    trainer(tmp_path, max_steps=1).fit(model := released_spt(), data(toy_dataset))
    best = tmp_path / "runs" / "a" / "spt" / "checkpoints" / "best.ckpt"
    model.trainer.save_checkpoint(best)
    former = StageFolder(tmp_path / "runs" / "a" / "spt-continued")
    former.path.mkdir()
    former.finish(1, 9, "", tested=True)
    options = ["--trainer.accelerator", "cpu", "--trainer.logger", "false"]
    said = error(tmp_path, "fit", "--config", "spt-continued.yaml", "--run", "a", *options)
    assert "there is no runs/a/rpt/finished.json to match" in said
    assert "`lares fit --config rpt.yaml --run a`" in said
    assert former.finished() is not None


@pytest.mark.slow
def test_supervised_training_at_the_cost_of_rpt(toy_dataset: Path, tmp_path: Path) -> None:
    """The two commands of docs/training.md, small."""
    cpu = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.logger", "false", "--test_after_fit", "false"]
    lares(
        tmp_path, "fit", "--config", "spt.yaml", *cpu, *NARROW, "--data.dataset", str(toy_dataset), "--trainer.max_epochs", "1"
    )
    prune = ["--model.pruning.passes", "1", "--model.pruning.top", "40", "--model.group_size", "2"]
    lares(tmp_path, "fit", "--config", "rpt.yaml", *cpu, *prune)
    lares(tmp_path, "fit", "--config", "spt-continued.yaml", *cpu[:-2], "--data.batch_size", "32")
    runs = tmp_path / "runs" / "default"
    budget, cost = (json.loads((runs / name / "finished.json").read_text())["flops"] for name in ("rpt", "spt-continued"))
    assert budget <= cost < 1.3 * budget, (budget, cost)
    best = read_checkpoint(runs / "spt" / "checkpoints" / "best.ckpt")
    continued = read_checkpoint(runs / "spt-continued" / "checkpoints" / "last.ckpt")
    assert Path(continued.initial_checkpoint or "") == best.path
    assert continued.settings["backbone"] == best.settings["backbone"]
    assert continued.data == best.data


@pytest.mark.slow
def test_two_processes_share_one_budget_and_stop_together(toy_dataset: Path, tmp_path: Path) -> None:
    """Batches of different lengths have different costs: counting alone, one process would stop while the other waits."""
    (tmp_path / "budget.json").write_text(json.dumps({"flops": 1e8}))
    on_forked_processes(_spend, (cluster_of(2), str(toy_dataset), tmp_path), 2)
    one, two = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert one["updates"] == two["updates"]
    assert one["flops"] == two["flops"] >= 1e8
    counted = [a + b for a, b in zip(one["own"], two["own"], strict=True)][1:]  # without what came before the first update
    assert sum(one["own"]) != sum(two["own"])
    # every third update was counted and stands, with those before it, for the two behind it
    behind = [sum(counted[: i // 3 + 1]) / (i // 3 + 1) if i % 3 else counted[i // 3] for i in range(one["updates"])]
    assert one["flops"] == pytest.approx(sum(behind))
    assert sum(behind[:-1]) < 1e8


def _spend(rank: int, cluster: dict[str, str], dataset: str, folder: Path) -> None:
    """One process of two; it writes what it counted itself and what all spent."""
    own: list[int] = []

    class Recorded(FlopCounterMode):
        def get_total_flops(self) -> int:
            own.append(super().get_total_flops())
            return own[-1]

    setattr(module, "FlopCounterMode", Recorded)  # noqa: B010
    os.environ |= {**cluster, "LOCAL_RANK": str(rank)}
    cost = FlopBudget(3, match=str(folder / "budget.json"))
    strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=30))  # a wait for nobody is an error
    fit = trainer(folder, callbacks=[cost], max_epochs=-1, max_steps=60, devices=2, strategy=strategy)
    fit.fit(released_spt(), data(Path(dataset)))
    outcome = {"updates": fit.global_step, "flops": cost.flops, "own": own}
    (folder / f"{rank}.json").write_text(json.dumps(outcome))
