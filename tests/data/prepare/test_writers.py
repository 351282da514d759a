"""The same hundred rows as other systems write them, as text and as Parquet, give equal datasets."""

from __future__ import annotations

import decimal
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lares_pl import Columns, SequenceDataset, prepare
from lares_pl.data.dataset.ids import id_text

Options = dict[str, Any]
Writer = Callable[[Path], tuple[Path, Options]]
Change = Callable[[pd.DataFrame], pd.DataFrame]


def frame() -> pd.DataFrame:
    """A hundred interactions of ten users with forty items, not in the order of their times."""
    rng = np.random.default_rng(20)
    seconds = rng.permutation(100) * 3607
    return pd.DataFrame(
        {
            "user_id": rng.permutation(np.repeat(np.arange(1, 11), 10)),
            "item_id": rng.integers(100, 140, 100),
            "rating": rng.integers(1, 6, 100),
            "timestamp": pd.Timestamp("2020-01-01 00:00:02") + pd.to_timedelta(seconds, unit="s"),
        }
    )


def contents(folder: Path) -> tuple[Any, ...]:
    """The contents of a dataset: ids as text, items and times of each user, counts."""
    data = SequenceDataset.load(folder)
    files = sorted((folder / "sequences").glob("*.parquet")) or [folder / "sequences.parquet"]
    rows = [row for path in files for row in pq.read_table(path).to_pylist()]
    ids = [id_text(item) for item in data.item_ids.to_pylist()]
    users = {id_text(row["user_id"]): ([ids[item - 1] for item in row["items"]], row["timestamps"]) for row in rows}
    catalogue = {id_text(row["item_id"]): row["count"] for row in pq.read_table(folder / "items.parquet").to_pylist()}
    return users, catalogue


# ---------------------------------------------------------------- the rows in other forms


def text_of(moments: pd.Series, pattern: str) -> pd.Series:
    written: pd.Series = moments.dt.strftime(pattern)
    return written


def upper(table: pd.DataFrame) -> pd.DataFrame:
    return table.rename(columns=str.upper)


UPPER: Options = {"columns": Columns("USER_ID", "ITEM_ID", "TIMESTAMP", "RATING")}
NAMES = "user_id,item_id,rating,timestamp"


def as_csv(name: str = "x.csv", changed: Change = lambda table: table, **options: Any) -> Writer:
    """A file written by pandas' `to_csv` with options."""

    def write(folder: Path) -> tuple[Path, Options]:
        changed(frame()).to_csv(folder / name, **{"index": False, **options})
        return folder / name, {}

    return write


def as_parquet(changed: Change = lambda table: table, name: str = "x.parquet", **options: Any) -> Writer:
    """A file written by pandas' `to_parquet` with options."""

    def write(folder: Path) -> tuple[Path, Options]:
        changed(frame()).to_parquet(folder / name, **options)
        return folder / name, {}

    return write


def as_types(times: pa.DataType | None = None, **options: Any) -> Callable[..., Writer]:
    """A file written by Arrow, with ids and times of given types."""

    def of(ids: pa.DataType | None) -> Writer:
        def write(folder: Path) -> tuple[Path, Options]:
            table = pa.Table.from_pandas(frame(), preserve_index=False)
            for name in ("user_id", "item_id") if ids is not None else ():
                made = table[name].dictionary_encode() if pa.types.is_dictionary(ids) else cast(table[name], ids)
                table = table.set_column(table.column_names.index(name), name, made)
            if times is not None:
                table = table.set_column(3, "timestamp", table["timestamp"].cast(times))
            pq.write_table(table, folder / "x.parquet", **options)
            return folder / "x.parquet", {}

        return write

    return of


def cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    if "binary" in str(kind):
        return column.cast(pa.string()).cast(kind)
    if not pa.types.is_decimal(kind):
        return column.cast(kind)
    return pa.array([decimal.Decimal(value) for value in column.to_pylist()], kind)


def by_duckdb(target: str, options: str, query: str = "SELECT * FROM t", given: Options | None = None) -> Writer:
    def write(folder: Path) -> tuple[Path, Options]:
        with duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            connection.register("t", frame())
            connection.execute(f"COPY ({query}) TO '{folder / target}' ({options})")
        return folder / target, given or {}

    return write


