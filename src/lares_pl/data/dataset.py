"""A prepared dataset in memory: flat sequences, their leave-one-out split, and the instances cut from them.

An instance is a target position in the flat array of all items; its history is what stands before it, at most L items of
the same user. Nothing is copied until a batch is made; processes of one machine share what they map.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lares_pl.data.flat import map_flat
from lares_pl.data.prepare import FORMAT_VERSION
from lares_pl.errors import LaresError

Split = Literal["validation", "test", "next"]


@dataclass(frozen=True)
class Instances:
    """Where histories and targets lie in the flat array of items.

    Args:
        users: user index of each instance, `[n]`.
        starts: where the user's items begin, `[n]`.
        ends: where the target stands; the history is what stands from `starts` up to here, `[n]`.
        has_target: False where the history is a user's whole sequence and nothing stands behind it.
    """

    users: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    has_target: bool = True

    def __len__(self) -> int:
        return len(self.ends)

    def take(self, kept: np.ndarray) -> Instances:
        """A selection by mask or index."""
        return Instances(self.users[kept], self.starts[kept], self.ends[kept], self.has_target)


def _decoded(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Items and offsets of lists of items."""
    sequences = column.combine_chunks()
    lengths = pc.list_value_length(sequences).to_numpy(zero_copy_only=False).astype(np.int64)
    items = sequences.flatten().to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
    return items, np.concatenate([[0], lengths.cumsum()])


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


class SequenceDataset:
    """Sequences of all users and the catalogue.

    Args:
        items: items of all users one after the other, oldest first, `[n]` int32; 1 … N.
        offsets: where each user's items begin, and the end, `[users + 1]` int64.
        user_ids: original ids of the users.
        item_ids: original ids of items 1 … N.
        path: where it was read from, for messages.
    """

    def __init__(self, items: np.ndarray, offsets: np.ndarray, user_ids: pa.Array, item_ids: pa.Array, path: str) -> None:
        self.items = items
        self.offsets = offsets
        self.user_ids = user_ids
        self.item_ids = item_ids
        self.path = path

    @staticmethod
    def load(path: str | Path) -> SequenceDataset:
        """Read a prepared dataset.

        Raises:
            LaresError: if there is none, it is incomplete, or its parts don't belong together.
        """
        folder = check_dataset(path)
        try:
            description: dict[str, Any] = json.loads((folder / "dataset.json").read_text())
            parts = sorted((folder / "sequences").glob("part-*.parquet")) or [folder / "sequences.parquet"]
            mapped = map_flat(folder, description)
            columns = ["user_id"] if mapped else ["user_id", "items"]
            table = pa.concat_tables([pq.read_table(part, columns=columns) for part in parts])
            catalogue = pq.read_table(folder / "items.parquet", columns=["item", "item_id"])
        except (OSError, ValueError, KeyError) as error:  # ArrowInvalid and JSONDecodeError are ValueErrors
            raise LaresError(f"{folder}: not a whole prepared dataset: {error}. Prepare it again.") from error
        if description.get("format_version") != FORMAT_VERSION:
            raise LaresError(
                f"{folder}: format version {description.get('format_version')}, this package reads {FORMAT_VERSION}: "
                "prepare it again"
            )
        items, offsets = mapped or _decoded(table["items"])
        if len(items) == 0:
            raise LaresError(f"{folder}: the dataset is empty: prepare it again from a file with interactions")
        known = catalogue.num_rows
        if items.min() < 1 or items.max() > known:
            raise LaresError(f"{folder}: items from {items.min()} to {items.max()} in a catalogue of {known}: prepare it again")
        return SequenceDataset(
            items,
            offsets,
            table["user_id"].combine_chunks(),
            catalogue["item_id"].combine_chunks(),
            str(folder),
        )

    @property
    def catalogue_size(self) -> int:
        """Number of items N."""
        return len(self.item_ids)

    @property
    def users(self) -> int:
        """Number of users."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Number of items of each user, `[users]`."""
        return np.diff(self.offsets)

    def catalogue_fingerprint(self) -> str:
        """Checksum of the original item ids in order: two datasets agree on item indices if and only if it is equal."""
        digest = hashlib.sha256()
        for item_id in self.item_ids.to_pylist():
            digest.update(str(item_id).encode() + b"\0")
        return digest.hexdigest()[:16]

    def text_vectors(self) -> np.ndarray | None:
        """Text vectors of the catalogue, `[N + 1, p]` float32 or float16, row 0 (padding) zero; None where there are none.

        Read through a memory map into one array, row by row, so that nothing is held twice.
        """
        path = Path(self.path) / "items.parquet"
        with pq.ParquetFile(path, memory_map=True) as file:
            if "embedding" not in file.schema_arrow.names:
                return None
            kind = file.schema_arrow.field("embedding").type
            vectors = np.zeros((self.catalogue_size + 1, kind.list_size), dtype=kind.value_type.to_pandas_dtype())
            row = 1
            for part in file.iter_batches(batch_size=4096, columns=["embedding"]):
                values = part.column(0).flatten().to_numpy().reshape(len(part), kind.list_size)
                vectors[row : row + len(part)] = values
                row += len(part)
        return vectors

    # ------------------------------------------------------------ instances

    def training_instances(self) -> Instances:
        """Every item from a user's second on, the last two held out, with all items before it (METHOD "Instances").

        Users with fewer than three items have nothing held out: all their items train.
        """
        lengths = self.lengths
        targets = np.where(lengths < 3, lengths - 1, lengths - 3)  # training targets of each user
        users = np.repeat(np.arange(self.users), targets)
        starts = self.offsets[:-1][users]
        first = np.concatenate([[0], targets.cumsum()])[:-1]
        return Instances(users, starts, starts + 1 + np.arange(len(users)) - first[users])

    def held_out(self, split: Split) -> Instances:
        """One instance a user: the target is the last item but one (validation) or the last (test).

        `next` gives every user's whole sequence as history, without a target.
        """
        if split == "next":
            users = np.flatnonzero(self.lengths > 0)
            return Instances(users, self.offsets[:-1][users], self.offsets[1:][users], has_target=False)
        users = np.flatnonzero(self.lengths >= 3)
        from_end = 2 if split == "validation" else 1
        return Instances(users, self.offsets[:-1][users], self.offsets[1:][users] - from_end)

    def targets(self, instances: Instances) -> np.ndarray:
        """Target item of each instance, `[n]`."""
        targets: np.ndarray = self.items[instances.ends]
        return targets
