"""Coordinated start and shutdown: all processes start from the same checkpoint and stop after the same update."""

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

from lares_pl.callbacks.agreement import AnyProcess
from lares_pl.errors import LaresError


@contextmanager
def terminated_is_not_success() -> Iterator[None]:
    """Exit with status 143 after SIGTERM and 130 after Ctrl-C, as shells report it; Lightning saves and would exit with 0."""
    try:
        yield
    except SIGTERMException as error:
        signum = getattr(error, "signum", signal.SIGTERM)
        if getattr(rank_zero_only, "rank", 0) == 0:
            what = "interrupted" if signum == signal.SIGINT else "terminated"
            print(
                f"{what}; a checkpoint was saved: resume with the same command and --ckpt_path last (or auto)",
                file=sys.stderr,
            )
        sys.exit(128 + signum)


def end_with_parent() -> None:
    """Have the kernel kill a process that another one started for a run when that one dies, for whatever reason (on Linux).

    Otherwise the processes that wait for a killed first process in a collective would wait for half an hour.
    """
    libc = ctypes.CDLL(None)
    if "LOCAL_RANK" in os.environ and hasattr(libc, "prctl"):
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class GracefulShutdown(Callback):
    """Stops training on all processes after the same complete update when any of them receives SIGTERM, or SIGINT by Ctrl-C.

    Lightning's own handler communicates with the other processes inside the signal handler, in the middle of another
    collective, and can wait forever; it also stops between the batches of one update (`accumulate_grad_batches`), and inside a
    validation, which a resumed run does not repeat. Here the handler only sets a flag; after each update and each validation
    the processes ask each other whether any flag is set. Several read the answer after the next update, so that none waits for
    another one or for its device. Then Lightning's own flag is set, which ends the run with `SIGTERMException`, for which
    `ModelCheckpoint(save_on_exception=True)` saves. A second Ctrl-C ends training at once.

    In `validate`, `test` and `predict` there is nothing to save: the signals end the process at once.
    """

    def __init__(self) -> None:
        self._asked: int | None = None  # the signal that this process received
        self._all: AnyProcess | None = None  # during training
        self._interrupt: Any = signal.SIG_DFL  # the handler of SIGINT before training
        self._trainer: Trainer | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that all processes start from the same checkpoint.

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
                "system; if new files appear on it with a delay, wait a minute). Nothing was changed: run the command again"
            )

    # ------------------------------------------------------------ training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the handler of SIGTERM, which Lightning restores when the run ends, and that of SIGINT."""
        self._asked, self._all = None, AnyProcess(trainer.strategy.root_device)
        signal.signal(signal.SIGTERM, self._remember)
        self._interrupt = signal.signal(signal.SIGINT, self._remember)

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and self._asked == signum:
            raise KeyboardInterrupt
        self._asked = signum

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Name the signal, and give back the handler of SIGINT."""
        if isinstance(exception, SIGTERMException) and self._asked is not None:
            exception.signum = self._asked  # type: ignore[attr-defined]
        self._stop_listening()

    def _stop_listening(self) -> None:
        if signal.getsignal(signal.SIGINT) == self._remember:
            signal.signal(signal.SIGINT, self._interrupt)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After a complete update: agree on stopping, but not between two epochs.

        With `max_steps` Lightning does not resume exactly there.
        """
        if self._all and (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and not trainer.is_last_batch:
            self._tell(trainer, self._all.exchange(self._asked is not None))

    def _decide(self, trainer: Trainer) -> None:
        if self._all:
            self._tell(trainer, self._all.decide(self._asked is not None))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After the last update: agree, for code that reads `trainer.received_sigterm`."""
        self._decide(trainer)
        self._stop_listening()

    @staticmethod
    def _tell(trainer: Trainer, stop: bool) -> None:
        trainer._signal_connector.received_sigterm = stop
        if stop and (started := getattr(trainer.strategy.launcher, "procs", None)):
            started.clear()  # otherwise Lightning kills this process when those it started exit with 143

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let a validation during training finish first."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._tell(trainer, False)
        else:
            self._end_at_once(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a validation: agree on stopping."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and not trainer.is_last_batch:
            self._decide(trainer)

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
        """End like a process without a handler, together with the processes that Lightning started."""
        if self._trainer is not None and self._trainer.strategy.launcher is not None:
            self._trainer.strategy.launcher.kill(signum)
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)
