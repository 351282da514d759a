"""Predictions as Parquet, with original ids."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lares_pl.atomic_io import atomic_write, check_free
from lares_pl.data.dataset.instances import Instances
from lares_pl.data.dataset.prepared import SequenceDataset
from lares_pl.errors import LaresError


class PredictionWriter(Callback):
    """Gathers the predictions of all processes, batch by batch, and writes one file: one row per history, in dataset order.

    Columns: `user_id`, `item_ids` (best first) and `scores`. The file is written atomically.

    Args:
        path: the file.
        overwrite: whether an existing file may be replaced.
    """

    def __init__(self, path: str, overwrite: bool = False) -> None:
        self.path = Path(path)
        self.overwrite = overwrite
        self._file = ExitStack()  # on the first process, while it predicts
        self._writer: pq.ParquetWriter | None = None
        self._temporary: Path
        self._instances: Instances
        self._rows = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the file may be written, before any work is done.

        Raises:
            LaresError: if it exists, or its name is not that of a Parquet file.
        """
        if stage != "predict":
            return
        if self.path.suffix != ".parquet":
            raise LaresError(f"{self.path}: predictions are written as Parquet; name a file that ends with .parquet")
        check_free(self.path, self.overwrite)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the file under a temporary name, without what an earlier prediction has left."""
        self._writer, self._rows = None, 0
        if trainer.is_global_zero:
            self._temporary = self._file.enter_context(atomic_write(self.path))
            self._instances = trainer.datamodule.predict_dataloader().instances  # type: ignore[attr-defined]

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Gather the batches of all processes, which are consecutive in the dataset, and write them."""
        # every process has the same number of rows (the last ones may be padding), so shapes agree
        readers = pl_module.data_parallel_group  # the processes that share a sharded catalogue predict the same
        gathered = [cast(Tensor, pl_module.all_gather(part, group=readers)) for part in outputs]
        if not trainer.is_global_zero:
            return
        together = [both.cpu().reshape(-1, *part.shape[1:]) for both, part in zip(gathered, outputs, strict=True)]
        instances, _, items, scores = (part[together[1]] for part in together)
        order = torch.argsort(instances)
        users = self._instances.take(instances[order].numpy()).users
        table = predictions_table(trainer.datamodule.predicted, users, items[order], scores[order])  # type: ignore[attr-defined]
        if self._writer is None:
            self._writer = self._file.enter_context(pq.ParquetWriter(self._temporary, table.schema, compression="zstd"))
        self._writer.write_table(table)
        self._rows += table.num_rows

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Rename the file to its final name."""
        if trainer.is_global_zero:
            self._file.close()
            rank_zero_info(f"wrote {self._rows:,} rankings to {self.path}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Delete the incomplete file."""
        self._file.__exit__(type(exception), exception, exception.__traceback__)


def predictions_table(predicted: SequenceDataset, users: np.ndarray, items: Tensor, scores: Tensor) -> pa.Table:
    """Convert rankings to a table with original ids; entries without an item are dropped.

    Args:
        predicted: the dataset of the users.
        users: user of each row, `[U]`.
        items: item indices, `[U, k]`.
        scores: `[U, k]`, -inf for an entry without an item.
    """
    real = torch.isfinite(scores)
    offsets = pa.array(torch.cat([torch.zeros(1, dtype=torch.int64), real.sum(dim=1).cumsum(0)]).int().numpy())
    return pa.table(
        {
            "user_id": predicted.user_ids.take(pa.array(users)),
            "item_ids": pa.ListArray.from_arrays(offsets, predicted.item_ids.take(pa.array((items[real] - 1).numpy()))),
            "scores": pa.ListArray.from_arrays(offsets, pa.array(scores[real].numpy())),
        }
    )
