"""Reading the checkpoint of a stage without running any code from it.

The file is not trusted: every byte is verified against its checksum, only tensors and plain values are loaded, and a class that
it names is instantiated only if it is of the expected kind (a stage, a block, an optimiser). A class is found by importing its
module, which custom blocks require; the file can name a module but cannot contain one.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from lares_pl.data.dataset.ids import unpacked_ids
from lares_pl.errors import LaresError
from lares_pl.runs import BEST

KEY = "lares"  # our entry in a Lightning checkpoint
_ARCHIVE = b"PK\x03\x04"  # what a file of torch begins with


@dataclass(frozen=True)
class StageCheckpoint:
    """A checkpoint of a stage.

    Args:
        path: the file.
        class_path: class of the stage.
        settings: its hyperparameters, as plain values.
        catalogue: properties of the data: `items`, `max_length`, `fingerprint`, `item_ids` (packed), `text`.
        data: hyperparameters of its data module: `dataset`, `max_length`.
        weights: its state dict.
        resumable: whether it contains the state of the optimiser, so that training can be resumed.
        initial_checkpoint: the checkpoint that initialised the weights of its run, if any; where it is now, if the run's folder
            was moved with it.
        seed: the seed of its run, if known.
    """

    path: Path
    class_path: str
    settings: dict[str, Any]
    catalogue: dict[str, Any]
    data: dict[str, Any]
    weights: dict[str, Tensor]
    resumable: bool
    initial_checkpoint: str | None = None
    seed: int | None = None

    @property
    def stage_name(self) -> str:
        """`SPT` or `RPT`."""
        return self.class_path.rsplit(".", 1)[-1]

    @property
    def item_ids(self) -> pa.Array | None:
        """Original ids of items 1 … N, if the checkpoint contains them.

        Raises:
            LaresError: if they are damaged, or their number is wrong.
        """
        packed = self.catalogue.get("item_ids")
        if packed is None:
            return None
        try:
            ids = unpacked_ids(packed)
        except LaresError as error:
            raise LaresError(f"{self.path}: {error}") from error
        if len(ids) != self.catalogue["items"]:
            raise LaresError(f"{self.path}: {len(ids):,} item ids for {self.catalogue['items']:,} items")
        return ids

    def backbone_weights(self) -> dict[str, Tensor]:
        """State dict of its backbone."""
        prefix = "backbone."
        return {name.removeprefix(prefix): value for name, value in self.weights.items() if name.startswith(prefix)}

    def holds_initial_weights(self) -> bool:
        """Whether its weights equal those of the checkpoint that initialised its run; False if that file is gone."""
        if self.initial_checkpoint is None or not Path(self.initial_checkpoint).is_file():
            return False
        own, initial = self.backbone_weights(), read_checkpoint(self.initial_checkpoint).backbone_weights()
        return own.keys() == initial.keys() and all(torch.equal(own[name], value) for name, value in initial.items())


def read_checkpoint(path: str | Path) -> StageCheckpoint:
    """Read a checkpoint of a stage; weights are memory-mapped, not loaded.

    Raises:
        LaresError: if the file does not exist, is damaged, or is not a checkpoint of a stage.
    """
    path = Path(path)
    if path.is_dir() and (inside := sorted(path.glob("**/best.ckpt"))):
        raise LaresError(f"{path} is a folder; name a checkpoint in it, such as {inside[0]}")
    if not path.is_file():
        raise LaresError(f"no checkpoint at {path.absolute()}: train one first, or give another")
    with path.open("rb") as file:
        if file.read(len(_ARCHIVE)) != _ARCHIVE:  # also the first bytes of one that was cut
            raise LaresError(f"{path}: not a checkpoint of a lares_pl stage; expected a file such as runs/RUN/STAGE/{BEST}")
    try:
        damaged = _damaged(path, path.stat().st_size, path.stat().st_mtime_ns)
        content = None if damaged else torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # damaged bytes can cause any error in zipfile and torch
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LaresError(f"{path}: can't be read as a checkpoint: {reason}. Use another, or train again") from error
    if damaged:
        raise LaresError(f"{path}: damaged (its part {damaged} has changed since it was written). Use another, or train again")
    if not isinstance(content, dict) or KEY not in content:
        raise LaresError(f"{path}: not a checkpoint of a lares_pl stage (its entry {KEY!r} is missing)")
    if broken := _broken(content):
        raise LaresError(f"{path}: not a whole checkpoint of a lares_pl stage: its entry {broken} is not what it should be")
    own = content[KEY]
    return StageCheckpoint(
        path,
        own["class_path"],
        content["hyper_parameters"],
        own["catalogue"],
        content.get("datamodule_hyper_parameters") or {},
        content["state_dict"],
        bool(content.get("optimizer_states")),
        _found_again(own.get("initial_checkpoint"), path),
        own.get("seed"),
    )


def _found_again(initial: str | None, path: Path) -> str | None:
    """Path of the checkpoint that a run started from; in the run's folder of now, if that was moved since.

    Args:
        initial: its path when the run started, `…/RUN/STAGE/checkpoints/FILE`.
        path: a checkpoint of the run.
    """
    if initial is None or Path(initial).is_file() or min(len(each.absolute().parents) for each in (Path(initial), path)) < 3:
        return initial
    run = Path(initial).parents[2]
    now = path.absolute().parents[2] / Path(initial).relative_to(run)
    return str(now) if now.is_file() and not run.exists() else initial


@lru_cache
def _damaged(path: Path, size: int, changed: int) -> str | None:
    """Return a part of the file that does not match its checksum, if any; torch itself does not check.

    Args:
        path: the file, a .zip archive as torch writes it.
        size, changed: its size and modification time: an unchanged file is checked only once.
    """
    with zipfile.ZipFile(path) as file:
        return file.testzip()


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_text_or_none(value: Any) -> bool:
    return isinstance(value, str | None)


# the entries of every checkpoint of a stage, and what may be missing
_ENTRIES: dict[tuple[str, ...], Callable[[Any], bool]] = {
    (KEY, "class_path"): _is_text,
    (KEY, "initial_checkpoint"): _is_text_or_none,
    (KEY, "seed"): lambda value: isinstance(value, int | None),
    (KEY, "catalogue", "items"): _is_count,
    (KEY, "catalogue", "max_length"): _is_count,
    (KEY, "catalogue", "fingerprint"): _is_text_or_none,
    (KEY, "catalogue", "item_ids"): lambda value: (
        value is None or (isinstance(value, dict) and all(_is_text(k) and isinstance(v, Tensor) for k, v in value.items()))
    ),
    (KEY, "catalogue", "text"): lambda value: value is None or isinstance(value, dict),
    (KEY, "catalogue", "text", "size"): lambda value: value is None or _is_count(value),
    (KEY, "catalogue", "text", "precision"): lambda value: value in (None, "float32", "float16"),
    # names with an underscore are Lightning's own; it would instantiate a class named there
    ("hyper_parameters",): lambda value: isinstance(value, dict) and all(_is_text(key) and key[:1] != "_" for key in value),
    ("hyper_parameters", "backbone"): lambda value: isinstance(value, dict) and all(map(_is_text, value)),
    ("datamodule_hyper_parameters",): lambda value: (
        value is None or (isinstance(value, dict) and set(value) <= {"dataset", "max_length"})
    ),
    ("datamodule_hyper_parameters", "dataset"): _is_text_or_none,
    ("datamodule_hyper_parameters", "max_length"): lambda value: value is None or _is_count(value),
    ("state_dict",): lambda value: (
        isinstance(value, dict) and all(_is_text(name) and isinstance(weight, Tensor) for name, weight in value.items())
    ),
}


def _broken(content: Mapping[str, Any]) -> str | None:
    """The first entry that is invalid."""
    for keys, holds in _ENTRIES.items():
        value: Any = content
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        if not holds(value):
            return ".".join(keys)
    return None
