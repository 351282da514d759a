"""A prepared dataset: flat sequences, whose memory all processes of a machine share, the split, and the catalogue."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from lares_pl.data.dataset.format import FORMAT_VERSION
from lares_pl.data.dataset.ids import packed_ids
from lares_pl.data.dataset.instances import HeldOut, HistorySpans, Split, TrainingInstances, ranges
from lares_pl.data.dataset.mmap_cache import Flat, flat_copies, flat_of, sequence_files
from lares_pl.errors import LaresError


def check_dataset(path: str | Path | None) -> Path:
    """Return the directory of a prepared dataset, after checking that there is one.

    Raises:
        LaresError: if no directory is given, or it contains no prepared dataset.
    """
    if path is None:
        raise LaresError("no dataset: give the directory of a prepared dataset (--data.dataset DIR)")
    folder = Path(path)
    if not (folder / "dataset.json").is_file():
        raise LaresError(
            f"no prepared dataset at {folder.absolute()} (no dataset.json there): "
            "create one with `lares prepare FILE --output DIR`, or give another with --data.dataset"
        )
    return folder


@contextmanager
def _whole(folder: Path) -> Iterator[None]:
    """Report any error that damaged files cause as a `LaresError`."""
    try:
        yield
    except LaresError:
        raise
    except Exception as error:
        raise LaresError(f"{folder}: damaged or incomplete prepared dataset: {error}. Prepare it again.") from error


class SequenceDataset:
    """Sequences of all users and the catalogue.

    Args:
        flat: the sequences.
        user_ids: original ids of the users, or how to read them.
        item_ids: original ids of items 1 … N.
        path: where it was read from, for messages.
        split: how the items are split, as `dataset.json` states it; None: leave-one-out.
    """

    def __init__(
        self, flat: Flat, user_ids: pa.Array | None, item_ids: pa.Array, path: str, split: dict[str, Any] | None = None
    ) -> None:
        self.flat = flat
        self.split = split
        self.items = flat.items
        self.offsets = flat.offsets
        self.item_ids = item_ids
        self.path = path
        self._user_ids = user_ids

    @staticmethod
    def of_arrays(items: np.ndarray, offsets: np.ndarray, user_ids: pa.Array, item_ids: pa.Array, path: str) -> SequenceDataset:
        """Sequences in memory.

        Args:
            items: items of all users, concatenated, oldest first, `[n]` int32; 1 … N.
            offsets: offset of each user's items, and the total, `[users + 1]` int64.
            user_ids, item_ids, path: as of the class.
        """
        return SequenceDataset(flat_of(items, offsets, len(item_ids)), user_ids, item_ids, path)

    @staticmethod
    def load(path: str | Path) -> SequenceDataset:
        """Open a prepared dataset.

        Raises:
            LaresError: if there is none, it is incomplete, or its files do not belong together.
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
                    f"{folder}: items.parquet does not list the items 1 … {items} that dataset.json states: the files do not "
                    "belong together. Prepare the dataset again"
                )
            if catalogue["item_id"].null_count:
                raise LaresError(f"{folder}: items.parquet has items without an id. Prepare the dataset again")
            flat = flat_copies(folder, users, interactions, items)
            return SequenceDataset(flat, None, catalogue["item_id"].combine_chunks(), str(folder), description.get("split"))

    @cached_property
    def user_ids(self) -> pa.Array:
        """Original ids of the users, read on first use."""
        if self._user_ids is not None:
            return self._user_ids
        with _whole(Path(self.path)):
            files = sequence_files(Path(self.path))
            parts = [pq.read_table(path, columns=["user_id"], page_checksum_verification=True) for path in files]
            ids = pa.concat_tables(parts)["user_id"].combine_chunks()
            if len(ids) != self.users or ids.null_count:
                raise LaresError(f"{self.path}: its sequences contain {len(ids)} of {self.users} users. Prepare it again")
            return ids

    @property
    def catalogue_size(self) -> int:
        """Number of items N."""
        return len(self.item_ids)

    @property
    def users(self) -> int:
        """Number of users."""
        return len(self.offsets) - 1

    @cached_property
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
        """Text vectors of the catalogue, `[N + 1, p]` float32 or float16, row 0 (padding) zero; None if there are none.

        They are read through a memory map into one array, so that no second copy is in memory.
        """
        path = Path(self.path) / "items.parquet"
        with _whole(Path(self.path)), pq.ParquetFile(path, memory_map=True, page_checksum_verification=True) as file:
            if "embedding" not in file.schema_arrow.names:
                return None
            kind = file.schema_arrow.field("embedding").type
            if not pa.types.is_fixed_size_list(kind) or not pa.types.is_floating(kind.value_type):
                raise LaresError(f"{path}: `embedding` contains {kind}, not vectors of one size. Prepare the dataset again")
            vectors = np.zeros((self.catalogue_size + 1, kind.list_size), dtype=kind.value_type.to_pandas_dtype())
            row = 1
            for part in file.iter_batches(batch_size=4096, columns=["embedding"]):
                values = part.column(0).flatten().to_numpy().reshape(len(part), kind.list_size)
                vectors[row : row + len(part)] = values
                row += len(part)
        return vectors

    @cached_property
    def text_directions(self) -> np.ndarray | None:
        """Text vectors scaled to length 1, in units of 2^-14, `[N + 1, p]` int16; zeros without text. None if there are none.

        Sums of integers do not depend on their order, so that what is computed from them is exact over batches and processes.
        """
        vectors = self.text_vectors()
        if vectors is None:
            return None
        lengths = np.linalg.norm(vectors.astype(np.float32), axis=1, keepdims=True)
        directions: np.ndarray = (vectors / np.where(lengths > 0, lengths, 1) * 2**14).round().astype(np.int16)
        return directions

    @cached_property
    def training_popularity(self) -> np.ndarray:
        """Number of training interactions of each item, `[N + 1]` int64."""
        size = self.catalogue_size + 1
        held, _ = ranges(self.flat.validation, self.offsets[1:])
        popularity: np.ndarray = np.bincount(self.items, minlength=size) - np.bincount(self.items[held], minlength=size)
        return popularity

    # ------------------------------------------------------------ instances

    @cached_property
    def training_instances(self) -> TrainingInstances:
        """The training instances."""
        return TrainingInstances(self.offsets, self.flat.validation)

    def held_out(self, split: Split) -> HeldOut:
        """The instances of a split; for `next` the histories of all users, whole."""
        flat, ends = self.flat, self.offsets[1:]
        if split == "next":
            return HeldOut(self.offsets, ends, ends + 1, first_only=True, has_target=False)
        begins, ends = (flat.validation, flat.test) if split == "validation" else (flat.test, ends)
        return HeldOut(self.offsets, begins, ends, first_only=self.split is not None and self.split["targets"] == "first")

    def targets(self, spans: HistorySpans) -> np.ndarray:
        """Target item of each instance, `[B]`."""
        targets: np.ndarray = self.items[spans.ends]
        return targets
