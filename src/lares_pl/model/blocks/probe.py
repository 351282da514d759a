"""Hold a block to the contract, once, before anything is trained with it.

The block reads two made-up histories. What comes back must be token states like those that went in; where the block
says that it is causal, earlier positions must not notice a later item; and no history may notice another.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lares_pl.data.histories import Histories
from lares_pl.errors import LaresError
from lares_pl.model.blocks import is_causal
from lares_pl.model.layout import Layout, packed, padded

TOLERANCE = 1e-3  # relative to the size of the states; round-off is far below, a leak far above


@torch.no_grad()
def probe(block: nn.Module, role: str, hidden_size: int, max_length: int, pads: bool) -> None:
    """Run `block` on two short histories and check what it returns and what it says of itself.

    Nothing of the caller's is changed: the block's mode and the random state are put back.

    Args:
        block: the block.
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
    name = f"{role} {type(block).__module__}.{type(block).__qualname__}"
    lengths = torch.tensor([min(2, max_length), max_length], device=like.device)
    histories = Histories(torch.ones(int(lengths.sum()), dtype=torch.int64, device=like.device), lengths, max_length)
    layout = padded(histories, max_length) if pads else packed(histories)
    modes = {module: module.training for module in block.modules()}
    generator = torch.Generator(like.device).manual_seed(0)
    x = torch.randn(*layout.shape, hidden_size, generator=generator, device=like.device, dtype=like.dtype)
    block.eval()
    try:
        _check_independence(block, name, x, layout, _call(block, name, x, layout))
    finally:
        for module, mode in modes.items():
            module.training = mode


def _call(block: nn.Module, name: str, x: Tensor, layout: Layout) -> Tensor:
    """What the block returns, checked."""
    axes = "[tokens, hidden_size]" if x.ndim == 2 else "[histories, positions, hidden_size]"
    expected = f"expected token states like its input: a tensor {list(x.shape)} {axes} of {x.dtype}"
    try:
        with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):  # each call draws the same
            y = block(x, layout)
    except LaresError:
        raise
    except Exception as error:  # whatever a user's own code raises
        called = f"block(x, layout) with x {list(x.shape)} {axes}"
        raise LaresError(f"{name}: {called} failed with {type(error).__name__}: {error}; {expected} back") from error
    if not isinstance(y, Tensor):
        hint = " (nn.GRU, nn.LSTM and nn.MultiheadAttention return the states first: take [0])" if isinstance(y, tuple) else ""
        raise LaresError(f"{name}: returned a {type(y).__name__}{hint}; {expected}")
    if y.shape != x.shape or y.dtype != x.dtype:
        raise LaresError(f"{name}: returned a tensor {list(y.shape)} of {y.dtype}; {expected}")
    if not bool(y.isfinite().all()):
        raise LaresError(f"{name}: returned values that are not finite for ordinary input; {expected}, all finite")
    return y


def _check_independence(block: nn.Module, name: str, x: Tensor, layout: Layout, before: Tensor) -> None:
    """The last token of the longer history changes; who may notice?"""
    last_row = layout.row_of_token() == layout.rows - 1
    at_end = last_row & (layout.positions == layout.longest - 1)
    changed = torch.where(at_end[..., None], -x, x)
    difference = (_call(block, name, changed, layout) - before).norm(dim=-1) / before.norm(dim=-1).mean().clamp(min=1e-12)
    noticed = difference > TOLERANCE
    if bool((noticed & ~last_row).any()):
        raise LaresError(
            f"{name}: the states of one history change with the items of another. A block may only mix positions of the "
            "same history"
            + (
                f"; packed tokens [M, d] of all histories lie one after the other: use layout.pad and "
                f"layout.unpad, or say `padding_matters = True` in {type(block).__name__} to get [R, L, d]"
                if x.ndim == 2
                else ""
            )
        )
    if is_causal(block) and bool((noticed & ~at_end).any()):
        raise LaresError(
            f"{name}: says `causal = True`, but states change with a later item of their history. Training on every "
            f"position at once would leak each target into the state that predicts it. Say `causal = False` in "
            f"{type(block).__name__}, or keep later positions out"
        )
