"""A newer dataset: training that continues from the old checkpoint against training from scratch, at equal CPU seconds.

    python benchmarks/growth.py [--data FILE] [--seeds 1 2] [--seconds 60]

ML-100K is cut at the median of its times. Each seed trains on the first half; then on all of it, from those weights and from
scratch. Both are prepared leave-one-out, so that no test target was trained on. One thread, the recipe of `spt.yaml`, but with
a constant learning rate and without the average of the weights, which lags behind in so short a run. After 1/8, 1/4, 1/2 and
all of the seconds, NDCG@10 of the test targets is measured, outside of the clock.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback

from lares_pl import SPT, SequenceDataModule, prepare
from lares_pl.evaluation.depths import metrics_by_depth

SHARES = (1 / 8, 1 / 4, 1 / 2, 1)
REAL_DATA = Path(os.environ.get("LARES_DATA_DIR", Path(__file__).resolve().parents[2] / "shared" / "data"))


class Clock(Callback):
    """Stops after some CPU seconds of training, and measures test NDCG@10 on the way."""

    def __init__(self, seconds: float) -> None:
        self.marks = [share * seconds for share in SHARES]
        self.values: list[float] = []
        self.spent = 0.0

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        self._started = time.process_time()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.spent += time.process_time() - self._started
        if self.spent >= self.marks[len(self.values)]:
            self.values.append(test_ndcg(pl_module, trainer.datamodule))  # type: ignore[attr-defined]
            trainer.should_stop = len(self.values) == len(self.marks)


def test_ndcg(stage: Any, data: SequenceDataModule) -> float:
    """NDCG@10 of the test targets, at the depth of evaluation."""
    stage.eval()
    depth = stage.evaluation_depth
    (row,) = metrics_by_depth(stage.backbone, data.test_dataloader(), [depth], lambda: stage.make_sums(data.sequences))
    stage.train()
    return row["ndcg@10"]


def train(dataset: Path, seconds: float, seed: int, checkpoint: Path, init_from: Path | None = None) -> list[float]:
    """Train for some CPU seconds, save a checkpoint; NDCG@10 at each mark."""
    L.seed_everything(seed, verbose=False)
    stage = SPT(scheduler=None, ema=0.0, init_from=None if init_from is None else str(init_from))
    clock = Clock(seconds)
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_epochs=-1, limit_val_batches=0, num_sanity_val_steps=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[clock],
    )  # fmt: skip
    trainer.fit(stage, SequenceDataModule(str(dataset)))
    trainer.save_checkpoint(checkpoint)
    return clock.values


def halves(source: Path, folder: Path) -> tuple[Path, Path]:
    """The first half of the log by time, and all of it, prepared."""
    log = pd.read_csv(source, sep="\t")
    (time_of,) = [name for name in log.columns if name.startswith("timestamp")]
    for name, rows in (("old", log[log[time_of] < log[time_of].median()]), ("new", log)):
        rows.to_csv(folder / f"{name}.inter", sep="\t", index=False)
        prepare(str(folder / f"{name}.inter"), str(folder / name))
    return folder / "old", folder / "new"


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    return f"{statistics.mean(values):.4f}" + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "")


def main() -> None:
    """Train, measure, print a table."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=REAL_DATA / "ml-100k" / "ml-100k.inter")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=60, help="CPU seconds of each training")
    options = parser.parse_args()
    found: dict[str, list[list[float]]] = {"continued": [], "from scratch": []}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        old, new = halves(options.data, folder)
        for seed in options.seeds:
            print(f"seed {seed}: old half {train(old, options.seconds, seed, folder / 'old.ckpt')}", flush=True)
            for name, source in (("continued", folder / "old.ckpt"), ("from scratch", None)):
                found[name].append(train(new, options.seconds, seed, folder / "new.ckpt", source))
                print(f"seed {seed}: {name} {found[name][-1]}", flush=True)
    print("| CPU seconds | " + " | ".join(f"{share * options.seconds:g}" for share in SHARES) + " |")
    print("|---" * (len(SHARES) + 1) + "|")
    for name, runs in found.items():
        print(f"| {name} | " + " | ".join(spread(values) for values in zip(*runs, strict=True)) + " |")


if __name__ == "__main__":
    main()
