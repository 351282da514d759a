"""The statements of `lares_pl.data.prepare.sql_pipeline` on a Spark cluster: for logs that one machine should not sort."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from lares_pl.data.prepare.columns import Columns, chosen_columns
from lares_pl.data.prepare.engines import Engine, Session
from lares_pl.data.prepare.source import DataFile, Source, data_files
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
        from py4j.protocol import Py4JError
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
            except (PySparkException, Py4JError) as error:
                lines = [line for line in str(error).splitlines() if not line.startswith("An error occurred while calling")]
                raise LaresError(f"Spark: {lines[0] if lines else type(error).__name__}") from error
            finally:
                if running is None:
                    spark.stop()


class _SparkSession(Session):
    tuple_of = "struct"

    def __init__(self, spark: Any) -> None:
        self._spark = spark

    def read(self, source: Source, columns: Columns, ratings: bool) -> set[str]:
        files = data_files(source)
        if any(file.kind != "parquet" for file in files):
            raise LaresError(f"{source.path}: on Spark the log must be a Parquet file or a folder of them; convert it first")
        if columns.time_format is not None:
            raise LaresError("--columns.time_format: on Spark dates are read as ISO 8601 only; write them so first")
        frame = self._frame(source, files)
        types = {field.name: field.dataType.typeName() for field in frame.schema.fields}
        types |= {name: "long" for name, value in files[0].partition.items() if isinstance(value, int)}
        found = chosen_columns(list(types), columns, ratings, source.path)
        if not ratings:
            found.pop("rating", None)
        paths = [str(file.path.absolute()).replace("\\", "\\\\").replace("'", "\\'") for file in files]
        number = " ".join(f"WHEN file = '{path}' THEN {place}" for place, path in enumerate(paths))
        decoded = "regexp_replace(url_decode(replace(_metadata.file_path, '+', '%2B')), '^file:/+', '/') AS file"
        frame.selectExpr("*", decoded, "_metadata.row_index AS row").createOrReplaceTempView("rows")
        selected = {
            "user_id": self._id(found["user"], types[found["user"]]),
            "item_id": self._id(found["item"], types[found["item"]]),
            "moment": self._moment(found["time"], types[found["time"]]) if "time" in found else "false",
            "place": f"(CASE {number} END) * {1 << ROW_BITS} + row",
            **({"rating": f"try_cast(`{found['rating']}` AS DOUBLE)"} if "rating" in found else {}),
        }
        self.make("log", f"SELECT {', '.join(f'{what} AS {name}' for name, what in selected.items())} FROM rows")
        self._check(source.path, {name: found[ours] for name, ours in _OURS.items() if ours in found})
        return {"time", "rating"} & set(found)

    def _frame(self, source: Source, files: Sequence[DataFile]) -> Any:
        """The files as one table, with the columns that the names of their folders give, as text."""
        inference = "spark.sql.sources.partitionColumnTypeInference.enabled"  # would make 007 a 7
        before = self._spark.conf.get(inference)
        self._spark.conf.set(inference, "false")
        try:
            root = source.path if source.path.is_dir() else source.path.parent
            return self._spark.read.option("basePath", str(root.absolute())).parquet(
                *(str(file.path.absolute()) for file in files)
            )
        finally:
            self._spark.conf.set(inference, before)

    def _id(self, name: str, kind: str) -> str:
        """An id as a whole number where all are, else as text: as the embedded engine keeps it (`plain_ids`)."""
        if kind in ("byte", "short", "integer", "long"):
            return f"CAST(`{name}` AS BIGINT)"
        text = f"CAST(`{name}` AS STRING)"
        if kind not in ("decimal", "float", "double"):
            return text
        largest = {"float": 2**24, "double": 2**53}.get(kind)
        if largest is not None and self.number(f"SELECT count(*) FROM rows WHERE abs(`{name}`) >= {largest}"):
            raise LaresError(
                f"{name!r} has floating-point numbers too large to keep the digits of an id. Write ids as "
                "whole numbers or as text"
            )
        whole = f"try_cast(`{name}` AS BIGINT)"
        if self.number(f"SELECT count(*) FROM rows WHERE `{name}` IS NOT NULL AND NOT ({whole} <=> `{name}`)") == 0:
            return whole
        return f"CASE WHEN instr({text}, '.') > 0 THEN regexp_replace({text}, '[.]?0+$', '') ELSE {text} END"

    def _moment(self, name: str, kind: str) -> str:
        """A time as a number; moments as seconds since 1970, also of text in which nothing is a number."""
        if kind in ("string", "decimal"):
            number = f"try_cast(`{name}` AS DOUBLE)"
            if kind == "decimal" or self.number(f"SELECT count(*) FROM rows WHERE {number} IS NOT NULL"):
                return number
            return f"CAST(try_cast(`{name}` AS TIMESTAMP) AS DOUBLE)"
        return f"CAST(CAST(`{name}` AS TIMESTAMP) AS DOUBLE)" if kind in ("timestamp", "timestamp_ntz", "date") else f"`{name}`"

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


_OURS = {"user_id": "user", "item_id": "item", "moment": "time", "rating": "rating"}
