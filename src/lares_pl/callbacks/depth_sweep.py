"""The depth sweep: metrics by reasoning depth, as a chart and as a CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import wandb
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lares_pl.atomic_io import write_text
from lares_pl.callbacks.tracking import Wandb
from lares_pl.errors import LaresError
from lares_pl.evaluation.depths import metrics_by_depth
from lares_pl.stages.base import BaseStage

CHARTS = ("ndcg@10", "recall@10")


class DepthSweep(Callback):
    """After a test, computes metrics at depths 1 to `reach` times the mean depth, from one rollout per batch; with
    `--average_steps` by the mean score of all steps up to each depth.

    W&B gets the table `depth_sweep/table` and, by split, line charts of NDCG@10 and Recall@10 if they are among the stage's
    metrics; the CSV has the same rows. The sweep is skipped for a model without recurrence, and if there is nowhere to write
    its results.

    Args:
        reach: the greatest depth, as a multiple of the mean depth.
        splits: the evaluated splits: `val` (to choose a depth), `test`.
        path: the CSV file; None: none, or on the command line `depth-sweep.csv` in the stage's folder.
    """

    def __init__(self, reach: int = 4, splits: Sequence[Literal["val", "test"]] = ("val", "test"), path: str | None = None):
        if reach < 1 or not splits or not set(splits) <= {"val", "test"}:
            raise LaresError("DepthSweep: reach must be at least 1, splits some of val and test")
        self.reach = reach
        self.splits = tuple(splits)
        self.path = path

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run the sweep on all processes; the first one writes the results."""
        assert isinstance(pl_module, BaseStage)
        loggers = [logger for logger in trainer.loggers if isinstance(logger, Wandb)]
        deepest = self.reach * pl_module.backbone_config.depth.evaluation_depth
        trial: bool = trainer.fast_dev_run  # type: ignore[attr-defined]
        if deepest == 0 or trial or not (self.path or loggers):
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        limits = {"val": trainer.limit_val_batches, "test": trainer.limit_test_batches}
        depths, make_metrics = range(1, deepest + 1), partial(pl_module.make_sums, data.sequences)
        read = "mean of steps" if pl_module.average_steps else "last step"
        rows: list[dict[str, Any]] = []
        for split in self.splits:
            if not limits[split]:
                continue
            with trainer.precision_plugin.test_step_context():
                batches = self._batches(data, split, limits[split])
                found = metrics_by_depth(pl_module.backbone, batches, depths, make_metrics, pl_module.average_steps)
            rows += [{"split": split, "scores": read, **row, "depth": int(row["depth"])} for row in found]
        if rows and trainer.is_global_zero:
            self._keep(rows, loggers)

    @staticmethod
    def _batches(data: Any, split: str, limit: float) -> Iterable[Any]:
        loader = data.val_dataloader() if split == "val" else data.test_dataloader()
        return islice(loader, limit if isinstance(limit, int) else int(limit * len(loader)))

    def _keep(self, rows: list[dict[str, Any]], loggers: list[Wandb]) -> None:
        if self.path is not None:
            text = io.StringIO()
            writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            write_text(Path(self.path), text.getvalue())
        for logger in loggers:
            table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
            charts = {
                f"depth_sweep/{name}": wandb.plot.line(table, "depth", name, "split", f"{name} by depth of reasoning")
                for name in CHARTS
                if name in rows[0]
            }
            logger.experiment.log({"depth_sweep/table": table, **charts})
