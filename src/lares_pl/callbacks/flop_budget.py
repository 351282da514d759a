"""FLOPs of training, and a budget of them, so that two ways of training can be compared at equal cost."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.flop_counter import FlopCounterMode

from lares_pl.errors import LaresError
from lares_pl.stages.training_log import is_read


class FlopBudget(Callback):
    """Estimates the FLOPs of training, and optionally ends it when those of another run are spent.

    Unlike seconds, FLOPs do not depend on the machine or its load. PyTorch's counter includes matrix products and attention,
    forward and backward, which are nearly all; it does not include FFTs. Counting slows training, so only one batch in `every`
    is counted and represents the others: over a few batches of different depths the sum is rough. The work before the first
    batch (RPT's pruning) is counted in full, validation is not. The counts of all processes are added, so that all know the
    same number and stop after the same update. Where a stage records its updates as CUDA graphs, their operations are those
    counted when they were recorded, so that only the first batch of a run has no graph. Products in code of yours that is
    compiled are not counted.

    The number is logged as `train/tflops` (10^12 FLOPs since the start, of all processes) and stored in `finished.json`. A run
    resumed from a checkpoint that did not count does neither, and warns.

    Args:
        every: one batch in this many is counted (an update has `accumulate_grad_batches` batches).
        match: end training when the FLOPs of this run are spent: its `finished.json`, or a stage of the same run by name.
            None: no budget.
    """

    def __init__(self, every: int = 10, match: str | None = None) -> None:
        if every < 1:
            raise LaresError(f"FlopBudget: every must be at least 1, got {every}")
        self.every = every
        self.match = match
        self.flops: float | None = 0.0  # None: unknown
        self._before = 0.0  # FLOPs of all processes before the first update
        self._counted, self._batches = 0.0, 0  # FLOPs of the counted batches, of all processes, and their number
        self._own = 0.0  # of this process's last batch of which they are known
        self._replays = False  # whether such batches come from graphs
        self._is_due = False  # whether the batch that is trained on is one of those
        self._is_read = False  # whether somebody reads what is logged of it
        if match is not None and match.endswith(".json"):
            spent(Path(match))  # raises before the run's folder is locked
        self._budget = float("inf")
        self._at_work = ExitStack()
        self._counter: FlopCounterMode | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read the budget in the first process and broadcast it.

        Raises:
            LaresError: if the run to match has not finished, or did not count its FLOPs.
        """
        if stage == "fit" and self.match is not None and not self.match.endswith(".json"):
            raise LaresError(
                f"FlopBudget: match={self.match!r} names a stage, which only `lares fit` can find; give the path of the run's "
                "finished.json"
            )
        if stage == "fit" and self.match is not None:
            self._budget = trainer.strategy.broadcast(spent(Path(self.match)))

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run continues with."""
        return {"flops": self.flops, "counted": self._counted, "updates": self._batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self.flops, self._counted, self._batches = state_dict["flops"], state_dict["counted"], state_dict["updates"]

    # ------------------------------------------------------------ counting

    def _count(self) -> None:
        self._counter = self._at_work.enter_context(FlopCounterMode(display=False))

    def _counted_since(self, trainer: Trainer) -> float | None:
        """FLOPs of all processes since `_count`, the same number on each; None if it was not called."""
        counter = self._stop_counting()
        return None if counter is None else self._of_all(trainer, float(counter.get_total_flops()))

    @staticmethod
    def _of_all(trainer: Trainer, own: float) -> float:
        """The sum over processes."""
        if trainer.world_size == 1:
            return own
        exact = torch.tensor(own, dtype=torch.float64, device=trainer.strategy.root_device)
        return float(trainer.strategy.reduce(exact, reduce_op="sum"))

    def _stop_counting(self) -> FlopCounterMode | None:
        self._at_work.close()
        counter, self._counter = self._counter, None
        return counter

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the work of a stage before its first update."""
        self._count()

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop counting: validation is not included."""
        self._before = self._counted_since(trainer) or 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the FLOPs before the first update, unless the run is resumed.

        Raises:
            LaresError: if a resumed run has a budget and the FLOPs spent before are unknown.
        """
        before = self._counted_since(trainer)
        self._replays = getattr(pl_module, "needs_fitted", False)
        if trainer.global_step == 0:
            self.flops, self._counted, self._batches = self._before if before is None else before, 0.0, 0
        elif self._batches == 0:
            self._lose(trainer)

    def _lose(self, trainer: Trainer) -> None:
        """Handle a resumed run whose FLOPs so far were not counted."""
        self.flops = None
        lost = f"FlopBudget: {trainer.ckpt_path or 'training'} did not count what its {trainer.global_step} updates cost"
        if self.match is not None:
            raise LaresError(
                f"{lost}, so the rest of the budget is unknown. Start a new run without --ckpt_path, or leave out `match`"
            )
        rank_zero_warn(f"{lost}: the FLOPs of the whole run will be unknown (`flops` is null in finished.json)")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Decide whether to count this batch: always the first, also of a run resumed within an epoch."""
        self._is_due = self._batches == 0 or batch_idx % self.every == 0
        self._is_read = is_read(trainer)  # before the update: its number decides
        if self._is_due and (self._own == 0.0 or not self._replays):
            self._count()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the FLOPs of the batch: counted, or the average of the counted batches."""
        if (counter := self._stop_counting()) is not None:
            self._own = float(counter.get_total_flops())
        else:
            replayed = getattr(pl_module, "replayed_flops", None)
            self._replays = replayed is not None
            self._own = self._own if replayed is None else float(replayed)
        if self._is_due:
            of_batch = self._of_all(trainer, self._own)
            self._counted, self._batches = self._counted + of_batch, self._batches + 1
        else:
            of_batch = self._counted / self._batches
        if self.flops is None:
            return
        self.flops += of_batch
        if self.flops >= self._budget:
            trainer.should_stop = True
        if self._is_read or trainer.should_stop:  # a tensor: Lightning would copy a number to the device, and wait
            pl_module.log("train/tflops", torch.tensor(self.flops / 1e12))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove the counter, also if there was no batch to train on."""
        self._stop_counting()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the counter."""
        self._stop_counting()


def spent(record: Path) -> float:
    """Return the FLOPs of a finished run.

    Raises:
        LaresError: if it has not finished, or did not count them.
    """
    stage = record.absolute().parent
    of_command = stage.parent.parent.name == "runs"  # not one that was trained from Python
    command = f", `lares fit --config {stage.name}.yaml --run {stage.parent.name}`" if of_command else ""
    train = f"train it first{command}, to its end"
    if not record.is_file():
        raise LaresError(f"FlopBudget: there is no {record} to match: {train}")
    flops = json.loads(record.read_text(encoding="utf-8")).get("flops")
    if flops is None:
        raise LaresError(
            f"FlopBudget: {record.parent} did not count what it cost, or not from its start: with the callback FlopBudget, as "
            f"in rpt.yaml, {train}"
        )
    return float(flops)
