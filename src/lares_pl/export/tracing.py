"""Tracing and writing of programs; an error names the block that can't be exported."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from lares_pl.errors import LaresError
from lares_pl.export.formats import ProgramFormat
from lares_pl.export.programs import BATCH, Depth, GivenLayout, Program, programs
from lares_pl.export.silence import silence
from lares_pl.model.backbone import RecurrentBackbone


def trace(chosen: ProgramFormat, backbone: RecurrentBackbone, depth: Depth, k: int, folder: Path) -> tuple[Program, Program]:
    """Write the programs of a model.

    Args:
        chosen: the format.
        backbone: the model, in evaluation mode.
        depth: the number of steps.
        k: length of the lists.
        folder: the output folder.

    Returns:
        User states and rankings.

    Raises:
        LaresError: if a part can't be traced or translated; with its name and the reason.
    """
    try:
        with silence():
            states, rankings = programs(backbone, depth, k)
            chosen.write(states, rankings, folder)
        return states, rankings
    except Exception as error:  # custom blocks and the exporter can raise anything
        part, reason = _culprit(chosen, backbone) or ("the model", _reason(error))
        raise LaresError(
            f"{part} can't be exported ({reason}). A block is traced once, with any number of histories: plain tensor "
            "operations that do not depend on values, of shapes that follow from x"
        ) from error


class _Alone(nn.Module):
    """One block, called according to the block contract."""

    def __init__(self, block: nn.Module, max_length: int) -> None:
        super().__init__()
        self.block = block
        self.max_length = max_length

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        state: Tensor = self.block(x, GivenLayout(lengths, self.max_length))
        return state


def _culprit(chosen: ProgramFormat, backbone: RecurrentBackbone) -> tuple[str, str] | None:
    """The first block that can't be exported by itself, and the reason."""
    lengths = torch.tensor([backbone.max_length, 1, backbone.max_length])
    x = torch.randn(len(lengths), backbone.max_length, backbone.config.hidden_size)
    for role, blocks in (("pre_block", backbone.pre_blocks), ("core_block", backbone.core_blocks)):
        for block in blocks[:1]:  # the others are of the same class
            alone = _Alone(block, backbone.max_length)
            program = Program(alone, {"x": x, "lengths": lengths}, ({0: BATCH}, {0: BATCH}), ("state",))
            try:
                with silence(), tempfile.TemporaryDirectory() as folder:
                    chosen.write(program, program, Path(folder))
            except Exception as error:
                return f"{role} {type(block).__module__}.{type(block).__qualname__}", _reason(error)
    return None


def _reason(error: BaseException) -> str:
    """The first cause in a chain of errors, which is the most specific."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"