def marked(folder: Path) -> None:
    """Add the marker and checksum files of Spark and Hive."""
    for file in [path for path in folder.rglob("*") if path.is_file()]:
        (file.parent / f".{file.name}.crc").write_bytes(b"crc\0\0\0\2\0")
    (folder / "_SUCCESS").touch()
    (folder / "._SUCCESS.crc").write_bytes(b"crc\0\0\0\2\0")


def spark_csv(header: bool, packed: bool) -> Writer:
    def write(folder: Path) -> tuple[Path, Options]:
        out = folder / "log.csv"
        out.mkdir()
        table = frame().assign(timestamp=lambda table: text_of(table["timestamp"], "%Y-%m-%dT%H:%M:%S.000Z"))
        for part in range(3):  # the last one is empty
            text = table.iloc[part * 50 : part * 50 + 50].to_csv(index=False, header=header).encode()
            name = f"part-0000{part}-8c1bc7be-1f5a-4f7c-b0e9-8d62ee22ed2c-c000.csv"
            (out / f"{name}{'.gz' * packed}").write_bytes(gzip.compress(text) if packed else text)
        marked(out)
        return out, {} if header else {"header": NAMES}

    return write


def spark_parquet(partitioned: list[str]) -> Writer:
    def write(folder: Path) -> tuple[Path, Options]:
        table = pa.Table.from_pandas(frame(), preserve_index=False)
        old: Options = {"use_deprecated_int96_timestamps": True}
        if partitioned:
            old |= {"partition_cols": partitioned, "basename_template": "part-{i}.snappy.parquet"}
            pq.write_to_dataset(table, folder / "log", **old)
        else:
            (folder / "log").mkdir()
            for part in range(4):
                pq.write_table(table.slice(part * 25, 25), folder / "log" / f"part-0000{part}-c000.snappy.parquet", **old)
        pq.write_metadata(table.schema, folder / "log" / "_common_metadata")
        pq.write_metadata(table.schema, folder / "log" / "_metadata")
        marked(folder / "log")
        return folder / "log", {}

    return write


def bigquery_csv(hidden_gzip: bool) -> Writer:
    def write(folder: Path) -> tuple[Path, Options]:
        (folder / "export").mkdir()
        table = frame().assign(timestamp=lambda table: text_of(table["timestamp"], "%Y-%m-%d %H:%M:%S UTC"))
        for part in range(2):
            text = table.iloc[part * 50 : part * 50 + 50].to_csv(index=False).encode()
            (folder / "export" / f"log-00000000000{part}.csv").write_bytes(gzip.compress(text) if hidden_gzip else text)
        return folder / "export", {}

    return write


def snowflake_csv(folder: Path) -> tuple[Path, Options]:
    table = upper(frame().assign(timestamp=lambda table: text_of(table["timestamp"], "%Y-%m-%d %H:%M:%S.000 Z")))
    with gzip.open(folder / "data_0_0_0.csv.gz", "wt") as file:
        table.astype(str).to_csv(file, index=False, quoting=1)
    return folder / "data_0_0_0.csv.gz", UPPER


def snowflake_parquet(folder: Path) -> tuple[Path, Options]:
    path, _ = as_types(pa.timestamp("ms"))(pa.decimal128(38, 0))(folder)
    table = pq.read_table(path)
    pq.write_table(table.rename_columns([name.upper() for name in table.column_names]), folder / "data_0_0_0.snappy.parquet")
    path.unlink()
    return folder / "data_0_0_0.snappy.parquet", UPPER


def excel(name: str, written_in: str, between: str = ";", first: str = "", **options: Any) -> Writer:
    def write(folder: Path) -> tuple[Path, Options]:
        table = frame().assign(timestamp=lambda table: text_of(table["timestamp"], "%d.%m.%Y %H:%M:%S"))
        text = first + table.to_csv(index=False, sep=between, lineterminator="\r\n")
        (folder / name).write_bytes(text.encode(written_in))
        return folder / name, {"columns": Columns(time_format="%d.%m.%Y %H:%M:%S"), **options}

    return write


def movielens(name: str, between: str, **options: Any) -> Writer:
    def write(folder: Path) -> tuple[Path, Options]:
        table = frame().assign(timestamp=lambda table: table["timestamp"].astype("datetime64[s]").astype("int64"))
        rows = table[["user_id", "item_id", "rating", "timestamp"]].astype(str).agg(between.join, axis=1)
        (folder / name).write_text("\n".join(rows) + "\n")
        return folder / name, {"header": NAMES, **options}

    return write


