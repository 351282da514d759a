"""Hold a block to the contract, once, before anything is trained with it.

A copy of the block reads made-up histories: together, each on its own, and cut short. What comes back must be token states
like those that went in, a history must not notice the others, and where the block says that it is causal, what stands
before a cut must not notice what was cut off. A block that starts out doing nothing (a gate at zero) shows only then.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from lares_pl.data.loading.histories import Histories
from lares_pl.errors import LaresError
from lares_pl.model.blocks import is_causal
from lares_pl.model.layout import Layout
from lares_pl.model.packed_layout import packed
from lares_pl.model.padded_layout import padded

TOLERANCE = 1e-4  # relative to the size of the states, float32; batches of another size round off differently by about 1e-6


@torch.no_grad()
def probe(block: nn.Module, role: str, hidden_size: int, max_length: int, pads: bool) -> None:
    """Run a copy of `block` on short histories and check what it returns and what it says of itself.

    Args:
        block: the block; neither it nor the random state is changed.
        role: what it is in the backbone, for messages (`pre_block`, `core_block`).
        hidden_size: d.
        max_length: longest history L.
        pads: whether it will get the padded form.

    Raises:
        LaresError: what was expected and what came back.
    """
    like = next((p for p in block.parameters() if p.is_floating_point()), torch.empty(0))
    if like.device.type == "meta":  # no values to look at yet
        return
    _Probe(copy.deepcopy(block).eval(), role, like, max_length, pads).run(hidden_size)


class _Probe:
    """One block under examination."""

    def __init__(self, block: nn.Module, role: str, like: Tensor, max_length: int, pads: bool) -> None:
        self.block = block
        self.kind = type(block).__name__
        self.name = f"{role} {type(block).__module__}.{type(block).__qualname__}"
        self.like = like
        self.max_length = max_length
        self.pads = pads
        exact = like.dtype in (torch.float32, torch.float64)
        self.tolerance = TOLERANCE if exact else 0.05

    def run(self, hidden_size: int) -> None:
        """All checks."""
        lengths = [max(1, self.max_length // 2), self.max_length, max(1, self.max_length - 1)]
        generator = torch.Generator(self.like.device).manual_seed(0)
        shape = (len(lengths), self.max_length, hidden_size)
        x = torch.randn(shape, generator=generator, device=self.like.device, dtype=self.like.dtype)
        together = self.states(x, lengths)
        for row, length in enumerate(lengths):
            alone = self.states(x[row : row + 1], [length])[0]
            if self.differ(alone[:length], together[row, :length]):
                raise LaresError(
                    f"{self.name}: the states of one history change with the items of another. A block may only mix "
                    f"positions of the same history{self.hint()}"
                )
        if is_causal(self.block) and self.max_length > 1:
            self.check_causality(x[1], together[1])

    def check_causality(self, x: Tensor, states: Tensor) -> None:
        """Cut a history of full length, put other items behind the cut: nobody before it may notice."""
        cut = (self.max_length + 1) // 2
        later = torch.where(torch.arange(self.max_length, device=x.device)[:, None] < cut, x, -10 * x)
        for what, length in (("changes", self.max_length), ("is cut off", cut)):
            if self.differ(self.states(later[None], [length])[0, :cut], states[:cut]):
                raise LaresError(
                    f"{self.name}: says `causal = True`, but states change when a later part of their history {what}. Training "
                    "on every position at once would leak each target into the state that predicts it. Say `causal = False` "
                    f"in {self.kind}, or keep later positions out"
                )

    def hint(self) -> str:
        """What is easily forgotten."""
        if self.pads:
            return " (x is [histories, positions, hidden_size]: nn.GRU and its like need batch_first=True)"
        return (
            "; packed tokens [M, d] of all histories lie one after the other: use layout.pad and layout.unpad, or say "
            f"`padding_matters = True` in {self.kind} to get [R, L, d]"
        )

    def differ(self, a: Tensor, b: Tensor) -> bool:
        """Whether states `[*, d]` differ by more than round-off."""
        size = b.float().norm(dim=-1).mean().clamp(min=1e-12)
        return bool(((a - b).float().norm(dim=-1) > self.tolerance * size).any())

    def states(self, x: Tensor, lengths: list[int]) -> Tensor:
        """What the block makes of `x[:, :length]`, `[R, L, d]`; 0 at padding in the packed form."""
        each = torch.tensor(lengths, device=x.device)
        histories = Histories(torch.ones(sum(lengths), dtype=torch.int64, device=x.device), each, max(lengths))
        layout: Layout = padded(histories, self.max_length) if self.pads else packed(histories)
        real = torch.arange(self.max_length, device=x.device) < each[:, None]
        if self.pads:
            return self.call(x.clone(), layout)
        out = torch.zeros_like(x)
        out[real] = self.call(x[real], layout)
        return out

    def call(self, x: Tensor, layout: Layout) -> Tensor:
        """What the block returns, its form checked."""
        shape, dtype = list(x.shape), x.dtype
        axes = "[histories, positions, hidden_size]" if self.pads else "[tokens, hidden_size]"
        expected = f"expected token states like its input: a tensor {shape} {axes} of {dtype}"
        try:
            with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):  # each call draws the same
                y = self.block(x, layout)
        except LaresError:
            raise
        except Exception as error:  # whatever a user's own code raises
            called = f"block(x, layout) with x {shape} {axes}"
            raise LaresError(f"{self.name}: {called} failed with {type(error).__name__}: {error}; {expected} back") from error
        if not isinstance(y, Tensor):
            tuples = " (nn.GRU, nn.LSTM and nn.MultiheadAttention return the states first: take [0])"
            raise LaresError(f"{self.name}: returned a {type(y).__name__}{tuples if isinstance(y, tuple) else ''}; {expected}")
        if list(y.shape) != shape or y.dtype != dtype:
            raise LaresError(f"{self.name}: returned a tensor {list(y.shape)} of {y.dtype}; {expected}")
        if not bool(y.isfinite().all()):
            raise LaresError(f"{self.name}: returned values that are not finite for ordinary input; {expected}, all finite")
        return y
