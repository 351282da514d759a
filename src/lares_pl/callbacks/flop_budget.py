"""What training costs in operations, so that two ways of training can be compared at the same cost."""

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


class FlopBudget(Callback):
    """Estimates the floating-point operations of training; ends it where another run's are spent.

    Operations do not depend on the machine or on who else is at work on it, as seconds do. PyTorch's counter counts those of
    products of matrices and of attention, forwards and backwards, which are nearly all; FFTs it does not know. It slows what it
    counts, so one batch in `every` is counted and stands for all of them; what comes before the first (RPT's pruning) is
    counted whole. Validation is left out. Processes add up what each of them counted, so that all know the same number and
    stop behind the same update. A batch that is counted runs without `torch.compile` (`compile_core`), the others with it.

    Logged as `train/tflops` (10^12 operations since the start, of all processes) and kept in `finished.json`; not so by a run
    that goes on from a checkpoint that did not count, which warns.

    Args:
        every: of so many batches one is counted (an update has `accumulate_grad_batches` of them).
        match: stop when this run's operations are spent: its `finished.json`, or a stage of the same run by name. None: never.
    """

    def __init__(self, every: int = 10, match: str | None = None) -> None:
        if every < 1:
            raise LaresError(f"FlopBudget: every must be at least 1, got {every}")
        self.every = every
        self.match = match
        self.flops: float | None = 0.0  # None: not known
        self._before = 0.0  # operations of all processes before the first update
        self._counted, self._batches = 0.0, 0  # operations of the batches that were counted, of all processes, and their number
        if match is not None and match.endswith(".json"):
            spent(Path(match))  # what is missing is said before the run's folder is claimed
        self._budget = float("inf")
        self._at_work = ExitStack()
        self._counter: FlopCounterMode | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read the budget, which the first process tells the others.

        Raises:
            LaresError: if the run to match has not finished, or did not count its FLOPs.
        """
        if stage == "fit" and self.match is not None:
            self._budget = trainer.strategy.broadcast(spent(Path(self.match)))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on with."""
        return {"flops": self.flops, "counted": self._counted, "updates": self._batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.flops, self._counted, self._batches = state_dict["flops"], state_dict["counted"], state_dict["updates"]

    # ------------------------------------------------------------ counting

    def _count(self) -> None:
        # compiled, products would be hidden from the counter, and what is first called under it would never be compiled
        self._at_work.enter_context(torch.compiler.set_stance("force_eager"))
        self._counter = self._at_work.enter_context(FlopCounterMode(display=False))

    def _counted_since(self, trainer: Trainer) -> float | None:
        """Operations of all processes since `_count`, the same number on each; None where it was not called."""
        if (counter := self._stop_counting()) is None:
            return None
        own = float(counter.get_total_flops())
        if trainer.world_size == 1:
            return own
        exact = torch.tensor(own, dtype=torch.float64, device=trainer.strategy.root_device)
        return float(trainer.strategy.reduce(exact, reduce_op="sum"))

    def _stop_counting(self) -> FlopCounterMode | None:
        self._at_work.close()
        counter, self._counter = self._counter, None
        return counter

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What a stage does before its first update."""
        self._count()

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation is left out, also the one before training."""
        self._before = self._counted_since(trainer) or 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Updates begin; a resumed run did the rest before.

        Raises:
            LaresError: if nobody knows what a run with a budget spent before.
        """
        before = self._counted_since(trainer)
        if trainer.global_step == 0:
            self.flops, self._counted, self._batches = self._before if before is None else before, 0.0, 0
        elif self._batches == 0:
            self._lose(trainer)

    def _lose(self, trainer: Trainer) -> None:
        """What it cost until here was not counted."""
        self.flops = None
        lost = f"FlopBudget: {trainer.ckpt_path or 'training'} did not count what its {trainer.global_step} updates cost"
        if self.match is not None:
            raise LaresError(
                f"{lost}: no saying when the budget is spent. Start anew without --ckpt_path, or leave out `match`"
            )
        rank_zero_warn(f"{lost}: the cost of the whole run will not be known (`flops` is null in finished.json)")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count this one? The first of all in any case, also where a resumed run begins inside an epoch."""
        if self._batches == 0 or batch_idx % self.every == 0:
            self._count()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add what it cost, or what those that were counted cost on the average."""
        of_all = self._counted_since(trainer)
        if of_all is not None:
            self._counted, self._batches = self._counted + of_all, self._batches + 1
        if self.flops is None:
            return
        self.flops += self._counted / self._batches if of_all is None else of_all
        pl_module.log("train/tflops", self.flops / 1e12)
        if self.flops >= self._budget:
            trainer.should_stop = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave no counter behind, also where no batch was left to train."""
        self._stop_counting()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no counter behind."""
        self._stop_counting()


def spent(record: Path) -> float:
    """Operations that a finished run cost.

    Raises:
        LaresError: if it is not over, or did not count them.
    """
    run, stage = record.absolute().parent.parent.name, record.absolute().parent.name
    train = f"`lares fit --config {stage}.yaml --run {run}`, to its end"
    if not record.is_file():
        raise LaresError(f"FlopBudget: no finished run at {record.parent} whose cost could be spent: train it first, {train}")
    flops = json.loads(record.read_text(encoding="utf-8")).get("flops")
    if flops is None:
        raise LaresError(
            f"FlopBudget: {record.parent} did not count what it cost, or not from its start: train it with the callback "
            f"FlopBudget of rpt.yaml, {train}"
        )
    return float(flops)
