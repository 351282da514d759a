"""Raw files to one table of interactions, in file order.

Formats, told by the file's name (`.gz` may follow): RecBole atomic files (`.inter`), comma- or tab-separated tables with
a header (`.csv`, `.tsv`), Parquet (`.parquet`), and lines `user item item …` (`.txt`; a user may have several lines).
RecBole benchmark files, split already, are told by the folder or by one of their names (`NAME.train.inter`).
"""

from __future__ import annotations

import csv
import gzip
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
import pandas as pd

from lares_pl.data.benchmark import benchmark_files, join_parts
from lares_pl.errors import LaresError

Format = Literal["inter", "csv", "tsv", "parquet", "lines"]


@dataclass(frozen=True)
class Columns:
    """Which column holds what.

    Args:
        user: user id.
        item: item id.
        time: time of the interaction, a number or a date; None takes `timestamp` if there is one, else file order counts.
        rating: rating; None takes `rating` if there is one.
    """

    user: str = "user_id"
    item: str = "item_id"
    time: str | None = None
    rating: str | None = None


def read_interactions(path: Path, columns: Columns, kind: Format | None = None) -> pd.DataFrame:
    """One row an interaction: `user`, `item` and, where known, `time` (int64 or float64) and `rating` (float64).

    Args:
        path: the file, or the folder of benchmark files.
        columns: column names; lines have none.
        kind: the format, where the file's name does not tell.

    Raises:
        LaresError: for a missing file, an unknown format, a missing column or a value that can't be read; names the row.
    """
    if kind is None and (parts := benchmark_files(path)) is not None:
        return join_parts((part, _benchmark_rows(part, columns)) for part in parts)
    kind = _resolved(path, kind)
    table = read_table(path, kind)
    interactions = table if kind == "lines" else _named(table, columns, path)
    if interactions.empty:
        raise LaresError(f"{path}: no interactions in it")
    return interactions


def source_files(path: Path, kind: Format | None = None) -> list[Path]:
    """The files that `read_interactions` reads for this path."""
    return (benchmark_files(path) if kind is None else None) or [path]


def read_table(path: Path, kind: Format | None = None) -> pd.DataFrame:
    """A file as it is, columns under their own names.

    Args:
        path: the file.
        kind: the format, where the file's name does not tell.

    Raises:
        LaresError: for a missing file, an unknown format, or a file that can't be read.
    """
    kind = _resolved(path, kind)
    try:
        return _READERS[kind](path)
    except LaresError:
        raise
    except pd.errors.ParserWarning as error:
        raise LaresError(f"{path}: its rows have more fields than its header; mend the header or the rows") from error
    except (OSError, EOFError, UnicodeDecodeError, ValueError) as error:  # ParserError and ArrowInvalid are ValueErrors
        raise LaresError(f"{path}: can't be read as {kind}: {error}. Name another --format if it is another one.") from error


def named_column(table: pd.DataFrame, name: str, path: Path, option: str) -> pd.Series:
    """A column of a table.

    Args:
        table: the table.
        name: the column's name.
        path: where the table was read from, for the message.
        option: option that names the column, for the message.

    Raises:
        LaresError: if there is none; says which there are.
    """
    if name not in table.columns:
        there = ", ".join(map(str, table.columns))
        raise LaresError(f"{path}: no column {name!r}; it has {there}. Name the right one with --{option}")
    return table[name]


def _resolved(path: Path, kind: Format | None) -> Format:
    """The format of a file that is there."""
    if not path.is_file():
        raise LaresError(f"no such file: {path}. Give the path of a file in one of the formats {', '.join(_READERS)}.")
    return _format_of(path) if kind is None else kind


def _format_of(path: Path) -> Format:
    name = path.name.removesuffix(".gz")
    if name != path.name and name.endswith((".parquet", ".pq")):
        raise LaresError(f"{path}: Parquet is compressed inside already; unpack the .gz first")
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
        raise LaresError(f"{path}: can't tell the format from the ending {suffix!r}; name it: --format {'|'.join(_READERS)}")
    return known[suffix]


# ---------------------------------------------------------------- readers


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")


