"""A run interrupted anywhere and resumed ends bit for bit where an uninterrupted one does."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lares_pl import RPT, SPT, Pruning, SequenceDataModule, WarmupCosine
from lares_pl.stages.ranking import RankingStage
from tests.test_stages import FAST, SMALL, trainer

BATCH, EPOCHS = 64, 2


def data(dataset: Path, instances: str) -> SequenceDataModule:
    size = 16 if instances == "sequence" else BATCH
    return SequenceDataModule(str(dataset), max_length=6, batch_size=size, instances=instances, seed=5)  # type: ignore[arg-type]


def stage(kind: str, source: Path) -> RankingStage:
    schedule = partial(WarmupCosine, warmup=3, total=40)
    if kind == "spt":
        return SPT(SMALL, optimizer=FAST, scheduler=schedule)
    return RPT(str(source), group_size=2, pruning=Pruning(1, 12), optimizer=FAST, scheduler=schedule)


def fit(
    kind: str, instances: str, dataset: Path, source: Path, folder: Path, resumed: Path | None = None, **options: Any
) -> tuple[RankingStage, L.Trainer, EarlyStopping]:
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
        ("rpt", "prefix", {}),
        ("rpt", "sequence", {}),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(
    kind: str,
    instances: str,
    options: dict[str, Any],
    toy_dataset: Path,
    tmp_path: Path,
) -> None:
    source = tmp_path / "source.ckpt"
    first = SPT(SMALL, optimizer=FAST)
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
