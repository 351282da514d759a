"""Raw files to prepared datasets: every format, and every filter against brute force."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lares_pl import Columns, LaresError, SequenceDataset, prepare
from lares_pl.data.prepare.engines import DuckDB
from lares_pl.data.prepare.sql_pipeline import Filters

ROWS = [("u1", "a", 5, 30), ("u2", "b", 4, 10), ("u1", "c", 2, 10), ("u1", "b", 3, 20), ("u2", "c", 5, 10), ("u2", "a", 1, 5)]
BY_TIME = {"u1": ["c", "b", "a"], "u2": ["a", "b", "c"]}  # u2's tie at 10 keeps the file's order


def sequences(folder: Path) -> dict[Any, list[Any]]:
    """Original ids of a prepared dataset."""
    data = SequenceDataset.load(folder)
    items = data.item_ids.to_pylist()
    return {
        user: [items[item - 1] for item in data.items[start:end]]
        for user, start, end in zip(data.user_ids.to_pylist(), data.offsets[:-1], data.offsets[1:], strict=True)
    }


def table(separator: str, header: str) -> str:
    return "\n".join([header, *(separator.join(map(str, row)) for row in ROWS)]) + "\n"


def test_recbole_inter(tmp_path: Path) -> None:
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    (tmp_path / "x.inter").write_text(table("\t", header))
    prepare(str(tmp_path / "x.inter"), str(tmp_path / "out"))
    assert sequences(tmp_path / "out") == BY_TIME


def test_csv_with_other_column_names_and_gzip(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "x.csv.gz", "wt") as file:
        file.write(table(",", "who,what,stars,when"))
    prepare(str(tmp_path / "x.csv.gz"), str(tmp_path / "out"), Columns("who", "what", "when", "stars"), min_rating=3)
    assert sequences(tmp_path / "out") == {"u1": ["b", "a"], "u2": ["b", "c"]}
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["removed"] == {"min_rating": 2}


def test_a_density_above_one_hundred_percent_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text, shown in (
        ("u a b a a b c d\nv a c a c c\n", "150.0000% (items are repeated)\n"),
        ("u a b c d\nv a c\n", "75.0000%\n"),
    ):
        (tmp_path / "x.txt").write_text(text)
        prepare(str(tmp_path / "x.txt"), str(tmp_path / "out"), overwrite=True)
        assert shown in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lines", "warnings"),
    [
        ("u a b c d\nv a b c\n", []),
        ("u a b c\nv c a b\n", ["nothing to train on: no user has two training items (with leave-one-out users of four"]),
        ("u a b\nv c a\n", ["nothing to evaluate on: no user has three items; `lares fit` will refuse this data"]),
        ("u a\nv c\n", ["nothing to train on", "nothing to evaluate on"]),
    ],
)
def test_data_without_instances_is_reported(
    lines: str, warnings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.txt").write_text(lines)
    prepare(str(tmp_path / "x.txt"), str(tmp_path / "out"))
    said = [line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines() if line.startswith("  warning ")]
    assert len(said) == len(warnings)
    assert all(map(str.startswith, said, warnings))


@pytest.mark.parametrize(
    ("moments", "shown"),
    [
        ([1_600_000_000, 1_600_000_010_000], "1600000000 (seconds) and 1600000010000 (milliseconds)"),
        ([1.6e9, 1.6e15], "1600000000 (seconds) and 1600000000000000 (microseconds)"),
        ([0, 7, 1_600_000_000_000], None),
        ([1, 2, 3], None),
        (["2020-01-01", "9999-12-31"], None),
    ],
)
def test_times_of_several_units_are_reported(
    moments: list[Any], shown: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"u,{place},{moment}" for place, moment in enumerate([*moments, *moments])]
    (tmp_path / "x.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    prepare(str(tmp_path / "x.csv"), str(tmp_path / "out"))
    said = capsys.readouterr().out
    assert (f"times of several units, such as {shown}: their order is wrong; write all in one unit" in said) == bool(shown)
    assert ("warning" in said) == bool(shown)


def test_nul_bytes_in_ids_are_kept(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("user_id,item_id\n" + "".join(f"u\0,{item}\n" for item in ("a", "a\0", "\0a", "b")))
    prepare(str(tmp_path / "x.csv"), str(tmp_path / "out"))
    assert sequences(tmp_path / "out") == {"u\0": ["a", "a\0", "\0a", "b"]}


def test_tsv_without_times_keeps_the_files_order(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text(table("\t", "user_id\titem_id\trating\tclock"))
    prepare(str(tmp_path / "x.tsv"), str(tmp_path / "out"))
    assert sequences(tmp_path / "out") == {"u1": ["a", "c", "b"], "u2": ["b", "c", "a"]}
    assert "timestamps" not in pq.read_schema(tmp_path / "out" / "sequences.parquet").names


def test_parquet_keeps_the_type_of_ids_and_reads_dates(tmp_path: Path) -> None:
    days = pd.to_datetime(["2024-03-01", "2024-01-01", "2024-02-01"])
    pd.DataFrame({"user_id": [7, 7, 7], "item_id": [30, 10, 20], "timestamp": days}).to_parquet(tmp_path / "x.parquet")
    prepare(str(tmp_path / "x.parquet"), str(tmp_path / "out"))
    assert sequences(tmp_path / "out") == {7: [10, 20, 30]}
    stamps = pq.read_table(tmp_path / "out" / "sequences.parquet")["timestamps"].to_pylist()[0]
    assert stamps[0] == 1704067200  # seconds since 1970


def test_iso_dates_in_text(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("user_id,item_id,timestamp\nu,late,2024-02-01T00:00:01\nu,early,2024-02-01\n")
    prepare(str(tmp_path / "x.csv"), str(tmp_path / "out"))
    assert sequences(tmp_path / "out") == {"u": ["early", "late"]}


def test_a_user_may_have_one_or_more_lines(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("1 5 6\n2 7\n\n1 8\n")
    prepare(str(tmp_path / "x.txt"), str(tmp_path / "out"))
    assert sequences(tmp_path / "out") == {"1": ["5", "6", "8"], "2": ["7"]}


def test_repeats_dropped_keep_the_first(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("1 5 6 5 7\n")
    prepare(str(tmp_path / "x.txt"), str(tmp_path / "out"), repeats="drop")
    assert sequences(tmp_path / "out") == {"1": ["5", "6", "7"]}


logs = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 4), st.integers(1, 5)), min_size=1, max_size=60)
Row = tuple[int, int, int, int]  # user, item, time, rating


def expected(log: list[Row], filters: Filters) -> dict[str, list[str]]:
    """Filters and order by brute force: users in the order of their first row, a user's items by time."""
    rows = [row for row in enumerate(log) if filters.min_rating is None or row[1][3] >= filters.min_rating]
    users = list(dict.fromkeys(user for _, (user, *_) in rows))
    rows.sort(key=lambda row: (users.index(row[1][0]), row[1][2], row[0]))
    if filters.repeats == "drop":
        pairs = [(row[1][0], row[1][1]) for row in rows]
        rows = [row for number, row in enumerate(rows) if pairs.index(pairs[number]) == number]
    while True:
        by_user, by_item = Counter(row[1][0] for row in rows), Counter(row[1][1] for row in rows)
        left = [row for row in rows if by_user[row[1][0]] >= filters.k_core and by_item[row[1][1]] >= filters.k_core]
        if left == rows:
            break
        rows = left
    found: dict[str, list[str]] = {}
    for _, (user, item, *_) in rows:
        found.setdefault(f"u{user}", []).append(f"i{item}")
    return found