def _read_delimited(path: Path, separator: str, quoting: Literal[0, 3]) -> pd.DataFrame:
    with _open(path) as file, warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header would lose fields
        return pd.read_csv(
            file, sep=separator, dtype=str, keep_default_na=False, quoting=quoting, on_bad_lines="error", index_col=False
        )


def _read_inter(path: Path) -> pd.DataFrame:
    table = _read_delimited(path, "\t", csv.QUOTE_NONE)
    return table.rename(columns={name: str(name).split(":")[0] for name in table.columns})


def _read_csv(path: Path) -> pd.DataFrame:
    return _read_delimited(path, ",", csv.QUOTE_MINIMAL)


def _read_tsv(path: Path) -> pd.DataFrame:
    return _read_delimited(path, "\t", csv.QUOTE_NONE)  # a quote is a character there: 3" bolts


def _read_parquet(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path)


def _read_lines(path: Path) -> pd.DataFrame:
    users: list[str] = []
    lengths: list[int] = []
    items: list[str] = []
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
    user_of_row = np.repeat(np.array(users, dtype=object), lengths)
    return pd.DataFrame({"user": user_of_row, "item": np.array(items, dtype=object)})


_READERS: dict[Format, Callable[[Path], pd.DataFrame]] = {
    "inter": _read_inter,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "parquet": _read_parquet,
    "lines": _read_lines,
}

# ---------------------------------------------------------------- columns


def _named(table: pd.DataFrame, columns: Columns, path: Path) -> pd.DataFrame:
    """The columns asked for, under our names, checked."""

    def column(name: str, option: str) -> pd.Series:
        return named_column(table, name, path, f"columns.{option}")

    if f"{columns.item}_list" in table.columns:
        raise LaresError(
            f"{path}: its rows are histories with a target ({columns.item}_list), a part of RecBole benchmark files. "
            "Call the parts NAME.train.inter, NAME.valid.inter and NAME.test.inter and give their folder"
        )
    named = {
        "user": _ids(column(columns.user, "user"), path, columns.user),
        "item": _ids(column(columns.item, "item"), path, columns.item),
    }
    for option, wanted, usual in (("time", columns.time, "timestamp"), ("rating", columns.rating, "rating")):
        name = wanted or (usual if usual in table.columns else None)
        if name is not None:
            named[option] = _numbers(column(name, option), path, name, dates=option == "time")
    return pd.DataFrame(named)


def _benchmark_rows(path: Path, columns: Columns) -> pd.DataFrame:
    """Rows of one part of a benchmark: `user`, `history`, `item`."""
    table = read_table(path, "inter")
    users = named_column(table, columns.user, path, "columns.user")
    histories = named_column(table, f"{columns.item}_list", path, "columns.item")
    items = named_column(table, columns.item, path, "columns.item")
    return pd.DataFrame(
        {
            "user": _ids(users, path, columns.user),
            "item": _ids(items, path, columns.item),
            "history": histories.str.split().str.join(" "),
        }
    )


def _ids(values: pd.Series, path: Path, name: str) -> pd.Series:
    missing = values.isna() | (values.astype(str) == "")
    if missing.any():
        raise LaresError(f"{path}: data row {_first(missing)} has no {name!r}. Fill it in or leave the row out.")
    return values


def _numbers(values: pd.Series, path: Path, name: str, dates: bool) -> pd.Series:
    numbers = values
    if not pd.api.types.is_numeric_dtype(values):
        numbers = pd.to_numeric(values, errors="coerce") if values.dtype.kind not in "mM" else values
        if (dates and numbers.isna().all()) or numbers.dtype.kind in "mM":
            moments = pd.to_datetime(values, errors="coerce", utc=True, format="ISO8601")
            numbers = (moments - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)
    bad = ~np.isfinite(numbers.to_numpy(dtype=float, na_value=np.nan))
    if bad.any():
        row = _first(bad)
        what = "a number or an ISO date" if dates else "a number"
        raise LaresError(f"{path}: data row {row} has {name!r} = {values.iloc[row - 1]!r}; expected {what}. Mend or remove it.")
    return numbers


def _first(flags: pd.Series | np.ndarray) -> int:
    """Number of the first flagged row, counted from 1 below the header."""
    return int(np.argmax(np.asarray(flags))) + 1
