"""Checkpoints that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lares_pl.atomic_io import REMEDY, atomic_write
from lares_pl.errors import LaresError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, then renames: a process that dies while saving leaves the former checkpoint as it was.

    The command uses it always; from Python, `Trainer(plugins=[AtomicCheckpointIO()])`. (Lightning's own writes to `$TMPDIR`
    and moves, which across file systems is a copy that can be cut short.)
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save to a local path.

        Raises:
            LaresError: if it can't be written (no space, no permission); what was there before still is.
        """
        if storage_options is not None:
            raise LaresError(f"{path}: checkpoints are written to local folders; storage options say nothing to them")
        write_checkpoint(
            checkpoint, Path(path), "Make room or name another folder, then resume from the last one (--ckpt_path last)"
        )


def write_checkpoint(checkpoint: dict[str, Any], path: Path, remedy: str = REMEDY) -> None:
    """Write a file of tensors; arguments and errors as those of `lares_pl.atomic_io.atomic_write`."""
    with atomic_write(path, remedy) as temporary:
        try:
            torch.save(checkpoint, temporary)
        except RuntimeError as error:  # so torch's writer says that a write fell short
            raise OSError(str(error).splitlines()[0]) from error
