"""A cache of a prepared dataset's sequences as arrays, which all processes of a machine map instead of decoding Parquet each.

The Parquet files are authoritative: the cache is used only if it was made from exactly these files, and is rebuilt otherwise.
It contains the items of all users, the offset and the split of each user, and all training targets grouped by item, from which
partners with the same target are drawn.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lares_pl.atomic_io import exchange, temporary_folder
from lares_pl.data.dataset.format import SPLIT
from lares_pl.errors import LaresError

FOLDER, RECORD = "flat", "made-from.json"


class Flat(NamedTuple):
    """Sequences and the index of their training targets, in memory or memory-mapped.

    Args:
        items: items of all users, concatenated, `[n]` int32.
        offsets: offset of each user's items, and the total, `[users + 1]` int64.
        validation: end of each user's training items, where the validation part begins, `[users]` int64.
        test: where the test part of each user's items begins, `[users]` int64.
        by_target: positions (in `items`) of all training targets, grouped by item, ascending within an item, `[targets]`.
        of_item: offset of each item's positions in `by_target`, and the total, `[N + 2]` int64; entry 0 is padding's.
    """

    items: np.ndarray
    offsets: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    by_target: np.ndarray
    of_item: np.ndarray


def sequence_files(folder: Path) -> list[Path]:
    """Return the Parquet files with the sequences of a prepared dataset, in order."""
    return sorted((folder / "sequences").glob("*.parquet")) or [folder / "sequences.parquet"]


def flat_copies(folder: Path, users: int, interactions: int, catalogue: int) -> Flat:
    """Map the cache; build it first if it is missing or outdated, in memory if the folder cannot be written.

    Args:
        folder: of the dataset.
        users, interactions, catalogue: their numbers according to `dataset.json`.

    Raises:
        LaresError: if the sequences have other numbers of users or interactions, or an item outside the catalogue.
    """
    files = [*sequence_files(folder), *folder.glob(SPLIT)]
    made_from = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
    mapped = _mapped(folder / FOLDER, made_from)
    if mapped is not None and (len(mapped.offsets), len(mapped.items)) == (users + 1, interactions):
        return mapped
    try:
        with temporary_folder(folder, FOLDER) as temporary:
            flat = _filled(folder, users, interactions, catalogue, temporary)
            (temporary / RECORD).write_text(json.dumps({"files": made_from, "arrays": _described(flat)}))
            temporary.chmod(0o755)
            if (folder / FOLDER).exists():  # outdated, or another process was faster
                exchange(temporary, folder / FOLDER)
            else:
                temporary.rename(folder / FOLDER)
        mapped = _mapped(folder / FOLDER, made_from)
    except OSError:  # no permission, no space, or another process was faster
        mapped = None
    return _filled(folder, users, interactions, catalogue, None) if mapped is None else mapped


def flat_of(items: np.ndarray, offsets: np.ndarray, catalogue: int) -> Flat:
    """Build the same arrays in memory, for sequences that are not from a prepared dataset; the split is leave-one-out."""
    validation, test = leave_one_out(offsets)
    of_item = training_counts(items, offsets, validation, catalogue)
    by_target = np.empty(of_item[-1], dtype=np.int64)
    group_targets(items, offsets, validation, of_item, by_target)
    return Flat(items, offsets, validation, test, by_target, of_item)


def leave_one_out(offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the validation and the test part of each user's items begin: at the last two items of three or more.

    Args:
        offsets: `[users + 1]`.
    """
    ends, held = offsets[1:], np.diff(offsets) >= 3
    return ends - 2 * held, ends - held


def _mapped(folder: Path, made_from: dict[str, list[int]]) -> Flat | None:
    """Map the cache of exactly these files; None if there is none or it is damaged."""
    try:
        record = json.loads((folder / RECORD).read_text())
        if record["files"] != made_from:
            return None
        flat = Flat(*(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in Flat._fields))
        return flat if record["arrays"] == _described(flat) else None
    except Exception:  # numpy and json raise whatever damaged bytes lead to
        return None


def _described(flat: Flat) -> dict[str, list[Any]]:
    """Type, length and checksum of each array."""
    return {
        name: [str(values.dtype), len(values), zlib.crc32(values.view(np.uint8).data)]
        for name, values in zip(Flat._fields, flat, strict=True)
    }


# ---------------------------------------------------------------- building


