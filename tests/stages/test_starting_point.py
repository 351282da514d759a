"""RPT validates its initial weights, so its best checkpoint is never worse."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint

from lares_pl import RPT, Recall
from lares_pl.stages.checkpoint import read_checkpoint
from lares_pl.stages.starting_point import StartingPoint
from tests.training import SMALL, data, released_rpt, released_spt, trainer


@pytest.fixture(scope="module")
def source(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    L.seed_everything(0)
    path = tmp_path_factory.mktemp("source") / "spt.ckpt"
    fit = trainer(path.parent, max_epochs=20)
    fit.fit(released_spt(), data(toy_dataset))
    fit.save_checkpoint(path)
    return path


def post_trained(source: Path, dataset: Path, folder: Path, lr: float) -> tuple[RPT, ModelCheckpoint]:
    best = ModelCheckpoint(folder, "best", monitor="val/ndcg@10", mode="max", enable_version_counter=False)
    rpt = released_rpt(source, pruning=None, optimizer=partial(torch.optim.Adam, lr=lr))
    trainer(folder, callbacks=[best], enable_checkpointing=True, max_epochs=2).fit(rpt, data(dataset))
    return rpt, best


def test_without_improvement_the_best_checkpoint_holds_the_initial_weights(
    source: Path, toy_dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (start,) = trainer(tmp_path).validate(released_rpt(source), data(toy_dataset), verbose=False)
    with caplog.at_level(logging.INFO):
        rpt, best = post_trained(source, toy_dataset, tmp_path, lr=0.05)  # destroys the model
    assert best.best_model_score == pytest.approx(start["val/ndcg@10"], rel=1e-6)
    for name, value in read_checkpoint(source).backbone_weights().items():
        assert torch.equal(read_checkpoint(best.best_model_path).backbone_weights()[name], value)
    assert not torch.equal(rpt.backbone.item_vectors, read_checkpoint(source).backbone_weights()["embedding.item.weight"])
    assert "nothing was gained" in caplog.text
    assert read_checkpoint(best.best_model_path).holds_initial_weights()
    assert not read_checkpoint(source).holds_initial_weights()  # nothing initialised it


def test_a_resumed_run_keeps_the_initial_value_and_does_not_validate_again(
    source: Path, toy_dataset: Path, tmp_path: Path
) -> None:
    last = ModelCheckpoint(tmp_path, "last", enable_version_counter=False)
    rpt = released_rpt(source, pruning=None)
    trainer(tmp_path, callbacks=[last], enable_checkpointing=True, max_epochs=1).fit(rpt, data(toy_dataset))
    again = released_rpt(backbone=SMALL, pruning=None)
    more = trainer(tmp_path, max_epochs=2)
    more.fit(again, data(toy_dataset), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    starts = [
        state
        for name, state in torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"].items()
        if "Starting" in name
    ]
    (state,) = (callback.state_dict() for callback in more.callbacks if type(callback).__name__ == "StartingPoint")  # type: ignore[attr-defined]
    assert starts[0]["initial"] == state["initial"]


def starting_point(fit: L.Trainer) -> StartingPoint:
    (found,) = (callback for callback in fit.callbacks if isinstance(callback, StartingPoint))  # type: ignore[attr-defined]
    return found


def validated(source: Path, dataset: Path, folder: Path) -> float:
    (start,) = trainer(folder).validate(released_rpt(source), data(dataset), verbose=False)
    return start["val/ndcg@10"]


def test_a_trainer_that_fitted_spt_validates_before_rpt(source: Path, toy_dataset: Path, tmp_path: Path) -> None:
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(released_spt(), data(toy_dataset))
    fit.fit_loop.max_epochs = 2
    best = ModelCheckpoint(tmp_path, "best-{step}", monitor="val/ndcg@10", mode="max", save_top_k=3)
    fit.callbacks.append(best)  # type: ignore[attr-defined]
    start, before = validated(source, toy_dataset, tmp_path), fit.global_step
    fit.fit(released_rpt(source, pruning=None, optimizer=partial(torch.optim.Adam, lr=0.05)), data(toy_dataset))
    assert starting_point(fit).initial == pytest.approx(start, rel=1e-6)
    assert best.best_model_score == pytest.approx(start, rel=1e-6)  # the updates destroy the model
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == [
        f"best-step={step}.ckpt" for step in sorted((before, fit.global_step), key=str)
    ]


def test_a_second_run_begins_anew(source: Path, toy_dataset: Path, tmp_path: Path) -> None:
    one = StartingPoint()
    trainer(tmp_path, callbacks=[one], max_epochs=1).fit(released_rpt(source, pruning=None), data(toy_dataset))
    one.initial, one.best = 2.0, 3.0  # as if the first run had been better
    trainer(tmp_path, callbacks=[one], max_epochs=1).fit(released_rpt(source, pruning=None), data(toy_dataset))
    assert one.initial == pytest.approx(validated(source, toy_dataset, tmp_path), rel=1e-6)
    assert one.best is not None
    assert one.best < 1


class Fails(RPT):
    def on_validation_epoch_end(self) -> None:
        raise RuntimeError("lost the device")


def test_a_run_that_failed_in_its_first_validation_makes_it_when_it_is_resumed(
    source: Path, toy_dataset: Path, tmp_path: Path
) -> None:
    rpt = Fails(str(source), pruning=None, scheduler=None, ema=0.0)
    failing = trainer(tmp_path, callbacks=[OnExceptionCheckpoint(tmp_path, "failed")], enable_checkpointing=True)
    with pytest.raises(RuntimeError, match="lost the device"):
        failing.fit(rpt, data(toy_dataset))
    more = trainer(tmp_path, max_epochs=1)
    again = RPT(str(source), pruning=None, scheduler=None, ema=0.0)
    more.fit(again, data(toy_dataset), ckpt_path=tmp_path / "failed.ckpt", weights_only=True)
    assert starting_point(more).initial == pytest.approx(validated(source, toy_dataset, tmp_path), rel=1e-6)


def test_a_resumed_run_without_a_value_gets_none_from_later_weights(source: Path, toy_dataset: Path, tmp_path: Path) -> None:
    last = ModelCheckpoint(tmp_path, "last", enable_version_counter=False)
    unvalidated = trainer(tmp_path, callbacks=[last], enable_checkpointing=True, max_epochs=1, limit_val_batches=0)
    unvalidated.fit(released_rpt(source, pruning=None), data(toy_dataset))
    more = trainer(tmp_path, max_epochs=2)
    resumed = released_rpt(backbone=SMALL, pruning=None)
    more.fit(resumed, data(toy_dataset), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert starting_point(more).initial is None


@pytest.mark.parametrize(
    ("kept", "compared"),
    [([], "val/recall@5"), (["train/loss", "val/recall@10"], "val/recall@10")],
    ids=["without a monitor", "by the first monitor of validation"],
)
def test_without_ndcg_another_metric_is_compared(
    kept: list[str],
    compared: str,
    source: Path,
    toy_dataset: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    best = [ModelCheckpoint(tmp_path, f"{i}", monitor=name, mode="max") for i, name in enumerate(kept)]
    rpt = released_rpt(source, pruning=None, metrics=[Recall()])
    with caplog.at_level(logging.INFO):
        trainer(tmp_path, callbacks=best, max_epochs=1, enable_checkpointing=bool(kept)).fit(rpt, data(toy_dataset))
    assert f"RPT: {compared} " in caplog.text


@pytest.mark.parametrize(("mode", "gained"), [("min", True), ("max", False)])
def test_what_is_better_is_the_checkpoints_mode(mode: str, gained: bool, caplog: pytest.LogCaptureFixture) -> None:
    fit = L.Trainer(accelerator="cpu", logger=False, callbacks=[ModelCheckpoint(monitor="val/gini@10", mode=mode)])
    point, stage = StartingPoint(), released_spt()
    point.setup(fit, stage, "fit")
    point.initial, point.best = 0.5, 0.4
    with caplog.at_level(logging.INFO):
        point.on_train_end(fit, stage)
    assert ("(-20.0%)" in caplog.text) is gained
