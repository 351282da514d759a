"""Raw files to tables of interactions, in file order and in chunks, so that a log need not fit into memory.

The format follows from the file's name (`.gz` may follow): RecBole atomic files (`.inter`), comma- or tab-separated tables with
a header (`.csv`, `.tsv`), Parquet (`.parquet`, or a folder of such files), and lines `user item item …` (`.txt`; a user may
have several lines). RecBole benchmark files, which are already split, are given by their folder or one of their names
(`NAME.train.inter`).
"""

from __future__ import annotations

import csv
import gzip
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lares_pl.data.prepare.columns import Columns, checked_ids, named_column, named_columns
from lares_pl.data.prepare.recbole_splits import benchmark_files, join_parts
from lares_pl.errors import LaresError

Format = Literal["inter", "csv", "tsv", "parquet", "lines"]

ROWS = 1 << 20  # of a chunk


def read_interactions(path: Path, columns: Columns, kind: Format | None = None) -> Iterator[pd.DataFrame]:
    """Yield chunks with one row per interaction: `user`, `item` and, if known, `time` (int64 or float64) and `rating`.

    Each has the name of its file in `attrs["file"]`.

    Args:
        path: the file, the folder of Parquet files, or that of benchmark files.
        columns: column names; lines have none.
        kind: the format, if the file's name does not show it.

    Raises:
        LaresError: for a missing file, an unknown format, a missing column or an invalid value; the message names the row.
    """
    if kind is None and not _parquet_files(path) and (parts := benchmark_files(path)) is not None:
        yield join_parts((part, _benchmark_rows(part, columns)) for part in parts)
        return
    empty = True
    dates: bool | None = None  # whether times are written as dates; the first chunk decides
    for file in source_files(path, kind):
        rows = 0
        for table in _pieces(file, kind):
            if _resolved(file, kind) != "lines":
                table, dates = named_columns(table, columns, file, rows, dates)
            rows += len(table)
            empty = empty and table.empty
            table.attrs["file"] = file.name
            if len(table):
                yield table
    if empty:
        raise LaresError(f"{path}: no interactions in it")


def source_files(path: Path, kind: Format | None = None) -> list[Path]:
    """Return the files that `read_interactions` reads for this path, in order.

    Raises:
        LaresError: for a folder with neither Parquet files nor a benchmark in it.
    """
    return _parquet_files(path) or (benchmark_files(path) if kind is None else None) or [path]


def _parquet_files(path: Path) -> list[Path]:
    """The Parquet files of a folder, ordered by name."""
    return sorted(path.glob("*.parquet")) if path.is_dir() else []


def _benchmark_rows(path: Path, columns: Columns) -> pd.DataFrame:
    """Rows of one part of a benchmark: `user`, `history`, `item`."""
    table = read_table(path, "inter")
    users = named_column(table, columns.user, path, "columns.user")
    histories = named_column(table, f"{columns.item}_list", path, "columns.item")
    items = named_column(table, columns.item, path, "columns.item")
    return pd.DataFrame(
        {
            "user": checked_ids(users, path, columns.user),
            "item": checked_ids(items, path, columns.item),
            "history": histories.str.split().str.join(" "),
        }
    )


def read_table(path: Path, kind: Format | None = None) -> pd.DataFrame:
    """Read a whole file, with columns under their own names.

    Args:
        path: the file.
        kind: the format, if the file's name does not show it.

    Raises:
        LaresError: for a missing file, an unknown format, or a file that cannot be read.
    """
    pieces = list(_pieces(path, kind))
    if not pieces:
        raise LaresError(f"{path}: no rows in it")
    return pieces[0] if len(pieces) == 1 else pd.concat(pieces, ignore_index=True)


