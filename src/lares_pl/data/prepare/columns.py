"""The columns for user, item, time and rating, and checks of their values; error messages name the row."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lares_pl.errors import LaresError


@dataclass(frozen=True)
class Columns:
    """The names of the columns.

    Args:
        user: user id.
        item: item id.
        time: time of the interaction, a number or a date; None: `timestamp` if there is one, else the order of the file.
        rating: rating; None: `rating` if there is one.
    """

    user: str = "user_id"
    item: str = "item_id"
    time: str | None = None
    rating: str | None = None


def named_column(table: pd.DataFrame, name: str, path: Path, option: str) -> pd.Series:
    """Return a column of a table.

    Args:
        table: the table.
        name: the column's name.
        path: the file of the table, for the message.
        option: the option that sets the column's name, for the message.

    Raises:
        LaresError: if there is none; the message lists the existing columns.
    """
    if name not in table.columns:
        there = ", ".join(map(str, table.columns))
        raise LaresError(f"{path}: no column {name!r}; it has {there}. Set the right one with --{option}")
    return table[name]


def named_columns(
    table: pd.DataFrame, columns: Columns, path: Path, before: int, dates: bool | None
) -> tuple[pd.DataFrame, bool | None]:
    """Return the requested columns under our names, checked, and whether times are dates.

    Args:
        table: a chunk of the file.
        columns: their names.
        path: the file.
        before: number of rows before this chunk.
        dates: whether times are dates; None for the first chunk.
    """

    def column(name: str, option: str) -> pd.Series:
        return named_column(table, name, path, f"columns.{option}")

    if f"{columns.item}_list" in table.columns:
        raise LaresError(
            f"{path}: its rows are histories with a target ({columns.item}_list), a part of RecBole benchmark files. "
            "Name the parts NAME.train.inter, NAME.valid.inter and NAME.test.inter and give their folder"
        )
    named = {
        "user": checked_ids(column(columns.user, "user"), path, columns.user, before),
        "item": checked_ids(column(columns.item, "item"), path, columns.item, before),
    }
    if (time := _wanted(table, columns.time, "timestamp")) is not None:
        named["time"], dates = times(column(time, "time"), path, time, before, dates)
    if (rating := _wanted(table, columns.rating, "rating")) is not None:
        named["rating"] = _numbers(column(rating, "rating"), path, rating, before)
    return pd.DataFrame(named), dates


def times(
    values: pd.Series, source: Path | str, name: str, before: int = 0, dates: bool | None = None
) -> tuple[pd.Series, bool | None]:
    """Convert times to numbers, dates to seconds since 1970; also return whether they are dates.

    Args:
        values: a chunk of the column.
        source: its file or table, for the message.
        name: the column's name, for the message.
        before: number of rows before this chunk.
        dates: whether times are dates; None for the first chunk.

    Raises:
        LaresError: for a missing or invalid time; the message names the row.
    """
    if dates is None and len(values):
        dates = _are_dates(values)
    return (_seconds if dates else _numbers)(values, source, name, before), dates


def _wanted(table: pd.DataFrame, name: str | None, usual: str) -> str | None:
    return name or (usual if usual in table.columns else None)


def checked_ids(values: pd.Series, path: Path, name: str, before: int = 0) -> pd.Series:
    missing = values.isna()
    if values.dtype == object or values.dtype.kind == "m":  # of Parquet: lists, bytes, structures, durations
        odd = ~missing & ~values.map(lambda value: isinstance(value, (str, int, datetime.date)))
        if odd.any():
            kind = type(values[odd].iloc[0]).__name__
            raise LaresError(f"{path}: data row {before + _first(odd)} has a {kind} for {name!r}; expected text or a number")
    if not pd.api.types.is_numeric_dtype(values):
        missing |= values.astype(str) == ""
    if missing.any():
        raise LaresError(f"{path}: data row {before + _first(missing)} has no {name!r}. Fill it in or leave the row out.")
    return values


def _as_text(values: pd.Series) -> pd.Series:
    """Values of any Parquet type as text."""
    return values if isinstance(values.dtype, pd.StringDtype) else values.astype(object).map(str)


def _are_dates(values: pd.Series) -> bool:
    """Whether these are dates, or text without any number."""
    if pd.api.types.is_numeric_dtype(values):
        return False
    return values.dtype.kind == "M" or bool(pd.to_numeric(_as_text(values), errors="coerce").isna().all())


def _seconds(values: pd.Series, source: Path | str, name: str, before: int) -> pd.Series:
    """Dates as seconds since 1970, float64."""
    written = values if values.dtype.kind == "M" else _as_text(values)
    moments = pd.to_datetime(written, errors="coerce", utc=True, format="ISO8601")
    seconds: pd.Series = (moments - pd.Timestamp("1970-01-01", tz="UTC")) / pd.Timedelta(seconds=1)
    return _checked(seconds, values, source, name, before, "a number or an ISO date, as in its first rows")


def _numbers(values: pd.Series, source: Path | str, name: str, before: int) -> pd.Series:
    numbers = values if pd.api.types.is_numeric_dtype(values) else pd.to_numeric(_as_text(values), errors="coerce")
    return _checked(numbers, values, source, name, before, "a number")


def _checked(numbers: pd.Series, values: pd.Series, source: Path | str, name: str, before: int, expected: str) -> pd.Series:
    bad = ~(np.abs(numbers.to_numpy(dtype=float, na_value=np.nan)) < 2.0**63)  # the range of int64
    if bad.any():
        row = _first(bad)
        raise LaresError(
            f"{source}: data row {before + row} has {name!r} = {values.iloc[row - 1]!r}; expected {expected}. "
            "Correct or remove it."
        )
    return numbers


def _first(flags: pd.Series | np.ndarray) -> int:
    """Number of the first flagged row, counted from 1 below the header."""
    return int(np.argmax(np.asarray(flags))) + 1
