"""Matrix products of training on tensor cores, where float32 is more than they need."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lares_pl.errors import LaresError

Precision = Literal["highest", "high", "medium"]


class MatmulPrecision(Callback):
    """Sets how float32 matrices are multiplied in training, as `torch.set_float32_matmul_precision` does.

    `high` lets a GPU with tensor cores read operands as TF32, which has 10 bits of float32's 23, and add up in float32. The
    weights, gradients and all other operations stay in float32. Validation, test and all rankings multiply as before.

    Args:
        precision: `high` (TF32), `medium` (bfloat16 where a device has it for float32 matrices) or `highest` (float32).

    Raises:
        LaresError: if it is none of these.
    """

    def __init__(self, precision: Precision = "high") -> None:
        if precision not in get_args(Precision):
            raise LaresError(f"MatmulPrecision: precision must be highest, high or medium, got {precision}")
        self.precision = precision
        self._elsewhere = torch.get_float32_matmul_precision()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what the process has; at each batch another such callback might have changed it."""
        self._elsewhere = torch.get_float32_matmul_precision()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set it."""
        torch.set_float32_matmul_precision(self.precision)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Set what was before."""
        torch.set_float32_matmul_precision(self._elsewhere)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """As at the end of a batch."""
        torch.set_float32_matmul_precision(self._elsewhere)