def hugging_face(folder: Path) -> tuple[Path, Options]:
    table = pa.Table.from_pandas(frame(), preserve_index=False).replace_schema_metadata({"huggingface": '{"info": {}}'})
    (folder / "data").mkdir()
    for part in range(2):
        pq.write_table(table.slice(part * 50, 50), folder / "data" / f"train-0000{part}-of-00002.parquet")
    (folder / "README.md").write_text("---\nconfigs: []\n---\n")
    return folder, {}


def from_r(folder: Path) -> tuple[Path, Options]:
    table = frame().set_axis([str(row) for row in range(1, 101)]).assign(timestamp=lambda table: table["timestamp"].astype(str))
    table.to_csv(folder / "r.csv", quoting=2, index_label="")
    return folder / "r.csv", {}


def inter(folder: Path) -> tuple[Path, Options]:
    table = frame().assign(timestamp=lambda table: table["timestamp"].astype("datetime64[s]").astype("int64").astype(float))
    kinds = {"user_id": "token", "item_id": "token", "rating": "float", "timestamp": "float"}
    table.rename(columns=lambda name: f"{name}:{kinds[name]}").to_csv(folder / "x.inter", sep="\t", index=False)
    return folder / "x.inter", {}


def packed(kind: str, ending: str) -> Writer:
    def write(folder: Path) -> tuple[Path, Options]:
        with pa.output_stream(str(folder / f"x.csv{ending}"), compression=kind) as stream:
            stream.write(frame().to_csv(index=False).encode())
        return folder / f"x.csv{ending}", {}

    return write


def spaced(folder: Path) -> tuple[Path, Options]:
    """Fixed-width columns: blanks around all values, blank lines, no final newline."""
    rows = [",".join(f"{value!s:<20}" for value in row) for row in frame().itertuples(index=False)]
    text = ",".join(frame().columns) + "\r\n\r\n" + "\r\n\r\n".join(rows)
    (folder / "x.csv").write_bytes(text.encode())
    return folder / "x.csv", {}


def with_comments(folder: Path) -> tuple[Path, Options]:
    """Comments of several lines, with quotes and commas, and thousands of blank lines between rows."""
    table = frame().assign(comment='"fine",\nhe said\n\nand left')
    rows = table.to_csv(index=False, quoting=1).split('left"\n')
    (folder / "x.csv").write_text(('left"\n' + "\n" * 40).join(rows) + "\n" * 5000)
    return folder / "x.csv", {}


def concatenated(folder: Path) -> tuple[Path, Options]:
    """Two gzip files one after the other, as `cat` joins them."""
    text = frame().to_csv(index=False).encode()
    (folder / "x.csv.gz").write_bytes(gzip.compress(text[:700]) + gzip.compress(text[700:]))
    return folder / "x.csv.gz", {}


def hive_text(folder: Path) -> tuple[Path, Options]:
    """A table that Hive stores as text: files without extension, fields separated by the first control character."""
    (folder / "log").mkdir()
    for part in range(2):
        text = frame().iloc[part * 50 : part * 50 + 50].to_csv(index=False, header=False, sep="\x01")
        (folder / "log" / f"00000{part}_0").write_text(text)
    return folder / "log", {"separator": "\x01", "header": NAMES}


def other_columns(folder: Path) -> tuple[Path, Options]:
    """Parts of a log with their columns in different orders, one part without ratings empty."""
    (folder / "log").mkdir()
    frame().iloc[:50].to_csv(folder / "log" / "a.csv", index=False)
    frame().iloc[50:][["timestamp", "rating", "item_id", "user_id"]].to_csv(folder / "log" / "b.csv", index=False)
    (folder / "log" / "c.csv").touch()
    return folder / "log", {}


def changing(**changed: Callable[[pd.Series], Any]) -> Change:
    return lambda table: table.assign(**{name: change(table[name]) for name, change in changed.items()})


FLOATS = changing(user_id=lambda ids: ids.astype(float), item_id=lambda ids: ids.astype(float))
TEXT = changing(user_id=lambda ids: ids.astype(str), item_id=lambda ids: ids.astype(str))
ZONE = changing(timestamp=lambda values: values.dt.tz_localize("UTC").dt.tz_convert("Europe/Berlin"))

