"""A question to all processes whose answer is read one update later, so that nobody waits for it.

Asked and answered at once, each update would wait for the device and for the slowest process.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

from lares_pl.model.device import on_its_way


class AnyProcess:
    """Whether any process says yes; all processes read the same answers.

    Args:
        device: on which processes exchange tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._alone = not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)
        self._open: tuple[dist.Work, Callable[[], float]] | None = None  # the last question, if its answer was not read

    def exchange(self, yes: bool) -> bool:
        """Ask, and return the answer to the question before; alone, to this one. Waits for no process that asked that one."""
        if self._alone:
            return yes
        before = self._answer()
        answer = torch.full((), float(yes), device=self._device)
        work = dist.all_reduce(answer, dist.ReduceOp.MAX, async_op=True)
        assert work is not None
        if self._device.type == "cuda":
            work.wait()  # the stream waits, not the host
        self._open = work, on_its_way(answer)
        return before

    def decide(self, yes: bool) -> bool:
        """Ask, wait for the answer, and return it; yes as well where that is the answer to the question before."""
        before = self.exchange(yes)
        return self._answer() or before

    def _answer(self) -> bool:
        if self._open is None:
            return False
        (work, answer), self._open = self._open, None
        work.wait()
        return bool(answer())
