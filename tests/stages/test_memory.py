"""Memory that the C library would keep is given back every so many batches."""

from __future__ import annotations

from pathlib import Path

import pytest

from lares_pl.stages import memory
from tests.training import data, released_spt, trainer


def test_memory_is_given_back_in_training_and_evaluation(
    toy_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(memory, "EVERY", 2)
    monkeypatch.setattr(memory, "_malloc_trim", lambda: calls.append)
    stage, module = released_spt(), data(toy_dataset, eval_batch_size=10)
    trainer(tmp_path, max_epochs=1, limit_train_batches=4, limit_val_batches=0).fit(stage, module)
    assert calls == [0, 0]
    run = trainer(tmp_path)
    for evaluate in (run.validate, run.test, run.predict):
        calls.clear()
        evaluate(stage, module)
        assert calls == [0, 0, 0], evaluate  # of six or seven batches


def test_a_c_library_that_can_not_give_back_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_malloc_trim", lambda: None)
    memory.trim(memory.EVERY - 1)
