"""Resident memory of this process while SPT trains on a CPU, with a validation after each thousand updates.

    python benchmarks/memory.py DATASET [--updates 20000] [--keep]

DATASET is a prepared dataset. `--keep` leaves out what gives freed memory back to the system (`lares_pl.stages.memory`).
"""

from __future__ import annotations

import argparse
import logging
import os
from typing import Any

import lightning as L

from lares_pl import SPT, BackboneConfig, SequenceDataModule
from lares_pl.stages import memory


def resident() -> int:
    """Resident memory in MiB."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20


class Reported(L.Callback):
    """Prints it after every 200 updates."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step % 200 == 0:
            print(f"{trainer.global_step:>7,} updates {resident():>7,} MiB", flush=True)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--updates", type=int, default=20_000)
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    if options.keep:
        memory.EVERY = options.updates + 1
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    stage = SPT(BackboneConfig(hidden_size=16))
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_steps=options.updates, val_check_interval=1000, check_val_every_n_epoch=None,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[Reported()],
    )  # fmt: skip
    trainer.fit(stage, SequenceDataModule(options.dataset, batch_size=64))


if __name__ == "__main__":
    main()
