"""Keeps a gradient that is not finite from the weights, and says which update it was.

On a CPU this is known before the update. Elsewhere asking for it would stop the host in each update until the device has
caught up: a fused optimiser is told on the device and leaves weights and its state as they are, and the host reads the answer
an update later, when it has long been there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor
from torch.optim import Optimizer

from lares_pl.model.device import on_its_way
from lares_pl.stages.distributed import total_norm


class Update(NamedTuple):
    """An update, and what an error says about it."""

    number: int  # from 1
    epoch: int
    values: dict[str, Tensor | float | int]  # parts of the loss of its last batch
    instances: Tensor  # of that batch


class GradientCheck:
    """Checks one update after the other.

    Args:
        waits: whether the host may wait for the device.
    """

    def __init__(self, waits: bool) -> None:
        self.waits = waits
        self._open: tuple[Callable[[], float], Update] | None = None

    def check(self, parameters: Sequence[Tensor], optimizer: Optimizer, update: Update) -> Update | None:
        """Keep the gradient of an update from the weights if it is not finite.

        Args:
            parameters: of the optimiser, with their gradients.
            optimizer: which is about to make its step.
            update: which it is.

        Returns:
            An update that was left out and not yet named: this one, or the one before; None if there is none.
        """
        norm = total_norm(p.grad for p in parameters if p.grad is not None)
        # torch's fused optimisers, which its GradScaler asks in the same way
        if not self.waits and getattr(optimizer, "_step_supports_amp_scaling", False):
            before = self.last()
            optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
            self._open = on_its_way(optimizer.found_inf), update  # type: ignore[attr-defined]
            return before
        if bool(norm.isfinite()):
            return None
        for parameter in parameters:
            parameter.grad = None
        return update

    def last(self) -> Update | None:
        """The last update, if it was left out and not yet named."""
        answer, self._open = self._open, None
        if answer is None:
            return None
        skipped, update = answer
        return update if skipped() else None
