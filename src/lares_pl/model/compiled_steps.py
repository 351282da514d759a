"""Reasoning steps compiled as a whole: one program for a number of histories, called once for each step.

The steps of all batches have the same shapes if histories are padded (`StaticLayout`), so that depth varies by calling the
program more or less often. On CUDA the program and its gradient are CUDA graphs: one launch instead of about a hundred.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from lares_pl.model.layout import Layout

Step = Callable[[Tensor, Tensor, Layout], Tensor]
MULTIPLE = 64  # numbers of histories that programs are made for
PROGRAMS = 64  # for so many numbers of histories; PyTorch's default of 8 is fewer than a group of trajectories can have


class CompiledSteps:
    """A backbone's steps, compiled; as they are, after one warning, if a block of theirs can't be.

    Args:
        step: `[*shape, d]`, `[*shape, d]`, layout -> `[*shape, d]`.
        last_step: the same at the last position of each history alone, `[R, d]`.
        device: where they run.
    """

    def __init__(self, step: Step, last_step: Step, device: torch.device) -> None:
        mode = "reduce-overhead" if device.type == "cuda" else None
        torch._dynamo.config.recompile_limit = max(PROGRAMS, torch._dynamo.config.recompile_limit)
        self._eager = {"step": step, "last_step": last_step}
        self._compiled: dict[str, Step] = {
            name: torch.compile(function, fullgraph=True, dynamic=False, mode=mode) for name, function in self._eager.items()
        }

    def step(self, state: Tensor, context: Tensor, layout: Layout) -> Tensor:
        """One step."""
        return self._call("step", state, context, layout)

    def last_step(self, state: Tensor, context: Tensor, layout: Layout) -> Tensor:
        """One step at the last position of each history."""
        return self._call("last_step", state, context, layout)

    def _call(self, name: str, state: Tensor, context: Tensor, layout: Layout) -> Tensor:
        layout.prepare()
        if torch.is_grad_enabled() and not state.requires_grad:
            state = state.detach().requires_grad_()  # so that the first step is the program of the others
        try:
            return self._compiled[name](state, context, layout)
        except Exception as error:  # a block of a user can fail to be traced or compiled in any way
            if self._compiled[name] is self._eager[name]:
                raise
            result = self._eager[name](state, context, layout)  # raises if it is not compilation that fails
            self._compiled = dict(self._eager)
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            warnings.warn(
                f"compile_core: the reasoning step can't be compiled and runs as it is ({type(error).__name__}: {reason})",
                stacklevel=2,
            )
            return result
