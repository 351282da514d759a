"""Predictions as Parquet, with original ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info

from lares_pl.files import appearing, check_free
from lares_pl.stages.ranking import Ranked


class PredictionWriter(Callback):
    """Collects what every process predicts and writes one file: a row a user, in the order of the dataset.

    Columns: `user_id`, `item_ids` (best first) and `scores`. The file appears whole or not at all.

    Args:
        path: the file.
        overwrite: whether a file that is there may be replaced.
    """

    def __init__(self, path: str, overwrite: bool = False) -> None:
        self.path = Path(path)
        self.overwrite = overwrite
        self._parts: list[Ranked] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse to write over a file before any work is done."""
        if stage == "predict":
            check_free(self.path, self.overwrite)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep a batch."""
        self._parts.append(Ranked(*(part.cpu() for part in outputs)))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather, order, write."""
        mine = Ranked(*(torch.cat(parts) for parts in zip(*self._parts, strict=True)))
        self._parts = []
        # every process has equally many rows (the last ones may only fill up), so shapes agree
        readers = pl_module.readers  # with a sharded catalogue those that share it predict the same
        gathered = [cast(torch.Tensor, pl_module.all_gather(part.to(pl_module.device), group=readers)) for part in mine]
        if not trainer.is_global_zero:
            return
        instances, valid, items, scores = (
            both.cpu().reshape(-1, *part.shape[1:]) for both, part in zip(gathered, mine, strict=True)
        )
        order = torch.argsort(instances[valid])
        data = trainer.datamodule  # type: ignore[attr-defined]
        table = predictions_table(data, instances[valid][order], items[valid][order], scores[valid][order])
        with appearing(self.path) as temporary:
            pq.write_table(table, temporary, compression="zstd")
        rank_zero_info(f"wrote {table.num_rows:,} rankings to {self.path}")


def predictions_table(data: Any, instances: torch.Tensor, items: torch.Tensor, scores: torch.Tensor) -> pa.Table:
    """Rankings with original ids; places that no item was left for are dropped.

    Args:
        data: the data module.
        instances: index of each row among the instances predicted, `[U]`.
        items: item indices, `[U, k]`.
        scores: `[U, k]`, -inf where no item was left.
    """
    predicted = data.predicted
    users = data.predict_dataloader().instances.users[instances.numpy()]
    real = torch.isfinite(scores)
    offsets = pa.array(torch.cat([torch.zeros(1, dtype=torch.int64), real.sum(dim=1).cumsum(0)]).int().numpy())
    return pa.table(
        {
            "user_id": predicted.user_ids.take(pa.array(users)),
            "item_ids": pa.ListArray.from_arrays(offsets, predicted.item_ids.take(pa.array((items[real] - 1).numpy()))),
            "scores": pa.ListArray.from_arrays(offsets, pa.array(scores[real].numpy())),
        }
    )
