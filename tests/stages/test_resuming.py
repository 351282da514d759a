"""Settings given when a run is resumed: applied to its state where that is sound, refused where it is not."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lares_pl import LaresError, Pruning, WarmupCosine
from lares_pl.serialization import changed_settings
from tests.training import data, released_rpt, released_spt, trainer

ADAM, SGD = partial(torch.optim.Adam, lr=0.01), partial(torch.optim.SGD, lr=0.01)
STEP = partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.5)


def run(
    dataset: Path, steps: int, resumed: Path | None = None, batch_size: int = 64, instances: str = "prefix", **options: Any
) -> L.Trainer:
    fit = trainer(dataset, max_steps=steps, max_epochs=-1)
    module = data(dataset, batch_size=batch_size, instances=instances)
    fit.fit(released_spt(**options), module, ckpt_path=resumed, weights_only=True)
    return fit


def stopped(dataset: Path, folder: Path, steps: int = 3, **options: Any) -> Path:
    """The checkpoint of a run after some updates; five batches an epoch."""
    run(dataset, steps, **options).save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


def test_a_new_learning_rate_applies(toy_dataset: Path, tmp_path: Path) -> None:
    path = stopped(toy_dataset, tmp_path, optimizer=ADAM)
    resumed = run(toy_dataset, 4, path, optimizer=partial(torch.optim.Adam, lr=0.1, betas=(0.5, 0.9), weight_decay=0.01))
    (group,) = resumed.optimizers[0].param_groups
    assert (group["lr"], group["betas"], group["weight_decay"], group["eps"]) == (0.1, (0.5, 0.9), 0.01, 1e-8)
    assert resumed.lightning_module.hparams["optimizer"]["init_args"]["lr"] == 0.1
    assert next(iter(resumed.optimizers[0].state.values()))["step"] == 4  # its state goes on


@pytest.mark.parametrize("before", [3, 5])
def test_a_new_learning_rate_applies_under_a_schedule(before: int, toy_dataset: Path, tmp_path: Path) -> None:
    path = stopped(toy_dataset, tmp_path, before, optimizer=ADAM, scheduler=STEP)
    resumed = run(toy_dataset, 6, path, optimizer=partial(torch.optim.Adam, lr=0.1), scheduler=STEP)
    assert resumed.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 / 8)


def test_new_options_of_the_shipped_schedule_apply(toy_dataset: Path, tmp_path: Path) -> None:
    schedule = partial(WarmupCosine, warmup=2, total=10, floor=0.0)
    path = stopped(toy_dataset, tmp_path, optimizer=ADAM, scheduler=schedule)
    longer = partial(WarmupCosine, warmup=2, total=20, floor=0.1)
    resumed = run(toy_dataset, 4, path, optimizer=partial(torch.optim.Adam, lr=0.1), scheduler=longer)
    whole = run(toy_dataset, 4, optimizer=partial(torch.optim.Adam, lr=0.1), scheduler=longer)
    assert resumed.optimizers[0].param_groups[0]["lr"] == whole.optimizers[0].param_groups[0]["lr"]


@pytest.mark.parametrize(("before", "now", "rate"), [({}, {"gamma": 0.9}, 0.9), ({"gamma": 0.9}, {}, 0.1)])
def test_options_of_a_schedule_that_one_run_leaves_out_have_their_defaults(
    before: dict[str, float], now: dict[str, float], rate: float, toy_dataset: Path, tmp_path: Path
) -> None:
    step = partial(torch.optim.lr_scheduler.StepLR, step_size=4)
    path = stopped(toy_dataset, tmp_path, optimizer=ADAM, scheduler=partial(step, **before))
    resumed = run(toy_dataset, 5, path, optimizer=ADAM, scheduler=partial(step, **now))
    assert resumed.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01 * rate)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"optimizer": SGD}, r"model\.optimizer: .*Adam, and torch.optim.sgd.SGD could not use its state"),
        ({"scheduler": None}, r"model\.scheduler: .*StepLR, and none could not use its state"),
        ({"scheduler": WarmupCosine}, r"model\.scheduler: .*StepLR, and .*WarmupCosine"),
        ({"ema": 0.9}, r"model\.ema: the run was trained with 0\.0 and can't be resumed with 0\.9"),
        ({"batch_size": 32}, r"data\.batch_size: .* batch_size 64 and can't go on there with 32"),
        ({"seed": 1}, r"data\.seed: .* seed 0 and can't go on there with 1"),
        ({"instances": "sequence"}, r"data\.instances: .* instances prefix and can't go on there with sequence"),
    ],
)
def test_what_a_resumed_run_can_not_apply_is_refused_before_anything_is_saved(
    options: dict[str, Any], said: str, toy_dataset: Path, tmp_path: Path
) -> None:
    path = stopped(toy_dataset, tmp_path, optimizer=ADAM, scheduler=STEP)
    before = path.read_bytes()
    chosen = {"optimizer": ADAM, "scheduler": STEP, **options}
    of_data = {"batch_size": 64, "seed": 0, "instances": "prefix"}
    module = data(toy_dataset, **{name: chosen.pop(name, value) for name, value in of_data.items()})
    last = ModelCheckpoint(tmp_path, "last", save_on_exception=True, enable_version_counter=False)
    fit = trainer(tmp_path, max_steps=6, max_epochs=-1, callbacks=[last], enable_checkpointing=True)
    with pytest.raises(LaresError, match=said):
        fit.fit(released_spt(**chosen), module, ckpt_path=path, weights_only=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize("top", [4, 1])
def test_within_an_epoch_the_pruned_instances_stay(top: int, toy_dataset: Path, tmp_path: Path) -> None:
    spt = stopped(toy_dataset, tmp_path, steps=10)

    def fit(top: int, steps: int, resumed: Path | None = None) -> L.Trainer:
        rpt = released_rpt(spt, pruning=Pruning(1, top))
        run = trainer(tmp_path, max_steps=steps, max_epochs=-1)
        run.fit(rpt, data(toy_dataset, batch_size=8), ckpt_path=resumed, weights_only=True)
        return run

    first = fit(4, 2)
    assert first.num_training_batches > 3
    first.save_checkpoint(tmp_path / "rpt.ckpt")
    if top == 4:
        assert fit(top, 3, tmp_path / "rpt.ckpt").global_step == 3
    else:
        with pytest.raises(LaresError, match=r"within an epoch of \d+ batches, and it has \d+ now: its instances are others"):
            fit(top, 3, tmp_path / "rpt.ckpt")


def test_within_an_epoch_the_number_of_processes_stays(toy_dataset: Path, tmp_path: Path) -> None:
    path = stopped(toy_dataset, tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    (loader,) = checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    assert loader["processes"] == 1
    loader["processes"] = 4
    torch.save(checkpoint, path)
    with pytest.raises(
        LaresError, match=r"processes \(trainer\.devices, num_nodes\): .* processes 4 and can't go on there with 1"
    ):
        run(toy_dataset, 4, path)


def test_batches_of_another_kind_are_served_from_the_next_epoch_on(
    toy_dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = stopped(toy_dataset, tmp_path, steps=5)
    with caplog.at_level(logging.INFO):
        assert run(toy_dataset, 8, path, batch_size=32, instances="sequence").global_step == 8
    assert "resuming with changed settings: data.batch_size 64 -> 32, data.instances prefix -> sequence" in caplog.text


def test_a_limited_epoch_is_complete_at_its_limit(toy_dataset: Path, tmp_path: Path) -> None:
    few: dict[str, Any] = {"limit_train_batches": 2, "max_epochs": 2}
    first = trainer(tmp_path, **{**few, "max_epochs": 1})
    first.fit(released_spt(), data(toy_dataset))
    first.save_checkpoint(tmp_path / "last.ckpt")
    second = trainer(tmp_path, **few)
    second.fit(released_spt(), data(toy_dataset, batch_size=32), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert second.global_step == 4


def test_changed_settings_are_named() -> None:
    before = {"alpha": 0.1, "optimizer": {"class_path": "x", "init_args": {"lr": 0.1, "eps": 1}}, "ema": 0.9}
    now = {"alpha": 0.1, "optimizer": {"class_path": "x", "init_args": {"lr": 0.2, "eps": 1}}, "ema": 0.5}
    assert changed_settings(before, now) == ["optimizer.lr 0.1 -> 0.2", "ema 0.9 -> 0.5"]
