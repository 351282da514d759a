"""Checkpoints written atomically."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lares_pl.atomic_io import REMEDY, atomic_write
from lares_pl.errors import LaresError


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes next to the target, then renames: if the process dies while saving, the previous checkpoint is unchanged.

    The command line always uses it; from Python, `Trainer(plugins=[AtomicCheckpointIO()])`. (Lightning's own writes to
    `$TMPDIR` and moves the file, which across file systems is a copy that can be interrupted.)
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Save to a local path.

        Raises:
            LaresError: if it cannot be written (no space, no permission); an existing file is left unchanged.
        """
        if storage_options is not None:
            raise LaresError(f"{path}: checkpoints are written to local folders; storage options are not supported")
        write_checkpoint(
            checkpoint, Path(path), "Free some space or choose another folder, then resume from the last one (--ckpt_path last)"
        )


def write_checkpoint(checkpoint: dict[str, Any], path: Path, remedy: str = REMEDY) -> None:
    """Write a file of tensors; arguments and errors as those of `lares_pl.atomic_io.atomic_write`."""
    with atomic_write(path, remedy) as temporary:
        try:
            torch.save(checkpoint, temporary)
        except RuntimeError as error:  # torch's error for an incomplete write
            raise OSError(str(error).splitlines()[0]) from error
