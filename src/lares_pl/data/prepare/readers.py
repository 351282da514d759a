"""Raw files to tables of interactions, in file order and in chunks, so that a log need not fit into memory.

Formats, recognised by the file's name (`.gz`, `.zst`, `.bz2` or `.lz4` may follow): RecBole atomic files (`.inter`), comma- or
tab-separated tables with a header (`.csv`, `.tsv`), Parquet (`.parquet`), and lines `user item item …` (`.txt`; a user may
have several lines). A folder of files of one format is one log; `column=value` in the names of its folders is a column. RecBole
benchmark files, split already, are told by the folder or by one of their names (`NAME.train.inter`).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lares_pl.data.prepare.columns import Columns, are_numbers, chosen_columns, ids, named_column, numbers, times
from lares_pl.data.prepare.recbole_splits import benchmark_files, join_parts
from lares_pl.data.prepare.source import DataFile, Source, data_files
from lares_pl.data.prepare.text_files import foreign, read_delimited, read_lines, separator_of
from lares_pl.errors import LaresError

ROWS = 1 << 20  # per chunk


def read_interactions(source: Source, columns: Columns, ratings: bool = False) -> Iterator[pd.DataFrame]:
    """Read chunks with one row per interaction: `user`, `item` (int64 or text) and, if known, `time` and `rating` (numbers).

    Each chunk has its file in `attrs["file"]` and the id columns that are numbers in `attrs["numbers"]`; such a column is text
    in a chunk with ids beyond 64 bits.

    Args:
        source: the file or folder.
        columns: column names; not used for lines of items.
        ratings: whether to read ratings.

    Raises:
        LaresError: for a missing file, an unknown format, a missing column or an invalid value; the message names the row.
    """
    if (parts := _benchmark(source)) is not None:
        yield join_parts((part, _benchmark_rows(part, columns)) for part in parts)
        return
    empty = True
    dates: bool | None = None  # whether times are written as dates; decided by the first chunk
    for file in data_files(source):
        rows = 0
        for table in _pieces(file, source, columns, ratings):
            if file.kind != "lines":
                table, dates = _named(table, columns, ratings, file, rows, dates)
            rows += len(table)
            empty = empty and table.empty
            table.attrs["file"] = file.path.name
            if len(table):
                yield table
    if empty:
        raise LaresError(f"{source.path}: no interactions in it")


def source_files(source: Source) -> list[Path]:
    """The files that `read_interactions` reads, in order; raises the same errors."""
    return _benchmark(source) or [file.path for file in data_files(source)]


def read_table(source: Source) -> pd.DataFrame:
    """Read a whole file with its own column names.

    Raises:
        LaresError: for a missing file, an unknown format, or a file that cannot be read.
    """
    pieces = [piece for file in data_files(source) for piece in _pieces(file, source)]
    if not pieces:
        raise LaresError(f"{source.path}: no rows in it")
    return pieces[0] if len(pieces) == 1 else pd.concat(pieces, ignore_index=True)


def _benchmark(source: Source) -> list[Path] | None:
    if source.format is not None or (source.path.is_dir() and any(source.path.glob("*.parquet"))):
        return None
    return benchmark_files(source.path)


# ---------------------------------------------------------------- readers


def _pieces(file: DataFile, source: Source, columns: Columns | None = None, ratings: bool = False) -> Iterator[pd.DataFrame]:
    """Read a file in chunks; of Parquet only the needed columns if `columns` is given. Raises as `read_table`."""
    options = source.options

    def wanted(names: Sequence[str]) -> Sequence[str]:
        every = [*names, *(name for name in file.partition if name not in names)]
        found = every if columns is None else chosen_columns(every, columns, ratings, file.path).values()
        return [name for name in found if name in names]

    try:
        for table in _READERS[file.kind](file.path, source, wanted):
            for name, value in file.partition.items():
                if name not in table.columns:
                    table[name] = pd.Series(
                        [value] * len(table), index=table.index, dtype="int64" if isinstance(value, int) else object
                    )
            yield table
    except LaresError:
        raise
    except UnicodeError as error:
        written = source.encoding or "UTF-8"
        raise LaresError(
            f"{file.path}: is not written in {written} ({error}). Name its encoding: --{options}encoding cp1252 for most files "
            "of Windows and Excel, else latin-1, utf-16, …"
        ) from error
    except (pd.errors.ParserWarning, pd.errors.ParserError) as error:
        raise LaresError(
            f"{file.path}: its rows do not have as many fields as its header{_place(error)}. Remove what is above the "
            "header and mend the rows; fields that hold separators need quotes, and quotes an end"
        ) from error
    except Exception as error:  # damaged bytes cause any kind of error in pandas, pyarrow and zlib
        if file.path.stat().st_size == 0:
            raise LaresError(f"{file.path}: empty, as after a write that failed; write it again, or remove it") from error
        if (what := foreign(file.path)) is not None:
            raise LaresError(f"{file.path}: {what}") from error
        raise LaresError(
            f"{file.path}: cannot be read as {file.kind}: {_one_line(error)}. It is damaged, or has another format: "
            f"--{options}format"
        ) from error


def _place(error: Exception) -> str:
    """What pandas says about the row, if it says something about it."""
    found = re.search(r"C error: (.*)", str(error))
    return f" ({found[1].strip()})" if found else ""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


Wanted = Callable[[Sequence[str]], Sequence[str]]


def _read_inter(path: Path, source: Source, _: Wanted) -> Iterator[pd.DataFrame]:
    for table in read_delimited(path, "\t", csv.QUOTE_NONE, ROWS, source.encoding, source.names):
        yield table.rename(columns={name: str(name).split(":")[0] for name in table.columns})


def _read_csv(path: Path, source: Source, _: Wanted) -> Iterator[pd.DataFrame]:
    separator = separator_of(source.separator or ",")
    return read_delimited(path, separator, csv.QUOTE_MINIMAL, ROWS, source.encoding, source.names)


def _read_tsv(path: Path, source: Source, _: Wanted) -> Iterator[pd.DataFrame]:
    separator = separator_of(source.separator or "tab")
    return read_delimited(
        path, separator, csv.QUOTE_NONE, ROWS, source.encoding, source.names
    )  # a quote is a character: 3" bolts


def _read_parquet(path: Path, _: Source, wanted: Wanted) -> Iterator[pd.DataFrame]:
    with pq.ParquetFile(path) as file:
        names = list(wanted(file.schema_arrow.names))
        if file.metadata.num_rows == 0:
            yield file.schema_arrow.empty_table().select(names).to_pandas(ignore_metadata=True)
        for batch in file.iter_batches(batch_size=ROWS, columns=names):
            batch.validate(full=True)  # finds text that is not UTF-8
            # ignored, because pandas' metadata would turn columns into an index
            yield _decoded(pa.Table.from_batches([batch])).to_pandas(ignore_metadata=True)


def _decoded(table: pa.Table) -> pa.Table:
    """Bytes as text where all of a column are UTF-8: Hive, Impala and old Spark leave text unmarked."""
    for place, field in enumerate(table.schema):
        if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
            with suppress(pa.ArrowInvalid):
                table = table.set_column(place, field.name, table[place].cast(pa.large_string()))
    return table


def _read_lines(path: Path, source: Source, _: Wanted) -> Iterator[pd.DataFrame]:
    return read_lines(path, ROWS, source.format == "lines", source.encoding)


_READERS: dict[str, Callable[[Path, Source, Wanted], Iterator[pd.DataFrame]]] = {
    "inter": _read_inter,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "parquet": _read_parquet,
    "lines": _read_lines,
}

# ---------------------------------------------------------------- columns


def _named(
    table: pd.DataFrame, columns: Columns, ratings: bool, file: DataFile, before: int, dates: bool | None
) -> tuple[pd.DataFrame, bool | None]:
    """Select and check the columns, under standard names; also return whether times are dates.

    Args:
        table: a chunk of the file.
        columns: names of the columns.
        ratings: whether ratings are needed.
        file: the file.
        before: number of rows before this chunk.
        dates: whether times are dates; None before the first chunk.
    """
    path = file.path
    found = chosen_columns(list(table.columns), columns, ratings, path, table.attrs.get("twice", ()))
    named = {}
    kept_as_numbers = []
    for ours in ("user", "item"):
        values = table[found[ours]]
        if file.kind != "parquet" and not pd.api.types.is_numeric_dtype(values):  # numbers come from folder names
            values = values.str.strip()  # blanks of fixed-width columns and manual input
        if are_numbers(values):
            kept_as_numbers.append(ours)
        named[ours] = ids(values, path, found[ours], before)
    if "time" in found:
        named["time"], dates = times(table[found["time"]], path, found["time"], before, dates, columns.time_format)
    if ratings and "rating" in found:
        named["rating"] = numbers(table[found["rating"]], path, found["rating"], before)
    made = pd.DataFrame(named)
    made.attrs["numbers"] = kept_as_numbers
    return made, dates


def _benchmark_rows(path: Path, columns: Columns) -> pd.DataFrame:
    """Rows of one part of a benchmark: `user`, `history`, `item`."""
    table = read_table(Source(path, "inter"))
    users = named_column(table, columns.user, path, "columns.user")
    histories = named_column(table, f"{columns.item}_list", path, "columns.item")
    items = named_column(table, columns.item, path, "columns.item")
    return pd.DataFrame(
        {
            "user": ids(users, path, columns.user),
            "item": ids(items, path, columns.item),
            "history": histories.str.split().str.join(" "),
        }
    )
