"""The columns for user, item, time and rating, and checks of their values; error messages name the row."""

from __future__ import annotations

import datetime
import decimal
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lares_pl.data.dataset.ids import plain_ids
from lares_pl.data.prepare.text_files import SEPARATORS
from lares_pl.errors import LaresError

_TIMES = re.compile(r"(.*[ _])?(times?|timestamp|ts|date|datetime|at)|unix(review)?time")
_MISSING = {"null", "nan", "none", "na", "n/a", "#n/a", "<na>", "nil"}  # among numbers no id
_EXACT = {2: 2.0**11, 4: 2.0**24, 8: 2.0**53}  # below these, floats of so many bytes hold every whole number


@dataclass(frozen=True)
class Columns:
    """The names of the columns.

    Args:
        user: user id.
        item: item id.
        time: time of the interaction, a number or a date; None: `timestamp` if there is one, else file order. An empty name:
            file order.
        rating: rating; None: `rating` if there is one. Ratings are read only with a minimum rating.
        time_format: format of dates, if not ISO 8601 (2020-01-31 13:05:00), such as `%d/%m/%Y %H:%M` for 31/01/2020 13:05.
    """

    user: str = "user_id"
    item: str = "item_id"
    time: str | None = None
    rating: str | None = None
    time_format: str | None = None


def chosen_columns(
    names: Sequence[str], columns: Columns, ratings: bool, path: Path, twice: Sequence[str] = ()
) -> dict[str, str]:
    """Find the columns of `user`, `item` and, if there are any, `time` and `rating`.

    Args:
        names: names of all columns.
        columns: the requested columns.
        ratings: whether ratings are needed, even if no column is named for them.
        path: the file.
        twice: names that occur twice in the file.

    Raises:
        LaresError: if a column is missing or occurs twice.
    """
    if f"{columns.item}_list" in names:
        raise LaresError(
            f"{path}: its rows are histories with a target ({columns.item}_list), a part of RecBole benchmark files. "
            "Name the parts NAME.train.inter, NAME.valid.inter and NAME.test.inter and give their folder"
        )
    found = {"user": columns.user, "item": columns.item}
    if columns.user == columns.item:
        raise LaresError(f"{path}: column {columns.user!r} can't be both user and item; name two with --columns.user and .item")
    for ours, asked, usual in (("time", columns.time, "timestamp"), ("rating", columns.rating, "rating")):
        if (name := asked if asked is not None else _usual(names, usual, path, ours)) and (asked or ours == "time" or ratings):
            found[ours] = name
    for ours, name in found.items():
        if name not in names:
            raise no_column(names, name, path, f"columns.{ours}")
        if name in twice or list(names).count(name) > 1:
            raise LaresError(f"{path}: has two columns called {name!r}; rename one of them")
    return found


def _usual(names: Sequence[str], usual: str, path: Path, ours: str) -> str | None:
    """Find the column with a default name, in any letter case and with blanks; without it the order would silently change."""
    like = [name for name in names if _plain(name) == usual]
    if usual == "timestamp" and not like and (others := possible_times(names)):
        raise LaresError(
            f"{path}: no column {usual!r} to order a user's items by. If {others[0]!r} holds their times, name it: "
            f"--columns.time {others[0]}; the order of the file counts with --columns.time ''"
        )
    if usual in names or not like:
        return usual if usual in names else None
    if len(like) > 1:
        raise LaresError(f"{path}: which of {' and '.join(map(repr, like))} holds the {ours}? Name it with --columns.{ours}")
    return like[0]


def possible_times(names: Sequence[str]) -> list[str]:
    """Names of columns that may hold times."""
    return [name for name in names if _TIMES.fullmatch(_plain(name))]