WRITERS: dict[str, Writer] = {
    "pandas csv": as_csv(),
    "pandas csv with its index": as_csv(index=True),
    "pandas csv, users as index": as_csv(changed=lambda table: table.set_index("user_id"), index=True),
    "pandas csv, floats": as_csv(changed=FLOATS),
    "pandas csv, everything quoted": as_csv(quoting=1),
    "pandas csv, zone": as_csv(changed=ZONE),
    "pandas csv, T and Z": as_csv(date_format="%Y-%m-%dT%H:%M:%SZ"),
    "pandas csv, offset": as_csv(date_format="%Y-%m-%dT%H:%M:%S+0000"),
    "pandas csv, nanoseconds": as_csv(date_format="%Y-%m-%d %H:%M:%S.%f000"),
    "pandas csv, CRLF": as_csv(lineterminator="\r\n"),
    "pandas csv, CR": as_csv(lineterminator="\r"),
    "pandas csv, gzip": as_csv("x.csv.gz"),
    "pandas csv, bzip2": as_csv("x.csv.bz2"),
    "pandas csv, byte order mark": as_csv(encoding="utf-8-sig"),
    "pandas csv, UTF-16": as_csv(encoding="utf-16"),
    "pandas csv, UTF-32": as_csv(encoding="utf-32"),
    "pandas tsv": as_csv("x.tsv", sep="\t"),
    "pandas csv, blanks and blank lines": spaced,
    "pandas csv, comments of several lines": with_comments,
    "pandas csv, gzip in two parts": concatenated,
    "pandas csv, columns in another order": other_columns,
    "csv, zstd": packed("zstd", ".zst"),
    "csv, zstd by its content": packed("zstd", ""),
    "csv, lz4": packed("lz4", ".lz4"),
    "pandas parquet": as_parquet(),
    "pandas parquet, users as index": as_parquet(lambda table: table.set_index("user_id")),
    "pandas parquet, users and times as index": as_parquet(lambda table: table.set_index(["user_id", "timestamp"])),
    "pandas parquet, a sorted index": as_parquet(lambda table: table.sort_values("rating", kind="stable")),
    "pandas parquet, floats": as_parquet(FLOATS),
    "pandas parquet, float32": as_parquet(changing(item_id=lambda ids: ids.astype("float32"))),
    "pandas parquet, nullable": as_parquet(lambda table: table.astype({"user_id": "Int64", "item_id": "UInt16"})),
    "pandas parquet, categories": as_parquet(lambda table: table.astype({"user_id": "category", "item_id": "category"})),
    "pandas parquet, text categories": as_parquet(lambda table: TEXT(table).astype({"user_id": "category"})),
    "pandas parquet, text": as_parquet(TEXT),
    "pandas parquet, text of floats": as_parquet(lambda table: TEXT(FLOATS(table))),
    "pandas parquet, zone": as_parquet(ZONE),
    "pandas parquet, dates as text": as_parquet(changing(timestamp=lambda values: values.astype(str))),
    "pandas parquet, dates as categories": as_parquet(changing(timestamp=lambda values: values.astype(str).astype("category"))),
    "pandas parquet, Arrow types": as_parquet(lambda table: table.convert_dtypes(dtype_backend="pyarrow")),
    "pandas parquet, gzip": as_parquet(name="x.gz.parquet", compression="gzip"),
    "pandas parquet, users as partitions": as_parquet(name="log", partition_cols=["user_id"]),
    "pandas parquet, ratings as partitions": as_parquet(name="log", partition_cols=["rating"]),
    "pandas parquet, two partitions": as_parquet(name="log", partition_cols=["rating", "user_id"]),
    "pandas parquet, text as partitions": as_parquet(TEXT, name="log", partition_cols=["item_id"]),
    "pandas parquet, times as partitions": as_parquet(
        changing(timestamp=lambda values: values.astype(str)), name="log", partition_cols=["timestamp"]
    ),
    **{f"arrow, {kind}": as_types()(kind) for kind in (pa.int16(), pa.uint64(), pa.string(), pa.large_string())},
    **{f"arrow, {kind}": as_types()(kind) for kind in (pa.decimal128(38, 0), pa.decimal128(38, 9), pa.decimal256(76, 38))},
    **{f"arrow, unmarked text as {kind}": as_types()(kind) for kind in (pa.binary(), pa.large_binary())},
    "arrow, dictionaries": as_types()(pa.dictionary(pa.int32(), pa.int64())),
    **{f"arrow, times in {unit}": as_types(pa.timestamp(unit))(None) for unit in ("s", "ms", "us", "ns")},
    **{f"arrow, times of a zone in {unit}": as_types(pa.timestamp(unit, "America/New_York"))(None) for unit in ("ms", "ns")},
    "arrow, INT96": as_types(use_deprecated_int96_timestamps=True)(None),
    "Spark csv": spark_csv(header=True, packed=False),
    "Spark csv, gzip": spark_csv(header=True, packed=True),
    "Spark csv without headers": spark_csv(header=False, packed=False),
    "Spark parquet": spark_parquet([]),
    "Spark parquet by users": spark_parquet(["user_id"]),
    "Spark parquet by ratings and users": spark_parquet(["rating", "user_id"]),
    "Hive text": hive_text,
    "BigQuery csv": bigquery_csv(hidden_gzip=False),
    "BigQuery csv, gzip": bigquery_csv(hidden_gzip=True),
    "BigQuery parquet": as_types(pa.timestamp("us", "UTC"))(pa.decimal128(38, 9)),
    "Snowflake csv": snowflake_csv,
    "Snowflake parquet": snowflake_parquet,
    "DuckDB csv": by_duckdb("x.csv", "FORMAT csv"),
    "DuckDB csv, zone": by_duckdb("x.csv", "FORMAT csv", "SELECT * REPLACE (timestamp AT TIME ZONE 'UTC' AS timestamp) FROM t"),
    "DuckDB csv, gzip": by_duckdb("x.csv.gz", "FORMAT csv, COMPRESSION gzip"),
    "DuckDB csv, zstd": by_duckdb("x.csv.zst", "FORMAT csv, COMPRESSION zstd"),
    "DuckDB csv, bars": by_duckdb("x.csv", "FORMAT csv, DELIMITER '|'", given={"separator": "|"}),
    "DuckDB csv, partitions": by_duckdb("log", "FORMAT csv, PARTITION_BY (user_id)"),
    "DuckDB parquet": by_duckdb("x.parquet", "FORMAT parquet"),
    "DuckDB parquet, zstd": by_duckdb("x.parquet", "FORMAT parquet, COMPRESSION zstd"),
    "DuckDB parquet, partitions": by_duckdb("log", "FORMAT parquet, PARTITION_BY (user_id)"),
    "DuckDB parquet, partitions and columns": by_duckdb(
        "log", "FORMAT parquet, PARTITION_BY (rating), WRITE_PARTITION_COLUMNS true"
    ),
    "DuckDB parquet, huge integers": by_duckdb(
        "x.parquet", "FORMAT parquet", "SELECT * REPLACE (user_id::HUGEINT AS user_id, item_id::HUGEINT AS item_id) FROM t"
    ),
    "Excel, CSV UTF-8": excel("x.csv", "utf-8-sig", ","),
    "Excel, CSV UTF-8 with semicolons": excel("x.csv", "utf-8-sig", separator=";"),
    "Excel, CSV with semicolons": excel("x.csv", "cp1252", separator=";", encoding="cp1252"),
    "Excel, CSV that names its separator": excel("x.csv", "cp1252", first="sep=;\r\n", encoding="cp1252"),
    "Excel, Unicode text": excel("x.txt", "utf-16", "\t", separator="tab"),
    "R csv": from_r,
    "Hugging Face parquet": hugging_face,
    "RecBole": inter,
    "MovieLens 100K": movielens("u.data", "\t", separator="tab"),
    "MovieLens 1M": movielens("ratings.dat", "::", separator="::"),
    "four columns, blanks": movielens("x.txt", "  ", separator="space"),
}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """The expected contents, computed without any reader."""
    rows = frame().assign(second=lambda table: table["timestamp"].astype("datetime64[s]").astype("int64"))
    users = {}
    for user, of_user in rows.sort_values("second").groupby("user_id"):
        users[str(user)] = (of_user["item_id"].astype(str).tolist(), of_user["second"].tolist())
    return users, {str(item): count for item, count in rows["item_id"].value_counts().items()}


@pytest.mark.parametrize("writer", WRITERS)
def test_equal_rows_give_equal_datasets(writer: str, expected: tuple[Any, ...], tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    path, options = WRITERS[writer](tmp_path / "given")
    prepare(str(path), str(tmp_path / "out"), **options)
    assert contents(tmp_path / "out") == expected


@pytest.mark.parametrize("writer", WRITERS)
def test_equal_ratings_are_filtered_alike(writer: str, tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    path, options = WRITERS[writer](tmp_path / "given")
    prepare(str(path), str(tmp_path / "out"), min_rating=4, **options)
    assert len(SequenceDataset.load(tmp_path / "out").items) == (frame()["rating"] >= 4).sum()
