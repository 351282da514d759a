"""Three seeds of a small SPT run and an RPT run, and a report on them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger

from lares_pl import (
    ConstantDepth,
    Pruning,
    prepare,
)
from lares_pl.report import study
from lares_pl.report.command import report
from lares_pl.report.latency import time_inference
from tests.released import released_backbone
from tests.training import data, released_rpt, released_spt, trainer

EVIL = "<img src=x onerror=alert(1)>"


def train(folder: Path, stage: Any, dataset: Path, seed: int, **options: Any) -> Path:
    """A stage's folder as `lares fit` leaves it, a short run."""
    L.seed_everything(seed)
    logger = CSVLogger(save_dir=str(folder), name="metrics")
    fit = trainer(folder, logger=logger, **{"max_epochs": 2, **options})
    fit.fit(stage, data(dataset))
    fit.save_checkpoint(folder / "checkpoints" / "best.ckpt")
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed_everything": seed, "run": folder.parent.name, "budget": 2}))
    return folder


@pytest.fixture(scope="session")
def runs(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds of SPT, RPT from the first, and a model without recurrence."""
    folder = tmp_path_factory.mktemp("report") / "runs"
    for seed in (1, 2, 3):
        train(folder / f"seed{seed}" / "spt", released_spt(), toy_dataset, seed)
    spt = folder / "seed1" / "spt" / "checkpoints" / "best.ckpt"
    rpt = released_rpt(spt, pruning=Pruning(2, 20))
    train(folder / "seed1" / "rpt", rpt, toy_dataset, 1, max_epochs=1)
    flat = released_backbone(hidden_size=16, pre_layers=1, core_layers=0, depth=ConstantDepth(0))
    train(folder / EVIL / "sasrec", released_spt(flat, alpha=0, gamma=0), toy_dataset, 1)
    return folder


@pytest.fixture(scope="session")
def written(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on all of them."""
    folder = tmp_path_factory.mktemp("written") / "report"
    names = [str(runs / f"seed{seed}") for seed in (1, 2, 3)] + [str(runs / EVIL)]
    title = "<script>alert(1)</script> & $x^2$"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "time_inference", partial(time_inference, budget=0.02))
        report(names, str(folder), bootstrap=200, depths="1,4,6", title=title, device="cpu")
    return folder


def with_text(folder: Path) -> Path:
    """A prepared dataset with text vectors."""
    generator = np.random.default_rng(0)
    lines = [f"u{user} " + " ".join(map(str, generator.permutation(12)[:6])) for user in range(9)]
    (folder / "x.txt").write_text("\n".join(lines) + "\n")
    np.save(folder / "v.npy", generator.normal(size=(12, 5)).astype(np.float32))
    prepare(str(folder / "x.txt"), str(folder / "text"), item_text=str(folder / "v.npy"))
    return folder / "text"
