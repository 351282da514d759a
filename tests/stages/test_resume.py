"""A run interrupted anywhere and resumed ends bit for bit where an uninterrupted one does."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lares_pl import (
    SPT,
    Alignment,
    BatchAdvantage,
    LastAndRandomStep,
    LogProbReward,
    NormalState,
    Pruning,
    SequenceDataModule,
    TargetAmongBest,
    WarmupCosine,
)
from lares_pl.callbacks.graceful_shutdown import GracefulShutdown
from lares_pl.stages.base import BaseStage
from tests.training import SMALL, released_rpt, released_spt, trainer

BATCH, EPOCHS = 64, 2


def data(dataset: Path, instances: str) -> SequenceDataModule:
    size = 16 if instances == "sequence" else BATCH
    return SequenceDataModule(str(dataset), max_length=6, batch_size=size, instances=instances, seed=5)  # type: ignore[arg-type]


def stage(kind: str, source: Path) -> BaseStage:
    # of SPT it ends with training: how long that is must be known without touching the loader that is resumed
    schedule = partial(WarmupCosine, warmup=3, total=None if kind.startswith("spt") else 40)
    if kind == "spt":
        return released_spt(scheduler=schedule)
    if kind == "spt with every choice":
        backbone = replace(SMALL, repeat_bias=True, initial_state=NormalState(scale=0.5))
        alignment, supervision = Alignment(cosine=True, tau=0.1, mask_same_target=True), LastAndRandomStep()
        return released_spt(backbone, alignment=alignment, supervision=supervision, ema=0.9, scheduler=schedule)
    if kind == "rpt with every choice":
        choices: dict[str, Any] = {"advantage": BatchAdvantage(), "actions": TargetAmongBest(5), "reward": LogProbReward()}
        return released_rpt(source, pruning=None, anchor=0.5, ema=0.9, scheduler=schedule, **choices)
    return released_rpt(source, pruning=Pruning(1, 12), scheduler=schedule)


def fit(
    kind: str, instances: str, dataset: Path, source: Path, folder: Path, resumed: Path | None = None, **options: Any
) -> tuple[BaseStage, L.Trainer, EarlyStopping]:
    """One run; checkpoints after every update and after every validation."""
    L.seed_everything(7 if resumed is None else 99)  # a resumed run takes its seed from the checkpoint
    each = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1, enable_version_counter=False)
    validated = ModelCheckpoint(folder, "val-{step}", save_top_k=-1, save_on_train_epoch_end=False, monitor="val/ndcg@10")
    patience = EarlyStopping("val/ndcg@10", mode="max", patience=50)
    run = trainer(
        folder, max_epochs=EPOCHS, enable_checkpointing=True, callbacks=[each, validated, patience], val_check_interval=2,
        check_val_every_n_epoch=None, **options,
    )  # fmt: skip
    model = stage(kind, source)
    run.fit(model, data(dataset, instances), ckpt_path=None if resumed is None else str(resumed), weights_only=True)
    return model, run, patience


@pytest.mark.parametrize(
    ("kind", "instances", "options"),
    [
        ("spt", "prefix", {}),
        ("spt", "sequence", {}),
        ("spt", "prefix", {"accumulate_grad_batches": 2}),
        ("spt with every choice", "sequence", {}),
        ("rpt", "prefix", {}),
        ("rpt", "sequence", {}),
        ("rpt with every choice", "prefix", {}),
    ],
)
def test_a_resumed_run_equals_the_uninterrupted_run(
    kind: str,
    instances: str,
    options: dict[str, Any],
    toy_dataset: Path,
    tmp_path: Path,
) -> None:
    source = tmp_path / "source.ckpt"
    first = released_spt()
    before = trainer(tmp_path, max_epochs=2)
    before.fit(first, data(toy_dataset, "prefix"))
    before.save_checkpoint(source)
    whole, run, patience = fit(kind, instances, toy_dataset, source, tmp_path / "whole", None, **options)
    by_time = sorted((tmp_path / "whole").glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    updates = [path for path in by_time if not path.name.startswith("val-")]
    validations = [path for path in by_time if path.name.startswith("val-")]
    steps = run.global_step
    assert len(updates) == steps
    chosen = [updates[0], updates[len(updates) // 2 - 1], validations[0]]
    for point in chosen:
        model, again, resumed = fit(kind, instances, toy_dataset, source, tmp_path / f"resumed-{point.stem}", point, **options)
        assert again.global_step == steps, point.name
        assert again.current_epoch == run.current_epoch, point.name
        for name, value in whole.state_dict().items():
            if not name.startswith("metrics."):
                assert torch.equal(value, model.state_dict()[name]), (point.name, name)
        left, right = (t.optimizers[0].state_dict()["state"] for t in (run, again))
        assert all(torch.equal(left[i][key], right[i][key]) for i in left for key in left[i])
        if point in validations:  # between an update and its validation Lightning does not make the validation up for
            assert (resumed.best_score, resumed.wait_count) == (patience.best_score, patience.wait_count)


class Terminated(Callback):
    """SIGTERM at a batch, or at the validation after it."""

    def __init__(self, batch: int, in_validation: bool) -> None:
        self.batch = batch
        self.in_validation = in_validation

    def _kill(self, trainer: L.Trainer, validating: bool) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.batch and validating == self.in_validation:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        self._kill(trainer, validating=False)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._kill(trainer, validating=True)


class Validations(Callback):
    """What was validated, and when."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, float]] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seen.append((trainer.global_step, float(trainer.callback_metrics["val/ndcg@10"])))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"max_epochs": 3, "accumulate_grad_batches": 2},
        {"max_steps": 8, "max_epochs": -1},
        {"max_steps": 11, "max_epochs": -1, "val_check_interval": 3, "check_val_every_n_epoch": None},
    ],
)
def test_a_run_stopped_by_sigterm_at_any_point_loses_nothing(
    options: dict[str, Any], toy_dataset: Path, tmp_path: Path
) -> None:
    """Updates and validations are the same as without interruption (5 batches per epoch)."""

    def run(folder: Path, resumed: Path | None = None, *others: Callback) -> tuple[SPT, L.Trainer, Validations]:
        L.seed_everything(7)
        last = ModelCheckpoint(folder, "last", save_on_exception=True, enable_version_counter=False)
        patience = EarlyStopping("val/ndcg@10", mode="max", patience=50, check_on_train_epoch_end=False)
        validations = Validations()
        callbacks = [GracefulShutdown(), last, patience, validations, *others]
        fit = trainer(folder, enable_checkpointing=True, callbacks=callbacks, **options)
        model = released_spt()
        try:
            fit.fit(model, data(toy_dataset, "prefix"), ckpt_path=resumed, weights_only=True)
        except SIGTERMException:
            assert fit.received_sigterm
        return model, fit, validations

    model, whole, validations = run(tmp_path / "whole")
    assert whole.num_training_batches == 5
    for batch, in_validation in ((0, False), (4, False), (4, True), (5, False), (6, False)):
        folder = tmp_path / f"{batch}-{in_validation}"
        _, first, before = run(folder, None, Terminated(batch, in_validation))
        if not first.interrupted:  # no validation there
            assert in_validation
            continue
        assert 0 < first.global_step < whole.global_step
        again, second, after = run(folder, folder / "last.ckpt")
        assert second.global_step == whole.global_step
        assert before.seen + after.seen == validations.seen
        for name, value in model.state_dict().items():
            assert name.startswith("metrics.") or torch.equal(value, again.state_dict()[name]), (batch, name)
