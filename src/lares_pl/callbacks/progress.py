"""Progress: a bar on a terminal, plain lines in a log file."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

_SHOWN = {"loss": "train/loss", "depth": "train/depth", "reward": "train/reward", "ndcg@10": "val/ndcg@10"}
BAR_EVERY = 0.5  # seconds between values in the bar


def shown_metrics(trainer: Trainer) -> dict[str, str]:
    """Return the displayed metrics as text: loss, depth, reward (RPT) and validation NDCG@10."""
    metrics = trainer.callback_metrics
    return {label: f"{float(metrics[name]):.4g}" for label, name in _SHOWN.items() if name in metrics}


def total_batches(trainer: Trainer) -> int | None:
    """Return the number of batches after which training must end; None if it is unbounded."""
    per_epoch = trainer.num_training_batches
    by_epochs = None
    if trainer.max_epochs not in (None, -1) and per_epoch != float("inf"):
        by_epochs = int(trainer.max_epochs * per_epoch)
    by_steps = trainer.max_steps * trainer.accumulate_grad_batches if trainer.max_steps not in (None, -1) else None
    bounds = [bound for bound in (by_epochs, by_steps) if bound is not None]
    return min(bounds) if bounds else None


def clock(seconds: float) -> str:
    """`1:02:03` or `02:03`."""
    minutes, second = divmod(int(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute:02d}:{second:02d}"


class Progress(ProgressBar):
    """Shows loss, depth, validation NDCG@10 and the time left.

    On a terminal it draws one bar for the whole training; if the output is a file it prints a plain line every `every` seconds
    and after each validation.

    Args:
        every: seconds between plain lines.
    """

    def __init__(self, every: float = 30.0) -> None:
        super().__init__()
        self.every = every
        self._enabled = True
        self._bar: tqdm[Any] | None = None
        self._started = self._printed = 0.0
        self._first = 0  # batches done before this start (resumed runs)

    def disable(self) -> None:
        """Called on every process but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Undo `disable`."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        self._started = self._printed = time.monotonic()
        self._first = self._done(trainer)
        if self._enabled and sys.stderr.isatty():
            self._bar = tqdm(
                total=total_batches(trainer), initial=self._first, desc=type(pl_module).__name__, dynamic_ncols=True
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance."""
        if self._bar is not None:
            if time.monotonic() - self._printed >= BAR_EVERY:  # reading a value waits for the device
                self._printed = time.monotonic()
                self._bar.set_postfix(shown_metrics(trainer), refresh=False)
            self._bar.update(1)
        elif self._enabled and time.monotonic() - self._printed >= self.every:
            self._print_line(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print a line after each validation."""
        if self._bar is None and self._enabled and not trainer.sanity_checking and trainer.state.fn == "fit":
            self._print_line(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the last values and close the bar."""
        if self._bar is not None:
            self._bar.set_postfix(shown_metrics(trainer))
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    @staticmethod
    def _done(trainer: Trainer) -> int:
        return int(trainer.fit_loop.epoch_loop.total_batch_idx + 1)

    def _print_line(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._printed = time.monotonic()
        done, total = self._done(trainer), total_batches(trainer)
        elapsed = self._printed - self._started
        parts = [f"{type(pl_module).__name__} epoch {trainer.current_epoch} batch {done}" + (f"/{total}" if total else "")]
        parts += [f"{label} {value}" for label, value in shown_metrics(trainer).items()]
        parts.append(f"elapsed {clock(elapsed)}")
        if total and done > self._first:
            parts.append(f"left at most {clock(elapsed / (done - self._first) * (total - done))}")
        print(" | ".join(parts), file=sys.stderr, flush=True)
