"""Recorded updates of two real processes (gloo): with a stand-in for CUDA graphs, but with DDP's own gradients.

The same global batches as one process reads give the same weights, whether updates are recorded or not.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lares_pl import RPT, SPT, BackboneConfig, SequenceDataModule
from lares_pl.stages import base
from lares_pl.stages.base import BaseStage
from tests.console import cluster_of, on_forked_processes
from tests.stages.test_no_waiting import LENGTH
from tests.stages.test_recorded_updates import Rerun
from tests.training import trainer

pytestmark = pytest.mark.slow

PLAIN = BackboneConfig(dropout=0.0)  # trajectories start from zero: nothing that differs between processes is drawn
# proportional to gradients: Adam makes full steps of those that are rounding errors
SLOPE: dict[str, Any] = {"optimizer": partial(torch.optim.SGD, lr=0.3), "scheduler": None, "ema": 0.9}
STAGES: dict[str, Callable[[str], BaseStage]] = {
    "SPT": lambda start: SPT(PLAIN, **SLOPE),
    "SPT, own rows aligned": lambda start: SPT(PLAIN, **SLOPE, alpha=0.1, gamma=0.1, gather_negatives=False),
    "RPT": lambda start: RPT(start, dropout=0.0, pruning=None, **SLOPE),
}


def train(
    rank: int, name: str, start: str, dataset: str, folder: Path, processes: int, recorded: bool, cluster: dict[str, str]
) -> None:
    """What one of the processes does; the first one saves what it has learned."""
    if processes > 1:
        os.environ |= {**cluster, "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    rerun = Rerun()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "CudaGraphs", lambda: rerun)
        patch.setattr(BaseStage, "needs_fitted", recorded)
        L.seed_everything(1)
        stage = STAGES[name](start)
        parallel = {"devices": processes, "strategy": "ddp"} if processes > 1 else {}
        run = trainer(folder, max_steps=3, max_epochs=-1, gradient_clip_val=0.5, limit_val_batches=0, **parallel)
        run.fit(stage, SequenceDataModule(dataset, max_length=LENGTH, batch_size=16 // processes))
    if rank == 0:
        torch.save([rerun.replayed, *(p.detach() for p in stage.parameters())], folder / "learned.pt")


@pytest.fixture(scope="module")
def start(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An SPT checkpoint."""
    folder = tmp_path_factory.mktemp("start")
    run = trainer(folder, max_steps=1, limit_val_batches=0)
    run.fit(SPT(PLAIN), SequenceDataModule(str(toy_dataset), max_length=LENGTH, batch_size=16))
    run.save_checkpoint(folder / "spt.ckpt")
    return str(folder / "spt.ckpt")


@pytest.mark.parametrize("name", STAGES)
def test_two_recorded_processes_learn_what_one_does(name: str, start: str, toy_dataset: Path, tmp_path: Path) -> None:
    learned = {}
    for run, processes, recorded in (("one", 1, False), ("two", 2, False), ("recorded", 2, True)):
        folder = tmp_path / run
        folder.mkdir()
        given = (name, start, str(toy_dataset), folder, processes, recorded, cluster_of(processes))
        on_forked_processes(train, given, processes)
        learned[run] = torch.load(folder / "learned.pt")
    replayed = {run: weights.pop(0) for run, weights in learned.items()}
    assert replayed["one"] == replayed["two"] == 0
    assert replayed["recorded"] == 3
    torch.testing.assert_close(learned["recorded"], learned["two"], rtol=1e-4, atol=1e-5)
    if "own rows" not in name:  # which contrast with other rows than in one process
        torch.testing.assert_close(learned["recorded"], learned["one"], rtol=1e-4, atol=1e-5)