def no_column(names: Sequence[str], name: str, path: Path, option: str) -> LaresError:
    """Build the error for a missing column: the existing columns, the probable cause, and what to do."""
    there = ", ".join(map(str, names[:20])) + (", …" if len(names) > 20 else "")
    what = f"{path}: no column {name!r}; it has {there[:400]}"
    written = [str(other) for other in names]
    separator = next((sep for sep in SEPARATORS if len(written) == 1 and sep in written[0]), None)
    if separator is not None:
        return LaresError(f"{what}: its fields are separated by {separator!r}; give --separator '{SEPARATORS[separator]}'")
    for other in written:
        if _plain(other) == _plain(name):
            quote = next((quote for quote in "\"'" if other.strip().startswith(quote) and not name.startswith(quote)), None)
            differs = "is enclosed in quotes" if quote else "differs in letter case or blanks only"
            reads = (
                "--format csv --separator tab reads quoted fields" if quote == '"' else "Replace these quotes by double ones"
            )
            remedy = reads if quote else f"Name it as it is: --{option} '{other}'"
            return LaresError(f"{what}. {other!r} {differs}. {remedy}")
    named = {"user_id", "item_id", "timestamp", "rating"} & {_plain(other) for other in written}
    if not named and any(re.fullmatch(r"-?\d+(\.\d+)*|\d{4}-\d\d-\d\d.*", other) for other in written):
        return LaresError(
            f"{what}: its first line holds values, not names. Name the columns in their order, such as "
            "--header user_id,item_id,timestamp"
        )
    return LaresError(f"{what}. Set the right one with --{option}")


def _plain(name: str) -> str:
    return str(name).strip().strip("\"'").strip().casefold()


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
        raise no_column(list(table.columns), name, path, option)
    return table[name]


# ---------------------------------------------------------------- ids


def ids(values: pd.Series, path: Path, name: str, before: int = 0) -> pd.Series:
    """Ids as int64 where they are whole numbers, else as text (`plain_ids`).

    Args:
        values: a piece of the column.
        path: the file, for messages.
        name: the column's name, for messages.
        before: number of rows before this piece.

    Raises:
        LaresError: for an id that is missing, is neither text nor a number, or is a number that lost digits; names the row.
    """
    missing = values.isna()
    if values.dtype == object or values.dtype.kind == "m":  # of Parquet: lists, bytes, structures, durations
        known = (str, int, float, decimal.Decimal, uuid.UUID, datetime.date)
        odd = ~missing & ~values.map(lambda value: isinstance(value, known))
        if odd.any():
            found = values[odd].iloc[0]
            if isinstance(found, (list, tuple, np.ndarray)):
                raise _list_of_items(path, before + first(odd), name)
            raise LaresError(
                f"{path}: data row {before + first(odd)} has a {type(found).__name__} for {name!r}; expected text or a number"
            )
    if not pd.api.types.is_numeric_dtype(values):
        written = values.astype(str).str.strip()
        missing |= written.isin(["", r"\N"])
        words = ~missing & written.str.casefold().isin(_MISSING)
        if words.any() and written[~missing & ~words].str.fullmatch(r"-?\d+(\.0+)?").all():
            row = first(words)
            raise LaresError(
                f"{path}: data row {before + row} has {name!r} = {values.iloc[row - 1]!r} among numbers, as if it were "
                "missing. Fill it in or leave the row out."
            )
        if len(written) and not missing.iloc[0] and re.fullmatch(r"[\[(].*,.*[\])]", written.iloc[0]):
            raise _list_of_items(path, before + 1, name)
        _refuse_rounded(written, path, name, before)
    if missing.any():
        raise LaresError(f"{path}: data row {before + first(missing)} has no {name!r}. Fill it in or leave the row out.")
    if pd.api.types.is_float_dtype(values):
        _check_digits(values, path, name, before)
    return plain_ids(values)


def _list_of_items(path: Path, row: int, name: str) -> LaresError:
    return LaresError(
        f"{path}: data row {row} has a list for {name!r}; expected one row per interaction, such as pandas' "
        f"table.explode({name!r}) makes, or a text file of lines `user item item …`"
    )


def _refuse_rounded(written: pd.Series, path: Path, name: str, before: int) -> None:
    """Raise for ids such as 1.23457E+12: spreadsheets write long numbers so, and drop digits."""
    signed = written.str.contains("+", regex=False, na=False)
    if not signed.any():
        return
    rounded = signed & written.str.fullmatch(r"-?\d([.,]\d+)?[eE]\+\d+", na=False)
    if rounded.any() and written[~rounded].str.fullmatch(r"-?\d+").all():
        row = first(rounded)
        raise LaresError(
            f"{path}: data row {before + row} has {name!r} = {written.iloc[row - 1]!r}, a number that lost digits, as "
            "spreadsheets write long ones. Format the column as text there and save it again"
        )