def _filled(folder: Path, users: int, interactions: int, catalogue: int, place: Path | None) -> Flat:
    """Decode the Parquet files in chunks.

    Args:
        folder: of the dataset.
        users, interactions, catalogue: their numbers.
        place: folder for the arrays; None keeps them in memory.
    """

    def array(name: str, count: int, kind: type) -> np.ndarray:
        if place is None or count == 0:
            made: np.ndarray = np.zeros(count, dtype=kind)
            if place is not None:
                np.save(place / f"{name}.npy", made)
            return made
        mapped = np.lib.format.open_memmap(place / f"{name}.npy", mode="w+", dtype=kind, shape=(count,))
        with (place / f"{name}.npy").open("r+b") as file:  # raises if the disk is full; a mapped page would kill
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        return mapped

    items, offsets = array("items", interactions, np.int32), array("offsets", users + 1, np.int64)
    user = filled = 0
    for values, lengths in _lists(folder):
        if user + len(lengths) > users or filled + len(values) > interactions:
            user, filled = user + len(lengths), filled + len(values)
            break
        if len(values) and (values.min() < 1 or values.max() > catalogue):
            raise LaresError(
                f"{folder}: items from {values.min()} to {values.max()} in a catalogue of {catalogue} (items.parquet): the "
                "files do not belong together. Prepare the dataset again"
            )
        items[filled : filled + len(values)] = values
        offsets[user + 1 : user + 1 + len(lengths)] = filled + lengths.cumsum()
        user, filled = user + len(lengths), filled + len(values)
    if (user, filled) != (users, interactions):
        raise LaresError(
            f"{folder}: damaged or incomplete prepared dataset: dataset.json states {users:,} users and {interactions:,} "
            f"interactions; there are {user:,}{' or more' if user > users or filled > interactions else ''} and {filled:,}. "
            "Prepare it again"
        )
    validation, test = array("validation", users, np.int64), array("test", users, np.int64)
    validation[:], test[:] = _split(folder, offsets)
    counts = training_counts(items, offsets, validation, catalogue)
    of_item = array("of_item", len(counts), np.int64)
    of_item[:] = counts
    by_target = array("by_target", int(counts[-1]), np.uint32 if interactions < 1 << 32 else np.int64)
    group_targets(items, offsets, validation, counts, by_target)
    return Flat(items, offsets, validation, test, by_target, of_item)


def _split(folder: Path, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the validation and the test part of each user's items begin."""
    if not (folder / SPLIT).is_file():
        return leave_one_out(offsets)
    table = pq.read_table(folder / SPLIT, page_checksum_verification=True)
    training, before_test = (table[name].to_numpy().astype(np.int64) for name in ("training", "before_test"))
    if len(training) != len(offsets) - 1:
        raise LaresError(f"{folder / SPLIT}: a split of {len(training):,} of {len(offsets) - 1:,} users. Prepare it again")
    wrong = (training < 0) | (before_test < training) | (before_test > np.diff(offsets))
    if wrong.any():
        raise LaresError(
            f"{folder / SPLIT}: row {int(np.argmax(wrong)) + 1} does not split its user's items. Prepare the dataset again"
        )
    return offsets[:-1] + training, offsets[:-1] + before_test


def _lists(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Concatenated items and lengths, some users at a time."""
    for path in sequence_files(folder):
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(batch_size=1 << 16, columns=["items"]):
                lists = batch.column("items")
                whole = pa.types.is_list(lists.type) and pa.types.is_integer(lists.type.value_type)
                if not whole or lists.null_count or lists.flatten().null_count:
                    raise LaresError(f"{path}: column `items` must contain a list of items for each user, without nulls")
                lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
                yield lists.flatten().to_numpy(zero_copy_only=False), lengths


def _stretches(offsets: np.ndarray, size: int = 1 << 22) -> Iterator[tuple[int, int]]:
    """Ranges of users with at most about `size` items, or one user."""
    user = 0
    while user < len(offsets) - 1:
        end = max(user + 1, int(np.searchsorted(offsets, offsets[user] + size, side="right")) - 1)
        yield user, end
        user = end


def _training_places(offsets: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Positions of the training targets: each user's training items from the second on.

    Args:
        offsets: of some users, `[users + 1]`.
        ends: end of their training items, `[users]`.
    """
    is_target = np.zeros(int(offsets[-1] - offsets[0]) + 1, dtype=np.int8)
    some = ends > offsets[:-1] + 1
    np.add.at(is_target, offsets[:-1][some] + 1 - offsets[0], 1)
    np.add.at(is_target, ends[some] - offsets[0], -1)
    places: np.ndarray = np.flatnonzero(is_target.cumsum(dtype=np.int8)[:-1]) + offsets[0]
    return places


def training_counts(items: np.ndarray, offsets: np.ndarray, ends: np.ndarray, catalogue: int) -> np.ndarray:
    """Offsets of each item's training targets when grouped by item, and the total, `[N + 2]` int64."""
    counts = np.zeros(catalogue + 2, dtype=np.int64)
    for start, end in _stretches(offsets):
        targets = items[_training_places(offsets[start : end + 1], ends[start:end])]
        counts[1:] += np.bincount(targets, minlength=catalogue + 1)
    totals: np.ndarray = counts.cumsum()
    return totals


def group_targets(items: np.ndarray, offsets: np.ndarray, ends: np.ndarray, of_item: np.ndarray, out: np.ndarray) -> None:
    """Write the positions of training targets grouped by item, ascending within an item (a counting sort).

    Args:
        items, offsets: the sequences.
        ends: end of each user's training items.
        of_item: the offset of each item, from `training_counts`.
        out: `[targets]`.
    """
    free = of_item[:-1].copy()
    for start, end in _stretches(offsets):
        places = _training_places(offsets[start : end + 1], ends[start:end])
        targets = items[places]
        order = np.argsort(targets, kind="stable")
        targets, firsts, counts = *(targets[order],), *np.unique(targets[order], return_index=True, return_counts=True)[1:]
        within = np.arange(len(targets)) - np.repeat(firsts, counts)
        out[free[targets] + within] = places[order]
        free[targets[firsts]] += counts