@settings(max_examples=40, deadline=None)
@given(logs, st.integers(0, 4), st.sampled_from(["keep", "drop"]), st.none() | st.integers(1, 5), st.integers(1, 70))
def test_filters_and_order_against_brute_force(
    tmp_path_factory: pytest.TempPathFactory, log: list[Row], k: int, repeats: Any, least: int | None, rows: int
) -> None:
    folder = tmp_path_factory.mktemp("log")
    text = "user_id,item_id,timestamp,rating\n" + "".join(f"u{u},i{i},{t},{r}\n" for u, i, t, r in log)
    (folder / "x.csv").write_text(text)
    wanted = expected(log, Filters(least, repeats, k))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lares_pl.data.prepare.readers.ROWS", rows)  # the log comes in pieces
        patch.setattr("lares_pl.data.prepare.engines.ROWS", 7)  # and is written in pieces
        with contextlib.ExitStack() as refused:
            if not wanted:
                refused.enter_context(pytest.raises(LaresError, match="nothing is left"))
            prepare(str(folder / "x.csv"), str(folder / "out"), k_core=k, repeats=repeats, min_rating=least)
    if not wanted:
        return
    assert list(sequences(folder / "out").items()) == list(wanted.items())
    # items are numbered by their first place in the sequences
    numbers = SequenceDataset.load(folder / "out").items
    assert list(dict.fromkeys(numbers.tolist())) == list(range(1, len(set(numbers.tolist())) + 1))
    counts = Counter(item for items in wanted.values() for item in items)
    listed = pq.read_table(folder / "out" / "items.parquet").to_pylist()
    assert {row["item_id"]: row["count"] for row in listed} == counts


