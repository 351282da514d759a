"""What a checkpoint of a stage says about itself beside weights: read without running any code from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lares_pl.config import import_class
from lares_pl.errors import LaresError

if TYPE_CHECKING:
    from lares_pl.stages.ranking import RankingStage

KEY = "lares"  # our entry in a Lightning checkpoint


@dataclass(frozen=True)
class StageCheckpoint:
    """A checkpoint of a stage.

    Args:
        path: the file.
        class_path: class of the stage.
        settings: its hyperparameters, plain.
        catalogue: what the data determined: `items`, `max_length`, `fingerprint`.
        data: hyperparameters of its data module: `dataset`, `max_length`.
        weights: its state dict.
        resumable: whether it holds the state of the optimiser, so that training can go on from it.
        started_from: checkpoint that its run took its first weights from, if any.
    """

    path: Path
    class_path: str
    settings: dict[str, Any]
    catalogue: dict[str, Any]
    data: dict[str, Any]
    weights: dict[str, Tensor]
    resumable: bool
    started_from: str | None = None

    @property
    def stage_name(self) -> str:
        """`SPT` or `RPT`."""
        return self.class_path.rsplit(".", 1)[-1]

    def backbone_weights(self) -> dict[str, Tensor]:
        """State dict of its backbone."""
        prefix = "backbone."
        return {name.removeprefix(prefix): value for name, value in self.weights.items() if name.startswith(prefix)}


def read_checkpoint(path: str | Path) -> StageCheckpoint:
    """Read a checkpoint of a stage; weights stay in the file until they are looked at.

    Raises:
        LaresError: if there is no such file, it can't be read without running code from it, or it is another program's.
    """
    path = Path(path)
    if not path.is_file():
        raise LaresError(f"no checkpoint at {path.absolute()}: train one first, or name another")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises whatever the damaged bytes lead to
        raise LaresError(f"{path}: can't be read as a checkpoint: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict) or KEY not in content:
        raise LaresError(f"{path}: not a checkpoint of a lares_pl stage (its entry {KEY!r} is missing)")
    own = content[KEY]
    return StageCheckpoint(
        path,
        own["class_path"],
        content.get("hyper_parameters", {}),
        own["catalogue"],
        content.get("datamodule_hyper_parameters", {}),
        content["state_dict"],
        bool(content.get("optimizer_states")),
        own.get("started_from"),
    )


def load_stage(path: str | Path) -> RankingStage:
    """The trained stage of a checkpoint, whichever class it is of, on the CPU and in evaluation mode.

    Raises:
        LaresError: as `read_checkpoint`, and if its class can't be imported.
    """
    checkpoint = read_checkpoint(path)
    kind: type[RankingStage] = import_class(checkpoint.class_path)
    return kind.load_from_checkpoint(path, map_location="cpu").eval()
