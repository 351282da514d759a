"""Engines that filter, order and index a log: they run SQL over tables larger than memory.

The statements are those of `sql_pipeline`, the same for every engine. `DuckDB` is embedded and the default; `Spark` runs them
on a cluster.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lares_pl.data.prepare.columns import Columns
from lares_pl.data.prepare.readers import ROWS, Format, read_interactions
from lares_pl.errors import LaresError


class Session(ABC):
    """Tables, and SQL over them."""

    #: SQL function that combines several values into one that can be compared
    tuple_of: ClassVar[str]

    @abstractmethod
    def read(self, source: Path, columns: Columns, kind: Format | None) -> set[str]:
        """Create the table `log`: `user_id`, `item_id`, `moment`, `rating` (if known) and `place`, the row in the file.

        Returns:
            Which of `time` and `rating` the log has; without times every `moment` is equal.

        Raises:
            LaresError: as `read_interactions`.
        """

    @abstractmethod
    def make(self, name: str, query: str) -> None:
        """Store the result of a query as a table; it may replace a table that the query reads."""

    @abstractmethod
    def fetch(self, query: str) -> pa.Table:
        """Return the result of a query, in memory."""

    @abstractmethod
    def write_sequences(self, folder: Path, with_time: bool) -> None:
        """Write the tables `coded`, `users` and `items` as sequences of a prepared dataset.

        Args:
            folder: of the dataset.
            with_time: whether to write timestamps.
        """

    def number(self, query: str) -> int:
        """Return the result of a query for a single number."""
        return int(self.fetch(query).column(0)[0].as_py() or 0)


@dataclass(frozen=True)
class Engine(ABC):
    """Runs the statements."""

    @abstractmethod
    def open(self, folder: Path) -> Any:
        """Return a context manager that yields a `Session`.

        Args:
            folder: for temporary files, on a disk with space for a few copies of the log.
        """


# ---------------------------------------------------------------- DuckDB


@dataclass(frozen=True)
class DuckDB(Engine):
    """The embedded engine: one process, all cores; tables that do not fit into memory are spilled to disk next to the output.

    Args:
        memory: memory limit of its tables (`8GB`); None: a share of the machine's. Reading needs about 1 GB more.
        threads: number of threads; None: all cores.
    """

    memory: str | None = None
    threads: int | None = None

    @contextmanager
    def open(self, folder: Path) -> Iterator[Session]:
        """Open a session on a database file that is deleted afterwards."""
        settings: dict[str, Any] = {"memory_limit": self.memory, "threads": self.threads}
        with tempfile.TemporaryDirectory(prefix=".duckdb.", dir=folder) as place:
            given = {key: value for key, value in settings.items() if value is not None}
            try:
                connection = duckdb.connect(f"{place}/log.duckdb", config={"temp_directory": f"{place}/spilled", **given})
            except duckdb.IOException as error:
                raise _no_room(folder, error) from error
            except duckdb.Error as error:
                raise LaresError(f"--engine.memory {self.memory}, --engine.threads {self.threads}: {error}") from error
            try:
                (bar,) = connection.execute("SELECT current_setting('enable_progress_bar')").fetchall()[0]
                if bar:  # raises in a notebook without ipywidgets, where it is off already
                    connection.execute("SET enable_progress_bar = false")
                yield _DuckDBSession(connection)
            except duckdb.OutOfMemoryException as error:
                raise LaresError(
                    f"the log does not fit into memory: {error}. Raise --engine.memory, or use fewer --engine.threads"
                ) from error
            except duckdb.Error as error:  # a write that falls short is an error of the file, the transaction or the database
                raise _no_room(folder, error) from error
            finally:
                with suppress(duckdb.Error):  # the same write once more
                    connection.close()


def _no_room(folder: Path, error: duckdb.Error) -> LaresError:
    reason = str(error).splitlines()[0]
    return LaresError(
        f"{folder}: the log cannot be stored there while it is sorted: {reason}. Free some space, or choose another --output"
    )


class _DuckDBSession(Session):
    tuple_of = "row"

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection

    def read(self, source: Path, columns: Columns, kind: Format | None) -> set[str]:
        types: pa.Schema | None = None
        rows = 0
        for piece in read_interactions(source, columns, kind):
            file = piece.attrs.get("file", source.name)
            table = _log_rows(piece, rows)
            self._connection.register("piece", table)
            if types is None:
                types = table.schema
                self._connection.execute("CREATE TABLE log AS SELECT * FROM piece")
            else:
                _check_alike(types, table.schema, source, file)
                if _kind(types, "moment") == "whole" and _kind(table.schema, "moment") == "broken":
                    self._connection.execute("ALTER TABLE log ALTER moment TYPE DOUBLE")
                    types = table.schema
                self._connection.execute("INSERT INTO log BY NAME SELECT * FROM piece")
            self._connection.unregister("piece")
            rows += len(table)
        assert types is not None  # an empty log is an error of the reader
        return {name for name, column in (("time", "moment"), ("rating", "rating")) if _kind(types, column) != "none"}

    def make(self, name: str, query: str) -> None:
        self._connection.execute(f"CREATE TABLE made AS {query}")
        self._connection.execute(f"DROP TABLE IF EXISTS {name}")
        self._connection.execute(f"ALTER TABLE made RENAME TO {name}")

    def fetch(self, query: str) -> pa.Table:
        return self._connection.sql(query).to_arrow_table()

    def write_sequences(self, folder: Path, with_time: bool) -> None:
        user_ids = self.fetch("SELECT user_id FROM users WHERE u IN (SELECT u FROM coded) ORDER BY u")["user_id"]
        ordered = self._connection.sql("SELECT u, item, moment FROM coded JOIN items USING (i) ORDER BY u, moment, place")
        fetch = getattr(ordered, "to_arrow_reader", None) or ordered.fetch_arrow_reader  # its name before DuckDB 1.5
        _write_ordered(fetch(ROWS), user_ids, folder / "sequences.parquet", with_time)


def _log_rows(piece: pd.DataFrame, before: int) -> pa.Table:
    """Convert a chunk to rows of the table `log`."""
    piece.attrs.clear()
    table = pa.Table.from_pandas(piece, preserve_index=False)
    names = {"user": "user_id", "item": "item_id", "time": "moment", "rating": "rating"}
    columns = {names[name]: _plain(table[name]) for name in table.column_names}
    without_times = pa.array(np.zeros(len(table), dtype=bool))
    return pa.table({"moment": without_times, **columns, "place": pa.array(np.arange(before, before + len(table)))})


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _kind(types: pa.Schema, name: str) -> Literal["none", "whole", "broken"]:
    """Whether a column of numbers exists, and whether they are integers."""
    if name not in types.names or pa.types.is_boolean(types.field(name).type):
        return "none"
    return "whole" if pa.types.is_integer(types.field(name).type) else "broken"


def _check_alike(first: pa.Schema, new: pa.Schema, source: Path, file: str) -> None:
    """Check that a chunk has the same columns and types as the first one."""
    for name, what in (("moment", "times"), ("rating", "ratings")):
        if (_kind(first, name) == "none") != (_kind(new, name) == "none"):
            has, before = ("no ", "have them") if _kind(new, name) == "none" else ("", "have none")
            raise LaresError(f"{source}: {file} has {has}{what} and the files before it {before}; make all files alike")
    for name in ("user_id", "item_id"):
        # "string" whether pandas 2 made it or, as large_string, pandas 3
        kinds = [str(schema.field(name).type).removeprefix("large_") for schema in (first, new)]
        if kinds[0] != kinds[1]:
            raise LaresError(f"{source}: {name} is {kinds[0]} in the first file and {kinds[1]} in {file}; make all files alike")


def _write_ordered(ordered: pa.RecordBatchReader, user_ids: pa.ChunkedArray, path: Path, with_time: bool) -> None:
    """Write ordered interactions as lists, a row group for each batch of them.

    Args:
        ordered: `u` (ascending), `item` and `moment`.
        user_ids: original ids of the users, in the order of `u`.
        path: the file.
        with_time: whether to write timestamps.
    """
    fields = [("user_id", user_ids.type), ("items", pa.list_(pa.int32()))]
    fields += [("timestamps", pa.list_(pa.int64()))] if with_time else []
    done = 0  # users
    with pq.ParquetWriter(path, pa.schema(fields), compression="zstd", write_page_checksum=True) as writer:

        def write(rows: pa.Table) -> None:
            """Whole users."""
            nonlocal done
            if len(rows) == 0:
                return
            u = rows["u"].to_numpy()
            offsets = pa.array(np.concatenate([[0], np.flatnonzero(np.diff(u)) + 1, [len(u)]]).astype(np.int32))
            ids = user_ids.slice(done, len(offsets) - 1).combine_chunks()
            columns = [ids, pa.ListArray.from_arrays(offsets, rows["item"].combine_chunks().cast(pa.int32()))]
            if with_time:
                moments = rows["moment"].combine_chunks()
                whole = moments if pa.types.is_integer(moments.type) else pc.round(moments, round_mode="half_to_even")
                columns.append(pa.ListArray.from_arrays(offsets, whole.cast(pa.int64())))
            writer.write_table(pa.table(columns, schema=writer.schema))
            done += len(ids)

        kept = ordered.schema.empty_table()  # of the last user, who may continue in the next batch
        for batch in ordered:
            rows = pa.concat_tables([kept, pa.Table.from_batches([batch])])
            u = rows["u"].to_numpy()
            whole = int(np.searchsorted(u, u[-1])) if len(u) else 0
            write(rows.slice(0, whole))
            kept = rows.slice(whole)
        write(kept)
