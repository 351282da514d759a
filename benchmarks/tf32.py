"""What training in TF32 would learn, without a card: operands of matrix products are rounded to the 10 bits that it keeps.

PYTHONPATH=benchmarks lares fit --config spt.yaml --data.dataset DATASET --trainer.callbacks tf32.Rounded
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

#: products, and where their two operands stand
OPERANDS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}
DROPPED = 13  # of the 23 bits of float32's fraction


def rounded(x: Tensor) -> Tensor:
    """To the nearest number with 10 bits, ties to even; other types than float32 stay as they are."""
    if x.dtype != torch.float32:
        return x
    bits = x.contiguous().view(torch.int32)
    half = (1 << (DROPPED - 1)) - 1 + ((bits >> DROPPED) & 1)
    return ((bits + half) & ~((1 << DROPPED) - 1)).view(torch.float32)


class RoundedProducts(TorchDispatchMode):
    """Rounds the operands of all products, forward and backward."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], arguments: Sequence[Any] = (), options: Mapping[str, Any] | None = None
    ) -> Any:
        at = OPERANDS.get(function.overloadpacket.__name__)
        if at is not None:
            arguments = (*arguments[:at], *map(rounded, arguments[at : at + 2]), *arguments[at + 2 :])
        return function(*arguments, **(options or {}))


class Rounded(Callback):
    """Rounds operands while a batch is trained on, as `lares_pl.MatmulPrecision` sets their precision."""

    def __init__(self) -> None:
        self._at_work = ExitStack()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin."""
        self._at_work.enter_context(RoundedProducts())

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """End."""
        self._at_work.close()
