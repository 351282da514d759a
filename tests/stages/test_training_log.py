"""What training logs, and when: values that somebody reads, and speed over all instances since the last report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger

from tests.training import data, released_spt, trainer


class Logged(Logger):
    """Keeps what is logged."""

    name = version = "kept"

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if "train/loss" in metrics:
            self.rows.append((step or 0, metrics))

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...


class Seen(Callback):
    """The losses of updates, and what the trainer offers at validations and at the end."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.offered: list[tuple[float, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.offered.append((float(trainer.callback_metrics["train/loss"]), self.losses[-1]))

    on_train_end = on_validation_end


@pytest.mark.parametrize(
    "validated", [{}, {"val_check_interval": 3}, {"val_check_interval": 4, "check_val_every_n_epoch": None}]
)
def test_values_are_those_of_the_update_wherever_they_are_read(
    validated: dict[str, Any], toy_dataset: Path, tmp_path: Path
) -> None:
    logged, seen = Logged(), Seen()
    options = {"max_epochs": 3, "log_every_n_steps": 5, "limit_train_batches": 7, "logger": logged, "callbacks": [seen]}
    trainer(tmp_path, **options, **validated).fit(released_spt(), data(toy_dataset, batch_size=16))
    assert len(seen.losses) == 21
    assert [step for step, _ in logged.rows] == [4, 9, 14, 19]
    assert [values["train/loss"] for _, values in logged.rows] == pytest.approx([seen.losses[step] for step, _ in logged.rows])
    assert all(values["train/instances_per_second"] > 0 for _, values in logged.rows)
    assert len(seen.offered) >= 4
    assert all(offered == pytest.approx(own) for offered, own in seen.offered)


def test_a_checkpoint_of_updates_knows_the_loss_of_its_update(toy_dataset: Path, tmp_path: Path) -> None:
    seen = Seen()
    best = ModelCheckpoint(
        tmp_path, "{step}", monitor="train/loss", save_top_k=-1, every_n_train_steps=3, save_on_train_epoch_end=False
    )
    options: dict[str, Any] = {"max_epochs": 2, "log_every_n_steps": 5, "limit_train_batches": 7, "enable_checkpointing": True}
    trainer(tmp_path, **options, callbacks=[seen, best]).fit(released_spt(), data(toy_dataset, batch_size=16))
    found = {Path(path).stem: float(value) for path, value in best.best_k_models.items()}
    assert found == {f"step={step}": pytest.approx(seen.losses[step - 1]) for step in (3, 6, 9, 12)}


class Stops(Callback):
    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.global_step == 4


def test_a_run_that_is_stopped_logs_its_last_update(toy_dataset: Path, tmp_path: Path) -> None:
    logged, seen = Logged(), Seen()
    options: dict[str, Any] = {"max_epochs": 3, "min_epochs": 0, "log_every_n_steps": 50, "logger": logged}
    trainer(tmp_path, **options, callbacks=[Stops(), seen]).fit(released_spt(), data(toy_dataset, batch_size=16))
    assert len(seen.losses) == 4
    ((step, values),) = logged.rows
    assert step == 3
    assert values["train/loss"] == pytest.approx(seen.losses[-1])


def test_a_run_that_is_stopped_where_loggers_read_logs_its_speed(toy_dataset: Path, tmp_path: Path) -> None:
    logged = Logged()
    options: dict[str, Any] = {"max_epochs": 3, "min_epochs": 0, "log_every_n_steps": 2, "logger": logged}
    trainer(tmp_path, **options, callbacks=[Stops()]).fit(released_spt(), data(toy_dataset, batch_size=16))
    assert [step for step, _ in logged.rows] == [1, 3]
    assert all(values["train/instances_per_second"] > 0 for _, values in logged.rows)


def test_speed_is_that_of_all_batches_of_an_update(toy_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of 16 instances takes a second, and the step after two of them ten; loggers read every second update."""
    logged, seen = Logged(), Seen()
    monkeypatch.setattr(
        "lares_pl.stages.training_log.time.perf_counter", lambda: len(seen.losses) + 10.0 * (len(seen.losses) // 2)
    )
    options: dict[str, Any] = {"max_epochs": 1, "accumulate_grad_batches": 2, "log_every_n_steps": 2, "logger": logged}
    module = data(toy_dataset, batch_size=16)
    trainer(tmp_path, **options, limit_train_batches=16, callbacks=[seen]).fit(released_spt(), module)
    assert [step for step, _ in logged.rows] == [1, 3, 5, 7]
    assert [values["train/instances_per_second"] for _, values in logged.rows[1:]] == pytest.approx([64 / 24] * 3)
