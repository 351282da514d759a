"""`lares prepare`: raw interactions to a prepared dataset, which appears whole or not at all.

A prepared dataset is a directory: `sequences.parquet` (a row a user: `user_id`, `items` oldest first, `timestamps` where
known) with flat copies to map (`lares_pl.data.flat`), `items.parquet` (`item`, `item_id`, `count`, with item text also its
table's columns and `embedding`) and `dataset.json`, written last. Item 0 is padding.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lares_pl.data import flat
from lares_pl.data.formats import Columns, Format, read_interactions, source_files
from lares_pl.data.text import ItemDescriptions, TextOptions, describe_items
from lares_pl.errors import LaresError

FORMAT_VERSION = 1


@dataclass
class Summary:
    """What a prepared dataset holds and what was left out on the way."""

    users: int = 0
    items: int = 0
    interactions: int = 0
    mean_length: float = 0.0
    density: float = 0.0
    training_instances: int = 0
    short_users: int = 0
    short_user_instances: int = 0
    removed: dict[str, int] = field(default_factory=dict)
    order: str = ""
    text: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = [
            ("users", f"{self.users:,}"),
            ("items", f"{self.items:,}"),
            ("interactions", f"{self.interactions:,}"),
            ("mean length", f"{self.mean_length:.2f}"),
            ("density", f"{self.density:.4%}"),
            ("training instances", f"{self.training_instances:,}"),
            ("too short to hold out", f"{self.short_users:,} users (they train only: {self.short_user_instances:,} instances)"),
            *((f"removed by {name}", f"{count:,} rows") for name, count in self.removed.items()),
            ("order", self.order),
        ]
        if self.text:
            kind = f"{self.text['size']} values each, {self.text['precision']}"
            without = f"{self.text['items_without']:,} without (zero vectors)"
            rows.append(("item text", f"{self.text['items']:,} items, {without}; {kind}"))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def prepare(
    source: str,
    output: str = "prepared",
    columns: Columns = Columns(),
    format: Format | None = None,
    k_core: int = 0,
    min_rating: float | None = None,
    repeats: Literal["keep", "drop"] = "keep",
    item_text: str | None = None,
    text: TextOptions = TextOptions(),
    overwrite: bool = False,
) -> None:
    """Turn raw interactions into a prepared dataset.

    Reads RecBole .inter files, CSV, TSV, Parquet and lines `user item item …`, plain or .gz, and folders of RecBole benchmark
    files that are split already. Filters apply in the order
    minimum rating, repeats, k-core. A user's items are ordered by time, equal times in file order; without times the
    file order counts.

    Args:
        source: file with interactions, or folder of benchmark files.
        output: directory of the prepared dataset.
        columns: names of the columns.
        format: format of the file, where its name does not tell.
        k_core: keep users and items with at least this many interactions, again and again until nothing changes.
        min_rating: leave out interactions rated lower.
        repeats: keep a user's repeated interactions with an item, or drop all but the first.
        item_text: table with text of the items (CSV, TSV, Parquet, RecBole .item), or a .npy of vectors whose row number is
            the item id.
        text: how item text is read and encoded.
        overwrite: replace an existing dataset.

    Raises:
        LaresError: for input that can't be used; nothing is written then.
    """
    target = Path(output).resolve()
    _check_target(target, overwrite)
    interactions = read_interactions(Path(source), columns, format)
    filters = {"k_core": k_core, "min_rating": min_rating, "repeats": repeats}
    table, summary = filter_and_order(interactions, k_core=k_core, min_rating=min_rating, repeats=repeats)
    if table.empty:
        raise LaresError(f"{source}: nothing is left after the filters ({_removed(summary)}). Loosen --k_core or --min_rating.")
    descriptions = ItemDescriptions()
    files = source_files(Path(source), format)
    if item_text is not None:
        descriptions = describe_items(table["item"].unique(), Path(item_text), text)
        summary.text = descriptions.about
        files.append(Path(item_text))
    sources = [{"path": str(path.resolve()), "sha256": _checksum(path)} for path in files]
    provenance = {"filters": filters, "sources": sources}
    summary = write_dataset(table, target, summary, provenance, descriptions, overwrite)
    print(f"prepared {source} as {target}\n{summary}")


def _removed(summary: Summary) -> str:
    return ", ".join(f"{name} removed {count:,} rows" for name, count in summary.removed.items())


_OURS = {"dataset.json", "items.parquet", "sequences.parquet", "sequences", flat.ITEMS, flat.OFFSETS}


def _check_target(target: Path, overwrite: bool) -> None:
    """Raise unless `target` is free, or a prepared dataset that may be replaced."""
    if target.exists() and not (target / "dataset.json").is_file() and (not target.is_dir() or any(target.iterdir())):
        raise LaresError(f"{target} exists and is not a prepared dataset; name another --output")
    if (target / "dataset.json").is_file() and not overwrite:
        raise LaresError(f"{target} holds a prepared dataset already; --overwrite true replaces it, or name another --output")
    if target.is_dir() and (foreign := sorted({path.name for path in target.iterdir()} - _OURS)):
        raise LaresError(f"{target} holds more than a prepared dataset ({', '.join(foreign[:3])}); name another --output")


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------- filters


def filter_and_order(
    interactions: pd.DataFrame, k_core: int = 0, min_rating: float | None = None, repeats: Literal["keep", "drop"] = "keep"
) -> tuple[pd.DataFrame, Summary]:
    """Filtered interactions, users together in order of first appearance, each user's oldest first.

    Raises:
        LaresError: if a minimum rating is asked of interactions without ratings.
    """
    if k_core < 0:
        raise LaresError(f"--k_core must not be negative, got {k_core}")
    summary = Summary()
    table = interactions
    if min_rating is not None:
        if "rating" not in table.columns:
            raise LaresError("--min_rating needs ratings and there is no column for them; name it with --columns.rating")
        kept = table[table["rating"] >= min_rating]
        summary.removed["min_rating"] = len(table) - len(kept)
        table = kept

    user = pd.factorize(table["user"])[0]
    order = np.lexsort((table["time"].to_numpy(), user)) if "time" in table.columns else np.argsort(user, kind="stable")
    table = table.iloc[order]
    summary.order = "time, ties in file order" if "time" in table.columns else "file order"
    if repeats == "drop":
        kept = table.drop_duplicates(["user", "item"])
        summary.removed["repeats"] = len(table) - len(kept)
        table = kept
    if k_core > 1:
        keep = k_core_mask(pd.factorize(table["user"])[0], pd.factorize(table["item"])[0], k_core)
        summary.removed["k_core"] = int((~keep).sum())
        table = table[keep]
    return table.reset_index(drop=True), summary


def k_core_mask(users: np.ndarray, items: np.ndarray, k: int) -> np.ndarray:
    """True for the interactions of the largest subset in which every user and every item has at least k.

    Args:
        users, items: codes of each interaction, `[n]`, counted from 0.
        k: the least number of interactions.
    """
    keep = np.ones(len(users), dtype=bool)
    while True:
        user_counts = np.bincount(users[keep], minlength=users.max(initial=-1) + 1)
        item_counts = np.bincount(items[keep], minlength=items.max(initial=-1) + 1)
        still: np.ndarray = keep & (user_counts[users] >= k) & (item_counts[items] >= k)
        if still.sum() == keep.sum():
            return keep
        keep = still


# ---------------------------------------------------------------- writing


def write_dataset(
    table: pd.DataFrame,
    target: Path,
    summary: Summary,
    provenance: dict[str, Any],
    descriptions: ItemDescriptions = ItemDescriptions(),
    overwrite: bool = False,
) -> Summary:
    """Write ordered interactions as a prepared dataset and complete its summary.

    Args:
        table: `user`, `item` and optionally `time`; users together, oldest first.
        target: the directory to appear.
        summary: what is known of filters and order.
        provenance: filters and sources, for `dataset.json`.
        descriptions: what is known of the items, in the order of their first appearance in `table`.
        overwrite: whether an existing dataset may be replaced.
    """
    users, user_ids = pd.factorize(table["user"])
    items, item_ids = pd.factorize(table["item"])
    lengths = np.bincount(users)
    counts = np.bincount(items)
    summary.users, summary.items, summary.interactions = len(user_ids), len(item_ids), len(table)
    summary.mean_length = len(table) / len(user_ids)
    summary.density = len(table) / (len(user_ids) * len(item_ids))
    summary.short_users = int((lengths < 3).sum())
    summary.short_user_instances = int((lengths[lengths < 3] - 1).sum())
    summary.training_instances = int((lengths[lengths >= 3] - 3).sum()) + summary.short_user_instances

    starts = np.concatenate([[0], lengths.cumsum()])
    offsets = pa.array(starts.astype(np.int32))
    indices = (items + 1).astype(np.int32)
    sequences = {"user_id": pa.array(user_ids), "items": pa.ListArray.from_arrays(offsets, pa.array(indices))}
    if "time" in table.columns:
        time = table["time"]
        whole = (time if time.dtype.kind in "iu" else time.round()).to_numpy().astype(np.int64)
        sequences["timestamps"] = pa.ListArray.from_arrays(offsets, pa.array(whole))
    catalogue = {
        "item": pa.array(np.arange(1, len(item_ids) + 1, dtype=np.int32)),
        "item_id": pa.array(item_ids),
        "count": pa.array(counts.astype(np.int64)),
        **descriptions.columns,
    }
    description = {"format_version": FORMAT_VERSION, **asdict(summary), **provenance}
    with _appearing(target, overwrite) as folder:
        pq.write_table(pa.table(sequences), folder / "sequences.parquet", compression="zstd")
        description |= flat.write_flat(folder, indices, starts)
        _write_items(catalogue, folder / "items.parquet")
        (folder / "dataset.json").write_text(json.dumps(description, indent=1) + "\n")
    return summary


def _write_items(catalogue: dict[str, Any], path: Path) -> None:
    """Vectors plain, so that a memory map of the file serves them as they are; the rest compressed."""
    table = pa.table(catalogue)
    small = [name for name in table.column_names if name != "embedding"]
    compression = {**dict.fromkeys(small, "zstd"), "embedding.list.element": "none"}
    pq.write_table(table, path, compression=compression, use_dictionary=small)


@contextmanager
def _appearing(target: Path, overwrite: bool) -> Iterator[Path]:
    """A directory to fill that takes the place of `target` when the block ends well, and vanishes when it does not."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LaresError(f"{target} can't be created: {error}") from error
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield folder
        for path in folder.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        folder.chmod(0o755)
        _check_target(target, overwrite)
        if target.exists():
            former = folder.with_name(folder.name + ".former")
            target.rename(former)
            try:
                folder.rename(target)
            except OSError:
                former.rename(target)
                raise
            shutil.rmtree(former)
        else:
            folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
