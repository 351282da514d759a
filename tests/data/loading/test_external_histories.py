"""External histories: tables, times, and files."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from lares_pl import LaresError, SequenceDataModule, SequenceDataset
from lares_pl.data.loading.external_histories import UnseenHistories

DAYS = ["2020-01-09", "2020-01-10", "2020-02-01"]


def interactions(times: object) -> pd.DataFrame:
    """Interactions of one user, the latest first."""
    table = pd.DataFrame({"user_id": ["ann"] * 3, "item_id": ["first", "second", "third"], "timestamp": times})
    return table[::-1]


@pytest.mark.parametrize(
    "times",
    [
        [9, 10, 11],
        ["9", "10", "11"],
        ["9.5", "10", "1e3"],
        pd.Series([9, "10", 11.0], dtype=object),
        pd.array([9, 10, 11], dtype="Int64"),
        pd.array(["9", "10", "11"], dtype="string"),
        DAYS,
        [f"{day}T08:00:00+{zone}" for day, zone in zip(["2020-01-09"] * 3, ["09:00", "05:00", "01:00"], strict=True)],
        pd.to_datetime(pd.Series(DAYS)),
        pd.to_datetime(pd.Series(DAYS)).dt.tz_localize("Europe/Berlin"),
        pd.Series([datetime.date.fromisoformat(day) for day in DAYS], dtype=object),
        pd.Series(DAYS, dtype=pd.ArrowDtype(pa.string())),
    ],
)
def test_a_table_is_in_the_order_of_its_times(times: object) -> None:
    table = interactions(times)
    assert UnseenHistories.of(table).items.tolist() == ["first", "second", "third"]
    if not isinstance(times, pd.Series) or times.dtype != object:  # what Arrow can hold
        assert UnseenHistories.of(pa.Table.from_pandas(table)).items.tolist() == ["first", "second", "third"]


def test_rows_of_the_same_time_keep_their_order() -> None:
    assert UnseenHistories.of(interactions([5, 5, 5])).items.tolist() == ["third", "second", "first"]


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([1.0, np.nan, 3.0], "histories: data row 2 has 'timestamp' = .*nan.*; expected a number"),
        (pd.Series([2, None, 1], dtype=object), "data row 2 has 'timestamp' = None; expected a number"),
        (pd.array([1, None, 3], dtype="Int64"), "data row 2 has 'timestamp' = <NA>; expected a number"),
        (["1", "2", "soon"], "data row 1 has 'timestamp' = 'soon'; expected a number"),
        (["2020-01-01", "never", "2020-01-02"], "data row 2 has 'timestamp' = 'never'; expected a number or an ISO date"),
        (pd.to_datetime(pd.Series(["2020-01-01", None, "2020-01-02"])), "data row 2 has 'timestamp' = NaT"),
        (pd.Series([None] * 3, dtype=object), "data row 1 has 'timestamp' = None"),
    ],
)
def test_an_invalid_time_is_reported_with_its_row(times: object, message: str) -> None:
    with pytest.raises(LaresError, match=message):
        UnseenHistories.of(interactions(times))


def test_files_are_read_with_the_given_options(toy_dataset: Path, tmp_path: Path) -> None:
    known = SequenceDataset.load(toy_dataset)
    first, second = (str(item) for item in known.item_ids.to_pylist()[:2])
    (tmp_path / "new.data").write_bytes(f"Zoë;{second}\nyou;{first}\nZoë;{first}\n".encode("cp1252"))
    options: dict[str, Any] = {"encoding": "cp1252", "separator": ";", "header": "user_id,item_id"}
    module = SequenceDataModule(str(toy_dataset), histories=str(tmp_path / "new.data"), **options)
    assert module.predicted.user_ids.to_pylist() == ["Zoë", "you"]
    assert module.predicted.items.tolist() == [2, 1, 1]
    with pytest.raises(LaresError, match=r"needs --data\.separator and --data\.header"):
        _ = SequenceDataModule(str(toy_dataset), histories=str(tmp_path / "new.data")).predicted
