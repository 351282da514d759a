"""RPT validates its initial weights, so its best checkpoint is never worse."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lares_pl import RPT
from lares_pl.stages.checkpoint import read_checkpoint
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
