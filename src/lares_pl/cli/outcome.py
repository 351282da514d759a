"""The end of a training: its record in the stage's folder, and the test of its best checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn

from lares_pl.atomic_io import write_json
from lares_pl.callbacks.depth_sweep import DepthSweep
from lares_pl.callbacks.flop_budget import FlopBudget
from lares_pl.cli.reasoning_options import reasoning_of
from lares_pl.data.module import SequenceDataModule
from lares_pl.evaluation.metrics import DEFAULT_METRICS, functions_of
from lares_pl.runs import BEST, LAST, StageFolder
from lares_pl.stages.base import BaseStage
from lares_pl.stages.checkpoint import read_checkpoint
from lares_pl.stages.loading import load_stage
from lares_pl.stages.rpt import RPT


@dataclass
class Outcome:
    """A training that has ended.

    Args:
        trainer: the trainer.
        model: the trained stage.
        data: the data module.
        folder: the folder of the stage.
        finished: the record of the end, if an earlier process has written it.
    """

    trainer: Trainer
    model: BaseStage
    data: SequenceDataModule
    folder: StageFolder
    finished: dict[str, Any] | None

    @property
    def _trial(self) -> bool:
        trial: bool = self.trainer.fast_dev_run  # type: ignore[attr-defined]
        return trial

    def save_final_weights(self) -> None:
        """Save the weights of a training that ended before its first validation: nothing was saved before."""
        checkpoints = self.trainer.checkpoint_callback
        if self.finished is not None or self._trial or not isinstance(checkpoints, ModelCheckpoint):
            return
        if not checkpoints.best_model_path:
            what = (
                "training ended before the first validation (trainer.val_check_interval, limit_val_batches); the final weights"
            )
            if self.trainer.global_step == 0:
                what = "no update was made (trainer.max_epochs, max_steps, limit_train_batches); the initial weights"
            rank_zero_warn(f"{what} were saved as best.ckpt")
            for name in (LAST, BEST):
                self.trainer.save_checkpoint(self.folder.path / name)
            checkpoints.best_model_path = str((self.folder.path / BEST).absolute())

    def record(self, tested: bool) -> str:
        """Record in the stage's folder that training has ended.

        Args:
            tested: whether the best checkpoint was tested too.

        Returns:
            The path of the best checkpoint; empty where none was kept.
        """
        if self.finished is None:
            checkpoints = self.trainer.checkpoint_callback
            best = checkpoints.best_model_path if isinstance(checkpoints, ModelCheckpoint) else ""
            callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
            counted = [callback.flops for callback in callbacks if isinstance(callback, FlopBudget)]
            made = {"epochs": self.trainer.current_epoch, "updates": self.trainer.global_step}
            self.finished = {**made, "best": best, "flops": counted[0] if counted else None}
        self.finished["tested"] = tested
        if self.trainer.is_global_zero and not self._trial:
            self.folder.finish(**self.finished)
        path: str = self.finished["best"]
        return path

    def test(self, best: str) -> None:
        """Test the best checkpoint and write test.json; after RPT, test the SPT checkpoint it started from too.

        Raises:
            LaresError: if the best checkpoint is gone or damaged.
        """
        if not best:
            cause = "trainer.fast_dev_run" if self._trial else "trainer.enable_checkpointing"
            rank_zero_warn(f"no checkpoint was kept ({cause}), so none is tested")
            return
        report: dict[str, Any] = {"checkpoint": best, **reasoning_of(self.model)}
        checkpoint = read_checkpoint(best)
        if isinstance(self.model, RPT) and (source := checkpoint.initial_checkpoint) is not None:
            if Path(source).is_file():
                report["before"] = {"checkpoint": source, "metrics": self._test_before(source)}
                report["initial_weights_kept"] = checkpoint.holds_initial_weights()
            else:
                rank_zero_warn(
                    f"the checkpoint that RPT started from is no longer at {source}: the test does not compare with it"
                )
        (metrics,) = self.trainer.test(self.model, datamodule=self.data, ckpt_path=best, verbose=False)
        report["metrics"] = metrics
        if self.trainer.is_global_zero:
            write_json(self.folder.path / "test.json", report)
            print(metrics_text(report))
            print(f"best checkpoint: {best}")

    def _test_before(self, path: str) -> Mapping[str, float]:
        """Test metrics of the SPT checkpoint under the same conditions, logged nowhere."""
        before = load_stage(path)
        for name in ("evaluation_depth", "stop", "trajectories", "average_steps", "exclude_seen", "metrics"):
            setattr(before, name, getattr(self.model, name))
        trainer: Any = self.trainer
        loggers, callbacks = trainer.loggers, trainer.callbacks
        trainer.loggers, trainer.callbacks = [], [callback for callback in callbacks if not isinstance(callback, DepthSweep)]
        try:
            metrics: Mapping[str, float] = trainer.test(before, datamodule=self.data, verbose=False)[0]
        finally:
            trainer.loggers, trainer.callbacks = loggers, callbacks
        return metrics


def metrics_text(report: Mapping[str, Any]) -> str:
    """Format a report of metrics as text, next to the metrics before this stage if there are any.

    Args:
        report: the content of `test.json`: `depth`, `average_steps` …, `metrics`; after RPT `before`, `initial_weights_kept`.
    """
    before = report.get("before", {}).get("metrics")
    kept = report.get("initial_weights_kept", False)
    found: Mapping[str, float] = report["metrics"]
    split = {"val": "validation"}.get(prefix := next(iter(found)).split("/")[0], prefix)
    averaged = " (mean score of all steps)" if report.get("average_steps") else ""
    rule = report.get("stop")
    stopped = f" at most, stopped by {rule['class_path'].rpartition('.')[2]}" if rule else ""
    lines = [f"{split} metrics at depth {report['depth']}{stopped}{averaged}" + (" before and after RPT" if before else "")]
    order = {name: place for place, name in enumerate(functions_of(DEFAULT_METRICS))}  # recorded names are sorted as text
    for protocol, heading in _PROTOCOLS.items():
        shown = {name: name.removeprefix(f"{prefix}/{protocol}") for name in found if name.startswith(f"{prefix}/{protocol}")}
        shown = {name: label for name, label in shown.items() if "/" not in label}
        shown = dict(sorted(shown.items(), key=lambda metric: order.get(metric[1], len(order))))
        lines += [heading] if heading and shown else []
        width = max(10, *map(len, shown.values())) if shown else 0
        for name, label in shown.items():
            if before:
                change = f"  {found[name] / before[name] - 1:+.1%}" if before[name] and not kept else ""
                lines.append(f"  {label:<{width}} {before[name]:.4f} -> {found[name]:.4f}{change}")
            else:
                lines.append(f"  {label:<{width}} {found[name]:.4f}")
    if kept:
        lines.append("no validation after an update was better: the best checkpoint holds RPT's starting weights")
    return "\n".join(lines)


# prefixes of metrics and what they are under
_PROTOCOLS = {"": "", "unseen/": "with items seen before left out", "all/": "with items seen before ranked"}
