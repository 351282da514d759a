"""The statements of `lares_pl.data.prepare.sql_pipeline` on a Spark cluster: for logs that one machine should not sort."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from lares_pl.data.prepare.columns import Columns
from lares_pl.data.prepare.engines import Engine, Session
from lares_pl.data.prepare.readers import Format
from lares_pl.errors import LaresError

ROW_BITS = 40  # of a row's place: the lower bits are the row in its file, the upper bits the file


@dataclass(frozen=True)
class Spark(Engine):
    """Spark, for logs in Parquet. Needs the extra `spark` and Java.

    The log and the output must be on a shared file system, under the same path for every worker.

    Args:
        master: the cluster: `local[4]`, `spark://host:7077`, `yarn`; None: that of the environment (`spark-submit`).
        memory: memory of the driver and of each executor (`8g`), if this process starts them.
    """

    master: str | None = None
    memory: str | None = None

    @contextmanager
    def open(self, folder: Path) -> Iterator[Session]:
        """Open a session; one that is already running is used and left unchanged."""
        if importlib.util.find_spec("pyspark") is None:
            raise LaresError("--engine lares_pl.Spark needs pyspark: pip install 'lares-pl[spark]'")
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession

        running = SparkSession.getActiveSession()
        builder = SparkSession.builder.appName("lares prepare").config("spark.ui.showConsoleProgress", "false")
        builder = builder.config("spark.log.level", "ERROR").config("spark.sql.session.timeZone", "UTC")
        builder = builder if self.master is None else builder.master(self.master)
        for of in ("driver", "executor") if self.memory is not None else ():
            builder = builder.config(f"spark.{of}.memory", self.memory)
        try:
            spark = running or builder.getOrCreate()
        except Exception as error:  # any error of Java and the cluster
            raise LaresError(f"Spark could not be started: {str(error).splitlines()[0]}") from error
        with tempfile.TemporaryDirectory(prefix=".spark.", dir=folder) as place:
            try:
                spark.sparkContext.setCheckpointDir(place)
                yield _SparkSession(spark)
            except PySparkException as error:
                raise LaresError(f"Spark: {str(error).splitlines()[0]}") from error
            finally:
                if running is None:
                    spark.stop()


class _SparkSession(Session):
    tuple_of = "struct"

    def __init__(self, spark: Any) -> None:
        self._spark = spark

    def read(self, source: Path, columns: Columns, kind: Format | None) -> set[str]:
        files = sorted(source.glob("*.parquet")) if source.is_dir() else [source]
        if kind not in (None, "parquet") or not files or any(file.suffix != ".parquet" or not file.is_file() for file in files):
            raise LaresError(f"{source}: on Spark the log must be a Parquet file or a folder of them; convert it first")
        frame = self._spark.read.parquet(*map(str, files))
        types = {field.name: field.dataType.typeName() for field in frame.schema.fields}
        time = columns.time or ("timestamp" if "timestamp" in types else None)
        rating = columns.rating or ("rating" if "rating" in types else None)
        asked = {"columns.user": columns.user, "columns.item": columns.item, "columns.time": time, "columns.rating": rating}
        for option, name in asked.items():
            if name is not None and name not in types:
                raise LaresError(f"{source}: no column {name!r}; it has {', '.join(types)}. Set the right one with --{option}")
        names = [file.name.replace("'", "\\'") for file in files]
        number = " ".join(f"WHEN file = '{name}' THEN {place}" for place, name in enumerate(names))
        decoded = "url_decode(replace(_metadata.file_name, '+', '%2B')) AS file"
        frame.selectExpr("*", decoded, "_metadata.row_index AS row").createOrReplaceTempView("rows")
        selected = {
            "user_id": f"`{columns.user}`",
            "item_id": f"`{columns.item}`",
            "moment": "false" if time is None else _moment(time, types[time]),
            "place": f"(CASE {number} END) * {1 << ROW_BITS} + row",
            **({} if rating is None else {"rating": f"try_cast(`{rating}` AS DOUBLE)"}),
        }
        self.make("log", f"SELECT {', '.join(f'{what} AS {name}' for name, what in selected.items())} FROM rows")
        self._check(source, {name: str(asked[f"columns.{option}"]) for name, option in _OPTIONS.items() if name in selected})
        return {name for name, column in (("time", time), ("rating", rating)) if column is not None}

    def _check(self, source: Path, names: dict[str, str]) -> None:
        """Reject invalid values; the message names the first row."""
        for column, name in names.items():
            if column in ("user_id", "item_id"):
                bad, expected = f"{column} IS NULL OR CAST({column} AS STRING) = ''", "an id"
            else:
                bad, expected = f"{column} IS NULL OR CAST({column} AS STRING) IN ('NaN', 'Infinity', '-Infinity')", "a number"
            found = self.fetch(f"SELECT min(place) AS place FROM log WHERE {bad}")["place"][0].as_py()
            if found is not None:
                row = (found & ((1 << ROW_BITS) - 1)) + 1
                raise LaresError(
                    f"{source}: data row {row} of file {(found >> ROW_BITS) + 1} has no usable {name!r}; expected {expected}. "
                    "Correct it or remove the row."
                )
        if self.number("SELECT count(*) FROM log") == 0:
            raise LaresError(f"{source}: no interactions in it")

    def make(self, name: str, query: str) -> None:
        # a checkpoint of the plan, which would otherwise be recomputed for each use
        self._spark.sql(query).checkpoint().createOrReplaceTempView(name)

    def fetch(self, query: str) -> pa.Table:
        table: pa.Table = self._spark.sql(query).toArrow()
        return table

    def write_sequences(self, folder: Path, with_time: bool) -> None:
        moments = "transform(rows, row -> CAST(rint(row.moment) AS BIGINT))"
        times = f", {moments} AS timestamps" if with_time else ""
        # arrays of structs are sorted by moment, then by place
        lists = "array_sort(collect_list(struct(moment, place, item))) AS rows FROM coded JOIN items USING (i) GROUP BY u"
        items = "transform(rows, row -> CAST(row.item AS INT)) AS items"
        query = f"SELECT u, user_id, {items}{times} FROM (SELECT u, {lists}) AS lists JOIN users USING (u)"
        ordered = self._spark.sql(query).repartitionByRange("u").sortWithinPartitions("u").drop("u")
        ordered.write.option("compression", "zstd").parquet(str(folder / "sequences"))
        for path in (folder / "sequences").iterdir():
            if path.suffix != ".parquet":
                path.unlink()  # Spark's own marks and checksums


_OPTIONS = {"user_id": "user", "item_id": "item", "moment": "time", "rating": "rating"}


def _moment(name: str, kind: str) -> str:
    """A time as a number; timestamps as seconds since 1970."""
    if kind in ("timestamp", "timestamp_ntz", "date"):
        return f"CAST(CAST(`{name}` AS TIMESTAMP) AS DOUBLE)"
    return f"try_cast(`{name}` AS DOUBLE)" if kind in ("string", "decimal") else f"`{name}`"
