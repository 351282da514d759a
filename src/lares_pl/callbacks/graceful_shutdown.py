"""All processes of a run do the same: they start from the same checkpoint and stop after the same update."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lares_pl.errors import LaresError


@contextmanager
def terminated_is_not_success() -> Iterator[None]:
    """Exit 143 after SIGTERM, as the shell says of a terminated process; Lightning saves a checkpoint and would exit 0."""
    try:
        yield
    except SIGTERMException:
        if getattr(rank_zero_only, "rank", 0) == 0:
            print(
                "terminated; a checkpoint was saved: resume with the same command and --ckpt_path last (or auto)",
                file=sys.stderr,
            )
        sys.exit(128 + signal.SIGTERM)


def end_with_parent() -> None:
    """A process that was started by another one as part of a run is killed when that one dies, however it dies (on Linux).

    Without it those that wait for the first process of a run to meet them would wait for half an hour where it was killed.
    """
    libc = ctypes.CDLL(None)
    if "LOCAL_RANK" in os.environ and hasattr(libc, "prctl"):
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class GracefulShutdown(Callback):
    """SIGTERM, on whichever processes it arrives, stops training on all of them behind the same whole update.

    Lightning's own handler talks to the other processes from inside the signal handler, in the middle of whatever they
    exchange, and waits for ever where they are elsewhere; it stops between the batches that make up one update
    (`accumulate_grad_batches`), and inside a validation, which a resumed run does not make up for. Here a signal is only
    remembered; after each update and each validation all agree whether any of them got one. Then Lightning is told, which
    ends the run with its `SIGTERMException`, for which `ModelCheckpoint(save_on_exception=True)` saves.

    In `validate`, `test` and `predict` there is nothing to save: SIGTERM ends the process at once.
    """

    def __init__(self) -> None:
        self._asked = False  # this process got the signal
        self._trainer: Trainer | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that all processes start alike.

        Raises:
            LaresError: on all processes, if some found a checkpoint to resume from and others did not.
        """
        if stage != "fit":
            return
        mine = None if trainer.ckpt_path is None else str(trainer.ckpt_path)
        first = trainer.strategy.broadcast(mine)
        if not trainer.strategy.reduce_boolean_decision(mine == first, all=True):
            raise LaresError(
                f"process {trainer.global_rank} would start from {mine or 'no checkpoint'}, the first one from "
                f"{first or 'no checkpoint'}: the folder of the run must be the same for all processes (on a shared file "
                "system; one that is slow to show new files is read right a minute later). Nothing was changed: start again"
            )

    # ------------------------------------------------------------ training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take Lightning's place, which it takes itself just before; it restores what was there when the run ends."""
        self._asked = False
        signal.signal(signal.SIGTERM, self._remember)

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        self._asked = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Behind a whole update: agree."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._agree(trainer)

    def _agree(self, trainer: Trainer) -> None:
        """Not between two epochs: with `max_steps` Lightning does not resume there exactly; the next update does."""
        if not trainer.is_last_batch:
            self._decide(trainer)

    def _decide(self, trainer: Trainer) -> None:
        stop = trainer.strategy.reduce_boolean_decision(self._asked, all=False)
        self._tell(trainer, stop)
        if stop and (started := getattr(trainer.strategy.launcher, "procs", None)):
            started.clear()  # Lightning's watch over processes that it started would kill this one when they end with 143

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Behind the last update: what comes next reads `trainer.received_sigterm`."""
        self._decide(trainer)

    @staticmethod
    def _tell(trainer: Trainer, stop: bool) -> None:
        trainer._signal_connector.received_sigterm = stop

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A validation inside training is finished first."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._tell(trainer, False)
        else:
            self._end_at_once(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Behind a validation: agree."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._agree(trainer)

    # ------------------------------------------------------------ everything else

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing to save."""
        self._end_at_once(trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing to save."""
        self._end_at_once(trainer)

    def _end_at_once(self, trainer: Trainer) -> None:
        self._trainer = trainer
        signal.signal(signal.SIGTERM, self._end)

    def _end(self, signum: int, frame: FrameType | None) -> None:
        """End as a process without a handler does, and with it those that Lightning started."""
        if self._trainer is not None and self._trainer.strategy.launcher is not None:
            self._trainer.strategy.launcher.kill(signum)
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)