def test_a_log_of_many_parquet_files_is_one_log(tmp_path: Path) -> None:
    frame = pd.DataFrame([(f"u{n % 3}", f"i{n % 7}", n // 2) for n in range(50)], columns=["user_id", "item_id", "timestamp"])
    frame.to_parquet(tmp_path / "one.parquet")
    (tmp_path / "log").mkdir()
    for part in range(5):
        frame.iloc[part * 10 : part * 10 + 10].to_parquet(tmp_path / "log" / f"part-{part}.parquet", row_group_size=4)
    prepare(str(tmp_path / "one.parquet"), str(tmp_path / "a"))
    prepare(str(tmp_path / "log"), str(tmp_path / "b"))
    assert sequences(tmp_path / "a") == sequences(tmp_path / "b")
    assert len(json.loads((tmp_path / "b" / "dataset.json").read_text())["sources"]) == 5
    frame.rename(columns={"timestamp": "when"}).to_parquet(tmp_path / "log" / "part-9.parquet")
    with pytest.raises(LaresError, match=r"log: part-9.parquet has no times"):
        prepare(str(tmp_path / "log"), str(tmp_path / "c"))
    frame.astype({"item_id": "category"}).assign(user_id=1).to_parquet(tmp_path / "log" / "part-9.parquet")
    with pytest.raises(LaresError, match=r"log: user_id is string in the first file and int64 in part-9.parquet"):
        prepare(str(tmp_path / "log"), str(tmp_path / "c"))


def test_times_may_be_integers_in_one_chunk_and_floats_in_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.csv").write_text("user_id,item_id,timestamp\nu,a,3\nu,b,2\nu,c,2.5\nu,d,1\n")
    monkeypatch.setattr("lares_pl.data.prepare.readers.ROWS", 2)
    prepare(str(tmp_path / "x.csv"), str(tmp_path / "out"))
    assert sequences(tmp_path / "out") == {"u": ["d", "b", "c", "a"]}


def test_an_invalid_value_far_down_is_reported_with_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lares_pl.data.prepare.readers.ROWS", 2)
    text = "user_id,item_id,timestamp\n" + "u,a,2024-01-01\n" * 4 + "u,a,17\n"
    refused(tmp_path, "x.csv", text, r"data row 5 has 'timestamp' = '17'; expected a number or an ISO date")


@pytest.mark.parametrize(
    ("times", "said"),
    [
        (
            ["2020-01-01", "1577836800", "2020-01-03"],
            "data row 2 has 'timestamp' = '1577836800'; expected a number or an ISO date",
        ),
        (["1577836800", "1577836801", "2020-01-03"], "data row 3 has 'timestamp' = '2020-01-03'; expected a number below"),
        (["1", "", "3"], r"data row 2 has no 'timestamp'\. Fill it in or leave the row out"),
        (["", "", ""], "data row 1 has no 'timestamp'"),
        (["1", "9223372036854775808", "3"], r"data row 2 has 'timestamp' = .*; expected a number below 2\^63"),
    ],
)
def test_the_time_that_differs_from_most_is_named(tmp_path: Path, times: list[str], said: str) -> None:
    refused(tmp_path, "x.csv", "user_id,item_id,timestamp\n" + "".join(f"u,a,{time}\n" for time in times), said)


def test_too_little_memory_for_the_engine_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("1 2 3\n")
    with pytest.raises(LaresError, match=r"--engine.memory"):
        prepare(str(tmp_path / "x.txt"), str(tmp_path / "out"), engine=DuckDB(memory="plenty"))
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=7), min_size=1, max_size=6))
def test_leave_one_out_against_brute_force(tmp_path_factory: pytest.TempPathFactory, users: list[list[int]]) -> None:
    folder = tmp_path_factory.mktemp("split")
    (folder / "x.txt").write_text("".join(f"{user} {' '.join(map(str, items))}\n" for user, items in enumerate(users)))
    prepare(str(folder / "x.txt"), str(folder / "out"))
    data = SequenceDataset.load(folder / "out")

    def instances(split: str) -> list[tuple[list[str], str]]:
        chosen = data.training_instances.all() if split == "train" else data.held_out(split).all()  # type: ignore[arg-type]
        names = np.array(["", *data.item_ids.to_pylist()])
        return [
            (names[data.items[start:end]].tolist(), str(names[data.items[end]]))
            for start, end in zip(chosen.starts, chosen.ends, strict=True)
        ]

    expected: dict[str, list[tuple[list[str], str]]] = {"train": [], "validation": [], "test": []}
    for items in users:
        names = [str(item) for item in items]
        held = 2 if len(names) >= 3 else 0
        expected["train"] += [(names[:t], names[t]) for t in range(1, len(names) - held)]
        if held:
            expected["validation"].append((names[:-2], names[-2]))
            expected["test"].append((names[:-1], names[-1]))
    assert {split: instances(split) for split in expected} == expected
    described = json.loads((folder / "out" / "dataset.json").read_text())
    assert described["training_instances"] == len(expected["train"])
    assert described["short_users"] == sum(len(items) < 3 for items in users)


def test_published_counts(ml_100k: Path, beauty: Path, tmp_path: Path) -> None:
    for source, expected in ((ml_100k, (943, 1682, 100_000, 97_171)), (beauty, (22_363, 12_101, 198_502, 131_413))):
        out = tmp_path / source.stem
        prepare(str(source), str(out))
        described = json.loads((out / "dataset.json").read_text())
        assert tuple(described[key] for key in ("users", "items", "interactions", "training_instances")) == expected


def refused(tmp_path: Path, name: str, text: str, message: str, **options: Any) -> None:
    """Check that preparing this text is refused with this message and writes nothing."""
    (tmp_path / name).write_text(text)
    with pytest.raises(LaresError, match=message):
        prepare(str(tmp_path / name), str(tmp_path / "out"), **options)
    assert [path.name for path in tmp_path.iterdir()] == [name]