def _pieces(path: Path, kind: Format | None) -> Iterator[pd.DataFrame]:
    """Yield a file in chunks, at least one; raises as `read_table`."""
    kind = _resolved(path, kind)
    try:
        yield from _READERS[kind](path)
    except LaresError:
        raise
    except pd.errors.ParserWarning as error:
        raise LaresError(f"{path}: its rows have more fields than its header; correct the header or the rows") from error
    except Exception as error:  # pandas, pyarrow and zlib raise whatever damaged bytes lead to
        raise LaresError(f"{path}: cannot be read as {kind}: {error}. Set --format if it has another format.") from error


def _resolved(path: Path, kind: Format | None) -> Format:
    """The format of an existing file."""
    if not path.is_file():
        raise LaresError(f"no such file: {path}. Give the path of a file in one of the formats {', '.join(_READERS)}.")
    return _format_of(path) if kind is None else kind


def _format_of(path: Path) -> Format:
    name = path.name.removesuffix(".gz")
    if name != path.name and name.endswith((".parquet", ".pq")):
        raise LaresError(f"{path}: Parquet files are already compressed; unpack the .gz first")
    suffix = Path(name).suffix.lower()
    known: dict[str, Format] = {
        ".inter": "inter",
        ".item": "inter",
        ".csv": "csv",
        ".tsv": "tsv",
        ".parquet": "parquet",
        ".pq": "parquet",
        ".txt": "lines",
    }
    if suffix not in known:
        raise LaresError(f"{path}: unknown file extension {suffix!r}; give the format: --format {'|'.join(_READERS)}")
    return known[suffix]


# ---------------------------------------------------------------- readers


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")


def _read_delimited(path: Path, separator: str, quoting: Literal[0, 3]) -> Iterator[pd.DataFrame]:
    options: dict[str, Any] = {"sep": separator, "dtype": str, "keep_default_na": False, "quoting": quoting}
    with _open(path) as file, pd.read_csv(file, on_bad_lines="error", index_col=False, chunksize=ROWS, **options) as pieces:
        while True:
            with warnings.catch_warnings():
                warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header would lose fields
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece


def _read_inter(path: Path) -> Iterator[pd.DataFrame]:
    for table in _read_delimited(path, "\t", csv.QUOTE_NONE):
        yield table.rename(columns={name: str(name).split(":")[0] for name in table.columns})


def _read_csv(path: Path) -> Iterator[pd.DataFrame]:
    return _read_delimited(path, ",", csv.QUOTE_MINIMAL)


def _read_tsv(path: Path) -> Iterator[pd.DataFrame]:
    return _read_delimited(path, "\t", csv.QUOTE_NONE)  # quotes are ordinary characters: 3" bolts


def _read_parquet(path: Path) -> Iterator[pd.DataFrame]:
    with pq.ParquetFile(path) as file:
        if file.metadata.num_rows == 0:
            yield file.schema_arrow.empty_table().to_pandas()
        for batch in file.iter_batches(batch_size=ROWS):
            batch.validate(full=True)  # text that is not UTF-8
            yield pa.Table.from_batches([batch]).to_pandas()


def _read_lines(path: Path) -> Iterator[pd.DataFrame]:
    users: list[str] = []
    lengths: list[int] = []
    items: list[str] = []

    def piece() -> pd.DataFrame:
        user_of_row = np.repeat(np.array(users, dtype=object), lengths)
        return pd.DataFrame({"user": user_of_row, "item": np.array(items, dtype=object)})

    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            fields = line.split()
            if not fields:
                continue
            if len(fields) == 1:
                raise LaresError(f"{path}: line {number} has a user ({fields[0]}) and no item; expected `user item item …`")
            users.append(fields[0])
            lengths.append(len(fields) - 1)
            items.extend(fields[1:])
            if len(items) >= ROWS:
                yield piece()
                users, lengths, items = [], [], []
    yield piece()


_READERS: dict[Format, Callable[[Path], Iterator[pd.DataFrame]]] = {
    "inter": _read_inter,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "parquet": _read_parquet,
    "lines": _read_lines,
}
