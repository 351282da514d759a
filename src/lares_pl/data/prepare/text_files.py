"""Text files of any encoding and compression: delimited tables and lines `user item item …`, read in chunks."""

from __future__ import annotations

import codecs
import csv
import io
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from lares_pl.data.prepare.foreign_formats import FIRST_BYTES, foreign_format
from lares_pl.errors import LaresError

SAMPLE = 10_000  # lines checked before a file is read as lines of items
SEPARATORS = {"\t": "tab", ";": ";", "|": "|", ",": ",", "::": "::"}  # as written, and as the option names them

_MAGIC = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bz2"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"PAR1", "parquet"),
)
_MARKS = (  # longer marks first: that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def magic(path: Path) -> str | None:
    """Detect a compression or `parquet` from the first bytes of a file; None if it is neither."""
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError:
        return None
    return next((kind for first, kind in _MAGIC if head.startswith(first)), None)


def foreign(path: Path) -> str | None:
    """Describe what a file is if it is in a format that is not read (`foreign_format`), also compressed."""
    kind = magic(path)
    try:
        with pa.input_stream(str(path), compression=None if kind == "parquet" else kind) as stream:
            return foreign_format(stream.read(FIRST_BYTES))
    except (OSError, pa.ArrowException):
        return None


def open_text(path: Path, encoding: str | None = None) -> IO[str]:
    """Open a text file, decompressed and without its byte order mark.

    Args:
        path: the file.
        encoding: its encoding; a byte order mark takes precedence; None: UTF-8.

    Raises:
        LaresError: for a format that is no text, and for an unknown encoding.
    """
    kind = magic(path)
    if (what := foreign(path)) is not None:
        raise LaresError(f"{path}: {what}")
    if kind == "parquet":
        raise LaresError(f"{path}: Parquet, whatever its name says: --format parquet")
    with pa.input_stream(str(path), compression=kind) as stream:
        head = stream.read(4)
    marked = next((name for mark, name in _MARKS if head.startswith(mark)), None)
    try:
        codecs.lookup(encoding or "utf-8")
    except LookupError as error:
        raise LaresError(f"{path}: there is no encoding {encoding!r}; usual ones are utf-8, cp1252, latin-1, utf-16") from error
    stream = pa.input_stream(str(path), compression=kind)
    return io.TextIOWrapper(stream, encoding=marked or encoding or "utf-8", newline="")


def read_id_lines(path: Path, encoding: str | None = None) -> list[str]:
    """Read the ids of a text file, one per line; blanks around them and blank lines are ignored.

    Raises:
        LaresError: if the file can't be read.
    """
    try:
        with open_text(path, encoding) as file:
            return [line.strip() for line in file.read().splitlines() if line.strip()]
    except UnicodeError as error:
        raise LaresError(
            f"{path}: is not written in {encoding or 'UTF-8'} ({error}); name its encoding with --encoding"
        ) from error
    except OSError as error:
        raise LaresError(f"{path}: cannot be read: {error}") from error


# ---------------------------------------------------------------- delimited


def read_delimited(
    path: Path,
    separator: str,
    quoting: Literal[0, 3],
    rows: int,
    encoding: str | None = None,
    names: Sequence[str] | None = None,
) -> Iterator[pd.DataFrame]:
    """Read delimited text in chunks, all fields as text.

    `attrs["twice"]` of each chunk has the column names that occur twice in the header.

    Args:
        path: the file.
        separator: separator of fields; a first line `sep=;`, as in Excel, takes precedence.
        quoting: whether quotes enclose fields (`csv.QUOTE_MINIMAL`) or are characters (`csv.QUOTE_NONE`).
        rows: rows per chunk.
        encoding: as in `open_text`.
        names: names of the columns, if there is no header line.
    """
    with open_text(path, encoding) as file:
        first = file.readline()
        said = re.fullmatch(r'"?sep=(.)"?\s*', first)
        separator = said[1] if said else separator
        header = file.readline() if said else first
    if "\0" in first:
        raise LaresError(f"{path}: holds zero bytes, as UTF-16 does. Name its encoding, such as --encoding utf-16-le")
    options: dict[str, Any] = {"dtype": str, "keep_default_na": False, "quoting": quoting, "index_col": False}
    options |= _pandas_separator(separator)
    options |= {} if names is None else {"names": names, "header": None}
    twice = [] if names is not None else _repeated(header, separator, quoting)
    try:
        with (
            open_text(path, encoding) as file,
            pd.read_csv(file, on_bad_lines="error", chunksize=rows, skiprows=1 if said else 0, **options) as pieces,
        ):
            while True:
                with warnings.catch_warnings():
                    warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header would lose fields
                    piece = next(pieces, None)
                if piece is None:
                    return
                piece.attrs["twice"] = twice
                yield piece
    except pd.errors.EmptyDataError:
        return


def _repeated(header: str, separator: str, quoting: Literal[0, 3]) -> list[str]:
    """Names that occur twice in a header line; pandas would rename the second one to `name.1`."""
    line = header.strip("\r\n")
    plain = len(separator) > 1 or quoting == csv.QUOTE_NONE
    fields = line.split(separator) if plain else next(csv.reader([line], delimiter=separator), [])
    return [name for name, count in Counter(fields).items() if count > 1]


def _pandas_separator(separator: str) -> dict[str, Any]:
    if separator == " ":
        return {"sep": r"\s+"}  # any number of blanks
    return {"sep": separator} if len(separator) == 1 else {"sep": re.escape(separator), "engine": "python"}


def separator_of(option: str) -> str:
    """The separator for the value of an option: `tab` and `\\t` are a tab, `space` is a blank."""
    return {"tab": "\t", "\\t": "\t", "space": " "}.get(option, option)


# ---------------------------------------------------------------- lines


def read_lines(path: Path, rows: int, asked: bool, encoding: str | None = None) -> Iterator[pd.DataFrame]:
    """Read lines `user item item …` in chunks with columns `user` and `item`.

    Args:
        path: the file.
        rows: approximate number of rows per chunk.
        asked: whether the user set the format; otherwise it was taken from the file extension.
        encoding: as in `open_text`.

    Raises:
        LaresError: for a user without items, and for lines that look like rows of a table.
    """
    users: list[str] = []
    lengths: list[int] = []
    items: list[str] = []

    def piece() -> pd.DataFrame:
        user_of_row = np.repeat(np.array(users, dtype=object), lengths)
        return pd.DataFrame({"user": user_of_row, "item": np.array(items, dtype=object)}, dtype="str")

    with open_text(path, encoding) as file:
        sample = list(islice(file, SAMPLE))
        _refuse_tables(path, sample, asked)
        for number, line in enumerate(chain(sample, file), start=1):
            fields = line.split()
            if not fields:
                continue
            if len(fields) == 1:
                raise LaresError(f"{path}: line {number} has a user ({fields[0]}) and no item; expected `user item item …`")
            users.append(fields[0])
            lengths.append(len(fields) - 1)
            items.extend(fields[1:])
            if len(items) >= rows:
                yield piece()
                users, lengths, items = [], [], []
    yield piece()


def _refuse_tables(path: Path, lines: Sequence[str], asked: bool) -> None:
    """Raise if lines are rows of a table rather than users with their items."""
    split = [fields for line in lines if (fields := line.split())]
    if not split:
        return
    line = next(line for line in lines if line.strip()).strip()
    separator = next((sep for sep in SEPARATORS if sep in line), None)
    if len(split[0]) == 1 and separator is not None:
        raise LaresError(
            f"{path}: its fields are separated by {separator!r}, as in {line[:80]!r}; expected lines `user item item …`. Read "
            f"it as a table: --format csv --separator '{SEPARATORS[separator]}'; without a header line also --header NAME,…"
        )
    lists = next((sep for sep in (",", ";", "|") if all(len(fields) == 2 and sep in fields[1] for fields in split)), None)
    if lists is not None and not asked:
        raise LaresError(
            f"{path}: its items are separated by {lists!r}, as in {line[:80]!r}; expected blanks, as in `user item item …`. "
            "Replace the separators, or if the items are so called: --format lines"
        )
    option = "tab" if "\t" in line else "space"
    if {"user_id", "item_id"} <= {field.split(":")[0] for field in split[0]}:
        raise LaresError(
            f"{path}: begins with a header ({line[:80]!r}), so it is a table and no lines `user item item …`: "
            f"--format csv --separator {option}"
        )
    count = len(split[0])
    if not 3 <= count <= 5 or len(split) < 2 or any(len(fields) != count for fields in split):
        return
    several = len({fields[0] for fields in split}) < len(split)  # a user with several lines
    timed = _end_with_times(split)
    if timed or (several and not asked):
        names = ["user_id", "item_id", *(["timestamp"] if timed and count == 3 else ["rating", "timestamp", "more"])]
        raise LaresError(
            f"{path}: every line has {count} fields, as in {line[:80]!r}, so these may be rows such as `user item rating time` "
            f"rather than lines `user item item …`. For rows: --format csv --separator {option} --header "
            f"{','.join(names[:count])} (their names, in this order)" + ("" if asked else "; for items: --format lines")
        )


def _end_with_times(split: Sequence[Sequence[str]]) -> bool:
    """Whether the last fields are Unix times (1973 to 2128, in seconds or finer) that occur in no other column."""
    last = [fields[-1] for fields in split]
    if not all(field.isascii() and field.isdigit() and len(field) in (9, 10, 12, 13, 15, 16) for field in last):
        return False
    others = [field for fields in split for field in fields[1:-1]]
    return not set(last) & set(others) and max(map(len, others)) < min(map(len, last))
