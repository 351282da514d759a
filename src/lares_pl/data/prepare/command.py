"""`lares prepare`: raw interactions to a prepared dataset (`lares_pl.data.dataset.format`), written atomically."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lares_pl.atomic_io import atomic_folder, check_folder
from lares_pl.data.dataset.format import FORMAT_VERSION, SPLIT
from lares_pl.data.dataset.mmap_cache import FOLDER, flat_copies
from lares_pl.data.prepare.columns import Columns
from lares_pl.data.prepare.engines import DuckDB, Engine
from lares_pl.data.prepare.readers import source_files
from lares_pl.data.prepare.source import Format, Source
from lares_pl.data.prepare.splits import DataSplit, LeaveOneOut
from lares_pl.data.prepare.sql_pipeline import Filters, index_log
from lares_pl.data.prepare.text import ItemDescriptions, TextOptions, describe_items
from lares_pl.errors import LaresError


def prepare(
    source: str,
    output: str = "prepared",
    columns: Columns = Columns(),
    format: Format | None = None,
    encoding: str | None = None,
    separator: str | None = None,
    header: list[str] | str | None = None,
    k_core: int = 0,
    min_rating: float | None = None,
    repeats: Literal["keep", "drop"] = "keep",
    item_text: str | None = None,
    text: TextOptions = TextOptions(),
    split: DataSplit = LeaveOneOut(),
    engine: Engine = DuckDB(),
    overwrite: bool = False,
) -> None:
    """Turn raw interactions into a prepared dataset.

    Reads RecBole .inter files, CSV, TSV, Parquet and lines `user item item …`, text plain or compressed (.gz, .zst, .bz2,
    .lz4), folders of such files as Spark, Hive, DuckDB and BigQuery write them, and folders of RecBole benchmark files that are
    split already. Filters apply in the order minimum rating, repeats, k-core. A user's items are ordered by time, equal times
    in file order; without times the file order counts. The log need not fit into memory.

    Ids are kept as numbers where a Parquet file has them as whole numbers (integers, decimals or floating point), else as text;
    blanks around the ids of a text file don't count.

    Args:
        source: file with interactions, folder of files of one format (read in the order of their names; `column=value` in the
            names of folders is a column), or of benchmark files.
        output: directory of the prepared dataset.
        columns: names of the columns.
        format: format of the file; default: as its name tells.
        encoding: encoding of text, such as cp1252 or latin-1; default: UTF-8, or that of a byte order mark.
        separator: separator of fields, such as ; or | or :: or tab; default: a comma in CSV, a tab in TSV.
        header: names of the columns, a list or separated by commas, for text without a header line.
        k_core: keep users and items with at least this many interactions, repeated until nothing changes.
        min_rating: leave out interactions with a lower rating; ratings are read only for this.
        repeats: keep a user's repeated interactions with an item, or drop all but the first.
        item_text: table with text of the items (CSV, TSV, Parquet, RecBole .item), or a .npy of vectors whose row number is
            the item id.
        text: how item text is read and encoded.
        split: rule by which items are held out: lares_pl.LeaveOneOut, lares_pl.LastK or lares_pl.TemporalSplit.
        engine: engine that filters and sorts: DuckDB on this machine, or lares_pl.Spark on a cluster.
        overwrite: replace an existing dataset.

    Raises:
        LaresError: for invalid input; nothing is written.

    Example:
        lares prepare interactions.csv --columns.user customer --columns.item sku --columns.time bought_at --k_core 5
        lares prepare ml-100k.inter --output prepared/ml-100k
        lares prepare log.csv --split lares_pl.TemporalSplit --split.validation_share 0.8 --split.test_share 0.9
        lares prepare u.data --separator tab --header user_id,item_id,rating,timestamp
        lares prepare excel.csv --separator ';' --encoding cp1252 --columns.time_format '%d.%m.%Y %H:%M'
    """
    target = Path(output).resolve()
    log = Source(Path(source), format, encoding, separator, header)
    files = source_files(log)
    _check_target(target, overwrite)
    filters = Filters(min_rating, repeats, k_core)
    with atomic_folder(target, lambda: _check_target(target, overwrite)) as folder:
        with engine.open(folder) as session:
            known = session.read(log, columns, ratings=min_rating is not None)
            try:
                summary, parts = index_log(session, known, filters, split)
            except LaresError as error:
                raise LaresError(f"{source}: {error}") from error
            catalogue = session.fetch("SELECT item_id, count FROM items ORDER BY item")
            descriptions = ItemDescriptions()
            if item_text is not None:
                descriptions = describe_items(catalogue["item_id"].to_pylist(), Path(item_text), text)
                summary.text = descriptions.about
                files.append(Path(item_text))
            session.write_sequences(folder, "time" in known)
        _write_items(catalogue, descriptions, folder / "items.parquet")
        if parts is not None:
            pq.write_table(pa.table(parts._asdict()), folder / SPLIT, compression="zstd", write_page_checksum=True)
        flat_copies(folder, summary.users, summary.interactions, summary.items)
        sources = [{"path": str(path.resolve()), "sha256": _checksum(path)} for path in files]
        used = {"k_core": k_core, "min_rating": min_rating, "repeats": repeats}
        description = {"format_version": FORMAT_VERSION, **summary.plain(), "filters": used, "sources": sources}
        (folder / "dataset.json").write_text(json.dumps(description, indent=1) + "\n")
    print(f"prepared {source} as {output}\n{summary}")


_OURS = (
    "dataset.json",
    "items.parquet",
    "sequences.parquet",
    "sequences",
    SPLIT,
    FOLDER,
    f".{FOLDER}.tmp.*",
)  # .tmp: of killed processes


def _check_target(target: Path, overwrite: bool) -> None:
    check_folder(target, "prepared dataset", "dataset.json", _OURS, overwrite)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_items(catalogue: pa.Table, descriptions: ItemDescriptions, path: Path) -> None:
    """Write vectors uncompressed, so that they can be memory-mapped, and everything else compressed.

    Args:
        catalogue: `item_id` and `count`, in catalogue order.
        descriptions: text vectors and metadata of the items, in the same order.
        path: the file.
    """
    numbers = pa.array(np.arange(1, len(catalogue) + 1, dtype=np.int32))
    columns = {"item": numbers, "item_id": catalogue["item_id"], "count": catalogue["count"], **descriptions.columns}
    table = pa.table(columns)
    small = [name for name in table.column_names if name != "embedding"]
    compression = {**dict.fromkeys(small, "zstd"), "embedding.list.element": "none"}
    pq.write_table(table, path, compression=compression, use_dictionary=small, write_page_checksum=True)
