"""One writer may write several predictions, also after one that failed."""

from __future__ import annotations

import logging
from pathlib import Path

import lightning as L
import pyarrow.parquet as pq
import pytest
import torch

from lares_pl import SPT
from lares_pl.callbacks.prediction_writer import PredictionWriter
from tests.training import data, released_spt, trainer


@pytest.fixture
def stage(toy_dataset: Path, tmp_path: Path) -> SPT:
    L.seed_everything(0)
    model = released_spt()
    trainer(tmp_path, max_steps=1).fit(model, data(toy_dataset))
    return model


def test_a_writer_writes_again(stage: SPT, toy_dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "predicted.parquet"
    fit = trainer(tmp_path, callbacks=[PredictionWriter(str(path), overwrite=True)])
    tables = []
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            fit.predict(stage, data(toy_dataset), return_predictions=False)
            tables.append(pq.read_table(path))
    assert tables[0].equals(tables[1])
    assert caplog.text.count(f"wrote {len(tables[0]):,} rankings") == 2


def test_a_writer_writes_after_a_prediction_that_failed(
    stage: SPT, toy_dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "predicted.parquet"
    fit, module = trainer(tmp_path, callbacks=[PredictionWriter(str(path))]), data(toy_dataset, eval_batch_size=8)
    with monkeypatch.context() as patch:
        predicted = stage.predict_step
        patch.setattr(stage, "predict_step", lambda batch: predicted(batch) if 0 in batch.instances else torch.zeros(1)[9])
        with pytest.raises(IndexError):
            fit.predict(stage, module, return_predictions=False)
    assert list(tmp_path.iterdir()) == []
    with caplog.at_level(logging.INFO):
        fit.predict(stage, module, return_predictions=False)
    assert f"wrote {pq.read_metadata(path).num_rows:,} rankings" in caplog.text
