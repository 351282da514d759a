"""Spark in local mode prepares the same dataset as the embedded engine. Needs Java and the extra `spark`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from lares_pl import LaresError, SequenceDataset, Spark, TemporalSplit, prepare
from tests.console import lares
from tests.data.prepare import test_writers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java"),
]
pytest.importorskip("pyspark", reason="the extra spark is not installed")


@pytest.fixture(scope="module", autouse=True)
def small_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Settings for small data: two tasks instead of 200 after each exchange, and nothing compiled that runs only once."""
    folder = tmp_path_factory.mktemp("conf")
    settings = {
        "spark.sql.shuffle.partitions": "2",
        "spark.ui.enabled": "false",
        "spark.sql.codegen.wholeStage": "false",
        "spark.sql.codegen.factoryMode": "NO_CODEGEN",
        "spark.sql.adaptive.enabled": "false",
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1",
    }
    (folder / "spark-defaults.conf").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARK_CONF_DIR", str(folder))
        yield


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log in several files, with ties in time, repeats and ratings."""
    rng = np.random.default_rng(3)
    count = 4000
    frame = pd.DataFrame(
        {
            "user_id": [f"u{n}" for n in rng.integers(0, 300, count)],
            "item_id": rng.integers(0, 250, count) * 7,
            "timestamp": rng.integers(0, 900, count) / 2,
            "rating": rng.integers(1, 6, count),
        }
    )
    folder = tmp_path_factory.mktemp("spark") / "log"
    folder.mkdir()
    for part, start in enumerate(range(0, count, 900)):
        frame.iloc[start : start + 900].to_parquet(folder / f"it's part {part}.parquet", row_group_size=200)
    return folder


def contents(folder: Path) -> tuple[Any, ...]:
    data = SequenceDataset.load(folder)
    described = json.loads((folder / "dataset.json").read_text())
    files = sorted((folder / "sequences").glob("*.parquet")) or [folder / "sequences.parquet"]
    rows = [row for path in files for row in pq.read_table(path).to_pylist()]
    split = [data.flat.validation.tolist(), data.flat.test.tolist()]
    return rows, data.items.tolist(), split, pq.read_table(folder / "items.parquet").to_pylist(), described


FILTERS: dict[str, Any] = {"k_core": 5, "repeats": "drop", "min_rating": 2.0}
BY_TIME = TemporalSplit(validation_share=0.7, test_share=0.85, targets="all")


@pytest.mark.parametrize("options", [{}, FILTERS, {**FILTERS, "split": BY_TIME}], ids=["whole", "filtered", "by time"])
def test_spark_and_duckdb_prepare_equal_datasets(log: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    prepare(str(log), str(tmp_path / "duckdb"), **options)
    prepare(str(log), str(tmp_path / "spark"), engine=Spark("local[2]"), **options)
    assert contents(tmp_path / "spark") == contents(tmp_path / "duckdb")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["duckdb", "spark"]
    parts = sorted(path.name for path in (tmp_path / "spark").iterdir())
    assert parts == ["dataset.json", "flat", "items.parquet", "sequences", *(["split.parquet"] if "split" in options else [])]


def test_spark_is_selected_on_the_command_line_and_reports_errors(log: Path, tmp_path: Path) -> None:
    engine = ["--engine", "lares_pl.Spark", "--engine.master", "local[2]", "--engine.memory", "1g"]
    done = lares(tmp_path, "prepare", str(log), "--output", "out", *engine, "--columns.time", "clock", status=2)
    assert "no column 'clock'; it has user_id, item_id, timestamp, rating" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_spark_names_the_row_of_a_bad_value(tmp_path: Path) -> None:
    frame = pd.DataFrame({"user_id": ["a", "b", None], "item_id": [1, 2, 3]})
    frame.to_parquet(tmp_path / "x.parquet")
    with pytest.raises(LaresError, match=r"data row 3 of file 1 has no usable 'user_id'"):
        prepare(str(tmp_path / "x.parquet"), str(tmp_path / "out"), engine=Spark("local[1]"))
    (tmp_path / "x.csv").write_text("user_id,item_id\nu,i\n")
    with pytest.raises(LaresError, match="on Spark the log must be a Parquet file or a folder of them"):
        prepare(str(tmp_path / "x.csv"), str(tmp_path / "out"), engine=Spark("local[1]"))


WRITERS = [
    "pandas parquet, floats",
    "pandas parquet, text of floats",
    "pandas parquet, dates as text",
    "arrow, decimal128(38, 9)",
    "pandas parquet, two partitions",
    "BigQuery parquet",
    "Snowflake parquet",
    "DuckDB parquet, partitions",
]


@pytest.fixture(scope="module")
def running() -> Iterator[None]:
    """A session that is already running, as in a notebook, is used and left open."""
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master("local[1]").config("spark.sql.session.timeZone", "UTC")
    spark = builder.config("spark.sql.shuffle.partitions", "1").config("spark.ui.enabled", "false").getOrCreate()
    yield
    spark.stop()


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize("writer", WRITERS)
def test_spark_reads_files_of_other_systems(writer: str, tmp_path: Path) -> None:
    path, options = test_writers.WRITERS[writer](tmp_path)
    prepare(str(path), str(tmp_path / "out"), engine=Spark("local[1]"), min_rating=2.0, **options)
    prepare(str(path), str(tmp_path / "expected"), min_rating=2.0, **options)
    assert test_writers.contents(tmp_path / "out") == test_writers.contents(tmp_path / "expected")
