"""A prepared dataset: flat sequences, their leave-one-out split, and the instances cut from them.

An instance is a target position in the flat array of all items; its history is what stands before it, at most L items of
the same user. Instances are numbers until a batch takes some of them: a process holds no list of them, and what it reads of
the sequences it shares with the other processes of its machine.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from lares_pl.data.dataset.format import FORMAT_VERSION
from lares_pl.data.dataset.ids import packed_ids
from lares_pl.data.dataset.mmap_cache import Flat, flat_copies, flat_of, sequence_files
from lares_pl.errors import LaresError

Split = Literal["validation", "test", "next"]


@dataclass(frozen=True)
class HistorySpans:
    """Where the histories of some instances are cut from the flat array of items, and their targets stand.

    Args:
        users: user index of each, `[B]`.
        starts: where the user's items begin, `[B]`.
        ends: where the target stands; the history is what stands from `starts` up to here, `[B]`.
    """

    users: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)


class Instances(ABC):
    """Instances 0 … n - 1 of a split.

    Attributes:
        has_target: False where the history is a user's whole sequence and nothing stands behind it.
    """

    has_target = True

    @abstractmethod
    def __len__(self) -> int:
        """Their number n."""

    @abstractmethod
    def take(self, numbers: np.ndarray) -> HistorySpans:
        """Some of them, `[B]`."""

    def all(self) -> HistorySpans:
        """All of them; for small data."""
        return self.take(np.arange(len(self)))


@dataclass(frozen=True)
class TrainingInstances(Instances):
    """Every item of a user from the second on, the last two held out, with all items before it (docs/method.md "Instances").

    Users with fewer than three items have nothing held out: all their items train.

    Args:
        offsets: where each user's items begin, and the end, `[users + 1]`.
        kept: numbers of those that count, ascending; all where None.
    """

    offsets: np.ndarray
    kept: np.ndarray | None = None

    @cached_property
    def firsts(self) -> np.ndarray:
        """Number of the first instance of each user, and the number of all, `[users + 1]`."""
        lengths = np.diff(self.offsets)
        counts = np.maximum(np.where(lengths < 3, lengths - 1, lengths - 3), 0)
        return np.concatenate([[0], counts.cumsum()])

    def __len__(self) -> int:
        return int(self.firsts[-1]) if self.kept is None else len(self.kept)

    def take(self, numbers: np.ndarray) -> HistorySpans:
        """Some of them, `[B]`."""
        numbers = numbers if self.kept is None else self.kept[numbers].astype(np.int64)
        users = np.searchsorted(self.firsts, numbers, side="right") - 1
        starts = self.offsets[users]
        return HistorySpans(users, starts, starts + 1 + numbers - self.firsts[users])

    def keeping(self, kept: np.ndarray) -> TrainingInstances:
        """Those of a mask over all."""
        numbers = np.flatnonzero(kept)
        return TrainingInstances(self.offsets, numbers.astype(np.uint32) if len(kept) < 1 << 32 else numbers)


@dataclass(frozen=True)
class HeldOut(Instances):
    """One instance a user: its target is the last item but one (validation), the last (test), or stands behind all (next).

    Args:
        offsets: where each user's items begin, and the end, `[users + 1]`.
        split: which.
        users: those with an item to hold out, ascending, `[n]`; filled in.
    """

    offsets: np.ndarray
    split: Split
    users: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        fewest = 1 if self.split == "next" else 3
        object.__setattr__(self, "users", np.flatnonzero(np.diff(self.offsets) >= fewest))

    @property
    def has_target(self) -> bool:  # type: ignore[override]
        """Whether there is a target to rank."""
        return self.split != "next"

    def __len__(self) -> int:
        return len(self.users)

    def take(self, numbers: np.ndarray) -> HistorySpans:
        """Some of them, `[B]`."""
        users = self.users[numbers]
        from_end = {"next": 0, "test": 1, "validation": 2}[self.split]
        return HistorySpans(users, self.offsets[users], self.offsets[users + 1] - from_end)


def check_dataset(path: str | Path | None) -> Path:
    """The directory of a prepared dataset.

    Raises:
        LaresError: if none is named, or none is there.
    """
    if path is None:
        raise LaresError("no dataset: name the directory of a prepared dataset (--data.dataset DIR)")
    folder = Path(path)
    if not (folder / "dataset.json").is_file():
        raise LaresError(
            f"no prepared dataset at {folder.absolute()} (no dataset.json there): "
            "make one with `lares prepare FILE --output DIR`, or name another with --data.dataset"
        )
    return folder


@contextmanager
def _whole(folder: Path) -> Iterator[None]:
    """Turn whatever damaged files lead to into one error."""
    try:
        yield
    except LaresError:
        raise
    except Exception as error:
        raise LaresError(f"{folder}: not a whole prepared dataset: {error}. Prepare it again.") from error


class SequenceDataset:
    """Sequences of all users and the catalogue.

    Args:
        flat: the sequences.
        user_ids: original ids of the users, or how to read them.
        item_ids: original ids of items 1 … N.
        path: where it was read from, for messages.
    """

    def __init__(self, flat: Flat, user_ids: pa.Array | None, item_ids: pa.Array, path: str) -> None:
        self.flat = flat
        self.items = flat.items
        self.offsets = flat.offsets
        self.item_ids = item_ids
        self.path = path
        self._user_ids = user_ids

    @staticmethod
    def of_arrays(items: np.ndarray, offsets: np.ndarray, user_ids: pa.Array, item_ids: pa.Array, path: str) -> SequenceDataset:
        """Sequences in memory.

        Args:
            items: of all users one after the other, oldest first, `[n]` int32; 1 … N.
            offsets: where each user's items begin, and the end, `[users + 1]` int64.
            user_ids, item_ids, path: as of the class.
        """
        return SequenceDataset(flat_of(items, offsets, len(item_ids)), user_ids, item_ids, path)

    @staticmethod
    def load(path: str | Path) -> SequenceDataset:
        """Open a prepared dataset.

        Raises:
            LaresError: if there is none, it is incomplete, or its parts don't belong together.
        """
        folder = check_dataset(path)
        with _whole(folder):
            description: dict[str, Any] = json.loads((folder / "dataset.json").read_text())
            version = description.get("format_version")
            if version != FORMAT_VERSION:
                raise LaresError(f"{folder}: format version {version}, this package reads {FORMAT_VERSION}: prepare it again")
            users, items, interactions = (int(description[name]) for name in ("users", "items", "interactions"))
            catalogue = pq.read_table(folder / "items.parquet", columns=["item", "item_id"], page_checksum_verification=True)
            if interactions == 0:
                raise LaresError(f"{folder}: the dataset is empty: prepare it again from a file with interactions")
            numbers = catalogue["item"]
            if not pa.types.is_integer(numbers.type) or not np.array_equal(numbers.to_numpy(), np.arange(1, items + 1)):
                raise LaresError(
                    f"{folder}: items.parquet does not list the items 1 … {items} that dataset.json tells of: the files don't "
                    "belong together. Prepare the dataset again"
                )
            if catalogue["item_id"].null_count:
                raise LaresError(f"{folder}: items.parquet has items without an id. Prepare the dataset again")
            flat = flat_copies(folder, users, interactions, items)
            return SequenceDataset(flat, None, catalogue["item_id"].combine_chunks(), str(folder))

    @cached_property
    def user_ids(self) -> pa.Array:
        """Original ids of the users, read when first asked for."""
        if self._user_ids is not None:
            return self._user_ids
        with _whole(Path(self.path)):
            files = sequence_files(Path(self.path))
            parts = [pq.read_table(path, columns=["user_id"], page_checksum_verification=True) for path in files]
            ids = pa.concat_tables(parts)["user_id"].combine_chunks()
            if len(ids) != self.users or ids.null_count:
                raise LaresError(f"{self.path}: its sequences name {len(ids)} of {self.users} users. Prepare it again")
            return ids

    @property
    def catalogue_size(self) -> int:
        """Number of items N."""
        return len(self.item_ids)

    @property
    def users(self) -> int:
        """Number of users."""
        return len(self.offsets) - 1

    def catalogue_fingerprint(self) -> str:
        """Checksum of the original item ids in order: two datasets agree on item indices if and only if it is equal."""
        digest = hashlib.sha256()
        for start in range(0, self.catalogue_size, 1 << 16):
            for item_id in self.item_ids.slice(start, 1 << 16).to_pylist():
                digest.update(str(item_id).encode() + b"\0")
        return digest.hexdigest()[:16]

    @cached_property
    def packed_item_ids(self) -> dict[str, Tensor]:
        """Original ids of items 1 … N as a checkpoint carries them."""
        return packed_ids(self.item_ids)

    def text_vectors(self) -> np.ndarray | None:
        """Text vectors of the catalogue, `[N + 1, p]` float32 or float16, row 0 (padding) zero; None where there are none.

        Read through a memory map into one array, row by row, so that nothing is held twice.
        """
        path = Path(self.path) / "items.parquet"
        with _whole(Path(self.path)), pq.ParquetFile(path, memory_map=True, page_checksum_verification=True) as file:
            if "embedding" not in file.schema_arrow.names:
                return None
            kind = file.schema_arrow.field("embedding").type
            if not pa.types.is_fixed_size_list(kind) or not pa.types.is_floating(kind.value_type):
                raise LaresError(f"{path}: `embedding` holds {kind}, no vectors of one size. Prepare the dataset again")
            vectors = np.zeros((self.catalogue_size + 1, kind.list_size), dtype=kind.value_type.to_pandas_dtype())
            row = 1
            for part in file.iter_batches(batch_size=4096, columns=["embedding"]):
                values = part.column(0).flatten().to_numpy().reshape(len(part), kind.list_size)
                vectors[row : row + len(part)] = values
                row += len(part)
        return vectors

    # ------------------------------------------------------------ instances

    @cached_property
    def training_instances(self) -> TrainingInstances:
        """What training learns from."""
        return TrainingInstances(self.offsets)

    def held_out(self, split: Split) -> HeldOut:
        """One instance a user."""
        return HeldOut(self.offsets, split)

    def targets(self, spans: HistorySpans) -> np.ndarray:
        """Target item of each instance, `[B]`."""
        targets: np.ndarray = self.items[spans.ends]
        return targets
