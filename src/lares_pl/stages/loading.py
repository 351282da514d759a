"""Loading a trained stage from its checkpoint."""

from __future__ import annotations

from pathlib import Path

from lares_pl.errors import LaresError
from lares_pl.serialization import import_class
from lares_pl.stages.base import BaseStage
from lares_pl.stages.checkpoint import read_checkpoint


def load_stage(path: str | Path) -> BaseStage:
    """Load the trained stage of a checkpoint, of whatever class, on the CPU and in evaluation mode.

    Raises:
        LaresError: as `read_checkpoint`, and if its class is not a stage, or the stage cannot be built.
    """
    checkpoint = read_checkpoint(path)
    kind = import_class(checkpoint.class_path)
    if not issubclass(kind, BaseStage):
        raise LaresError(f"{path}: its class {checkpoint.class_path} is not a stage")
    try:
        return kind.load_from_checkpoint(path, map_location="cpu").eval()
    except LaresError as error:
        raise LaresError(f"{path}: {error}") from error
    except Exception as error:  # values of the right type that are invalid for a stage
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LaresError(f"{path}: the stage cannot be built: {reason}") from error
