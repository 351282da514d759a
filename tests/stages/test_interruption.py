"""A run that an exception ends, anywhere in a batch or a validation, loses nothing when it is resumed."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lares_pl import SPT, WarmupCosine
from lares_pl.callbacks.graceful_shutdown import GracefulShutdown
from tests.training import data, released_spt, trainer


class Ended(Callback):
    """Ends a run in a hook of its n-th batch, counted over epochs from 0."""

    def __init__(self, hook: str, batch: int) -> None:
        self.batch = batch
        setattr(self, hook, self._end)

    def _end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.batch:
            self.end()

    def end(self) -> None:
        raise RuntimeError("the disk of another person is full")


class Interrupted(Ended):
    """By Ctrl-C."""

    def end(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)


def run(dataset: Path, folder: Path, *others: Callback, resumed: Path | None = None, **options: Any) -> tuple[SPT, L.Trainer]:
    L.seed_everything(7)
    last = ModelCheckpoint(folder, "last", save_on_exception=True, enable_version_counter=False, monitor=None)
    fit = trainer(folder, callbacks=[GracefulShutdown(), *others, last], enable_checkpointing=True, max_epochs=2, **options)
    model = released_spt()
    fit.fit(model, data(dataset), ckpt_path=resumed, weights_only=True)
    return model, fit


POINTS = [
    ("on_train_batch_start", 2),
    ("on_before_optimizer_step", 3),
    ("on_train_batch_end", 3),
    ("on_train_batch_start", 5),  # the first batch of an epoch
    ("on_after_backward", 9),  # the last
    ("on_validation_batch_end", 4),
]


@pytest.mark.parametrize(
    ("options", "points"),
    [({}, POINTS), ({"accumulate_grad_batches": 2}, POINTS[:5]), ({"val_check_interval": 2}, POINTS[1:3])],
)
def test_an_exception_anywhere_leaves_no_batch_out(
    options: dict[str, Any], points: list[tuple[str, int]], toy_dataset: Path, tmp_path: Path
) -> None:
    """Five batches an epoch."""
    model, whole = run(toy_dataset, tmp_path / "whole", **options)
    assert whole.num_training_batches == 5
    for hook, batch in points:
        folder = tmp_path / f"{hook}-{batch}"
        with pytest.raises(RuntimeError, match="another person"):
            run(toy_dataset, folder, Ended(hook, batch), **options)
        again, second = run(toy_dataset, folder, resumed=folder / "last.ckpt", **options)
        assert second.global_step == whole.global_step, (hook, batch)
        assert second.current_epoch == whole.current_epoch
        assert float(second.callback_metrics["val/ndcg@10"]) == float(whole.callback_metrics["val/ndcg@10"]), (hook, batch)
        for name, value in model.state_dict().items():
            assert name.startswith("metrics.") or torch.equal(value, again.state_dict()[name]), (hook, batch, name)


@pytest.mark.parametrize(("accumulate", "every", "ended"), [(2, 3, 2), (3, 2, 3), (4, 1, 6)])
def test_a_validation_between_the_batches_of_an_update_leaves_none_out(
    accumulate: int, every: int, ended: int, toy_dataset: Path, tmp_path: Path
) -> None:
    """Five batches an epoch; resumed from what was saved at each validation, and after an exception in one."""
    options: dict[str, Any] = {"accumulate_grad_batches": accumulate, "val_check_interval": every}
    each = ModelCheckpoint(tmp_path, "{step}", monitor="val/ndcg@10", save_top_k=-1, save_on_train_epoch_end=False)
    model, whole = run(toy_dataset, tmp_path / "whole", each, **options)
    with pytest.raises(RuntimeError, match="another person"):
        run(toy_dataset, tmp_path / "ended", Ended("on_validation_batch_end", ended), **options)
    saved = [*tmp_path.glob("*.ckpt"), tmp_path / "ended" / "last.ckpt"]
    assert len(saved) >= 3
    for number, path in enumerate(saved):
        again, second = run(toy_dataset, tmp_path / str(number), resumed=path, **options)
        assert second.global_step == whole.global_step, path
        for name, value in model.state_dict().items():
            assert name.startswith("metrics.") or torch.equal(value, again.state_dict()[name]), (path, name)


@pytest.mark.parametrize("where", ["a callback", "the optimiser"])
def test_an_exception_before_a_resumed_run_trains_overwrites_nothing(
    where: str, toy_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match="another person"):
        run(toy_dataset, tmp_path, Ended("on_before_optimizer_step", 3))
    last = tmp_path / "last.ckpt"
    before = last.read_bytes()
    others = [Ended("on_train_start", 2)] if where == "a callback" else []
    if where == "the optimiser":
        monkeypatch.setattr(_CheckpointConnector, "restore_lr_schedulers", lambda _: Ended("on_fit_start", 2).end())
    with pytest.raises(RuntimeError, match="another person"):
        run(toy_dataset, tmp_path, *others, resumed=last)
    assert last.read_bytes() == before


@pytest.mark.parametrize(("hook", "batch"), [("on_train_batch_start", 2), ("on_before_optimizer_step", 6)])
def test_ctrl_c_ends_after_the_update_and_loses_nothing(hook: str, batch: int, toy_dataset: Path, tmp_path: Path) -> None:
    model, whole = run(toy_dataset, tmp_path / "whole")
    former = signal.getsignal(signal.SIGINT)
    with pytest.raises(SIGTERMException) as ended:
        run(toy_dataset, tmp_path / "first", Interrupted(hook, batch))
    assert ended.value.signum == signal.SIGINT  # type: ignore[attr-defined]
    assert signal.getsignal(signal.SIGINT) == former
    again, second = run(toy_dataset, tmp_path / "first", resumed=tmp_path / "first" / "last.ckpt")
    assert second.global_step == whole.global_step
    for name, value in model.state_dict().items():
        assert name.startswith("metrics.") or torch.equal(value, again.state_dict()[name]), name


def run_to(dataset: Path, folder: Path, resumed: Path | None = None, **options: Any) -> tuple[SPT, L.Trainer]:
    """Five batches an epoch."""
    L.seed_everything(7)
    fit, model = trainer(folder, **options), released_spt(scheduler=partial(WarmupCosine, warmup=2, total=10))
    fit.fit(model, data(dataset), ckpt_path=resumed, weights_only=True)
    return model, fit


def assert_same_end(one: tuple[SPT, L.Trainer], other: tuple[SPT, L.Trainer]) -> None:
    for name, value in one[0].state_dict().items():
        assert torch.equal(value, other[0].state_dict()[name]), name
    ends = []
    for _, fit in (one, other):
        stepped = fit.fit_loop.epoch_loop._batches_that_stepped
        schedule: Any = fit.lr_scheduler_configs[0].scheduler
        ends.append(
            (fit.global_step, fit.current_epoch, stepped, schedule.last_epoch, float(fit.callback_metrics["val/ndcg@10"]))
        )
    assert ends[0] == ends[1]


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"limit_train_batches": 4}])
@pytest.mark.parametrize("ended", [1, 2, 3, 4, 5, 6])
def test_a_run_that_spent_its_updates_goes_on_there_with_more(
    ended: int, options: dict[str, Any], toy_dataset: Path, tmp_path: Path
) -> None:
    """Within an epoch, and at its end; saved after training, as `trainer.save_checkpoint` does."""
    budget = {"max_epochs": -1, **options}
    _, first = run_to(toy_dataset, tmp_path, max_steps=ended, **budget)
    first.save_checkpoint(tmp_path / "ended.ckpt")
    second = run_to(toy_dataset, tmp_path, tmp_path / "ended.ckpt", max_steps=10, **budget)
    assert_same_end(run_to(toy_dataset, tmp_path, max_steps=10, **budget), second)


@pytest.mark.parametrize("saved", ["epoch", "ended"])
def test_a_run_that_spent_its_epochs_goes_on_with_more(saved: str, toy_dataset: Path, tmp_path: Path) -> None:
    each = ModelCheckpoint(tmp_path, "epoch", save_on_train_epoch_end=True, monitor=None)
    _, first = run_to(toy_dataset, tmp_path, max_epochs=1, callbacks=[each], enable_checkpointing=True)
    first.save_checkpoint(tmp_path / "ended.ckpt")
    second = run_to(toy_dataset, tmp_path, tmp_path / f"{saved}.ckpt")
    assert_same_end(run_to(toy_dataset, tmp_path), second)