def are_numbers(values: pd.Series) -> bool:
    """Whether ids are kept as numbers, by their type."""
    numbers = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    return numbers or (values.dtype == object and len(values) > 0 and isinstance(values.iloc[0], (int, decimal.Decimal)))


def _check_digits(values: pd.Series, path: Path, name: str, before: int) -> None:
    numbers = values.to_numpy(dtype=float)
    wide = np.abs(numbers) >= _EXACT.get(getattr(values.dtype, "itemsize", 8), 2.0**53)
    if wide.any():
        row = first(wide)
        raise LaresError(
            f"{path}: data row {before + row} has {name!r} = {numbers[row - 1]!r}, a floating-point number too large to keep "
            "the digits of an id. Write ids as whole numbers or as text"
        )


# ---------------------------------------------------------------- times and ratings


def times(
    values: pd.Series, source: Path | str, name: str, before: int = 0, dates: bool | None = None, written: str | None = None
) -> tuple[pd.Series, bool | None]:
    """Convert times to numbers, dates to seconds since 1970; also return whether they are dates.

    Args:
        values: a chunk of the column.
        source: its file or table, for the message.
        name: the column's name, for the message.
        before: number of rows before this piece.
        dates: whether times are dates; None before the first piece.
        written: how dates are written (`Columns.time_format`); ISO 8601 where None.

    Raises:
        LaresError: for a missing or invalid time; the message names the row.
    """
    if dates is None and len(values):
        dates = written is not None or _are_dates(values)
    if dates:
        return _seconds(values, source, name, before, written), dates
    return numbers(values, source, name, before), dates


def _as_text(values: pd.Series) -> pd.Series:
    """Values of any Parquet type as text."""
    return values if isinstance(values.dtype, pd.StringDtype) else values.astype(object).map(str)


def _are_dates(values: pd.Series) -> bool:
    """Whether most of these are not numbers: a date or a number among many of the other is the one to be named."""
    numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    return not numeric and (
        values.dtype.kind == "M" or bool(pd.to_numeric(_as_text(values).replace("", "0"), errors="coerce").isna().mean() > 0.5)
    )


def _seconds(values: pd.Series, source: Path | str, name: str, before: int, written: str | None) -> pd.Series:
    """Dates as seconds since 1970, float64; UTC and GMT are zones as BigQuery and Trino write them."""
    moments = values if values.dtype.kind == "M" else _as_text(values).str.replace(r"\s*(?:UTC|GMT)\s*$", "Z", regex=True)
    moments = pd.to_datetime(moments, errors="coerce", utc=True, format=written or "ISO8601")
    seconds: pd.Series = (moments - pd.Timestamp("1970-01-01", tz="UTC")) / pd.Timedelta(seconds=1)
    expected = f"a date written as {written!r}" if written else "a number or an ISO date, as in its first rows"
    remedy = "Correct or remove it" + ("" if written else ", or say how dates are written with --columns.time_format")
    return _checked(seconds, values, source, name, before, expected, remedy)


def numbers(values: pd.Series, source: Path | str, name: str, before: int) -> pd.Series:
    """Numbers, also of text; raises as `times`."""
    found = values if pd.api.types.is_numeric_dtype(values) else pd.to_numeric(_as_text(values), errors="coerce")
    return _checked(found, values, source, name, before, "a number below 2^63", "Correct or remove it")


def _checked(
    found: pd.Series, values: pd.Series, source: Path | str, name: str, before: int, expected: str, remedy: str
) -> pd.Series:
    bad = ~(np.abs(found.to_numpy(dtype=float, na_value=np.nan)) < 2.0**63)  # as a number the file can hold
    if bad.any():
        row = first(bad)
        value = values.iloc[row - 1]
        what = f"{name!r} = {value!r}; expected {expected}. {remedy}"
        what = what if str(value).strip() else f"no {name!r}. Fill it in or leave the row out"
        raise LaresError(f"{source}: data row {before + row} has {what}.")
    return found


def first(flags: pd.Series | np.ndarray) -> int:
    """Number of the first flagged row, counted from 1 below the header."""
    return int(np.argmax(np.asarray(flags))) + 1
