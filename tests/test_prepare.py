"""Raw files to prepared datasets: every format, every filter against brute force, and nothing half-written."""

from __future__ import annotations

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
from lares_pl.data.prepare import filter_and_order, k_core_mask

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


def test_lines_one_or_many_a_user(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("1 5 6\n2 7\n\n1 8\n")
    prepare(str(tmp_path / "x.txt"), str(tmp_path / "out"))
    assert sequences(tmp_path / "out") == {"1": ["5", "6", "8"], "2": ["7"]}


def test_repeats_dropped_keep_the_first(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("1 5 6 5 7\n")
    prepare(str(tmp_path / "x.txt"), str(tmp_path / "out"), repeats="drop")
    assert sequences(tmp_path / "out") == {"1": ["5", "6", "7"]}


logs = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=60)


@given(logs, st.integers(1, 4))
def test_k_core_against_brute_force(log: list[tuple[int, int]], k: int) -> None:
    rows = list(enumerate(log))
    while True:
        users, items = Counter(user for _, (user, _) in rows), Counter(item for _, (_, item) in rows)
        left = [row for row in rows if users[row[1][0]] >= k and items[row[1][1]] >= k]
        if left == rows:
            break
        rows = left
    mask = k_core_mask(np.array([user for user, _ in log]), np.array([item for _, item in log]), k)
    assert np.flatnonzero(mask).tolist() == [index for index, _ in rows]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 4)), min_size=1, max_size=50))
def test_order_by_time_with_ties_in_file_order(log: list[tuple[int, int, int]]) -> None:
    frame = pd.DataFrame(log, columns=["user", "item", "time"])
    ordered, _ = filter_and_order(frame)
    for user in {user for user, _, _ in log}:
        expected = [item for _, item, _ in sorted((row for row in log if row[0] == user), key=lambda row: row[2])]
        assert ordered[ordered["user"] == user]["item"].tolist() == expected
    assert list(dict.fromkeys(ordered["user"])) == list(dict.fromkeys(user for user, _, _ in log))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=7), min_size=1, max_size=6))
def test_leave_one_out_against_brute_force(tmp_path_factory: pytest.TempPathFactory, users: list[list[int]]) -> None:
    folder = tmp_path_factory.mktemp("split")
    (folder / "x.txt").write_text("".join(f"{user} {' '.join(map(str, items))}\n" for user, items in enumerate(users)))
    prepare(str(folder / "x.txt"), str(folder / "out"))
    data = SequenceDataset.load(folder / "out")

    def instances(split: str) -> list[tuple[list[str], str]]:
        chosen = data.training_instances() if split == "train" else data.held_out(split)  # type: ignore[arg-type]
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


# ---------------------------------------------------------------- what goes wrong


def refused(tmp_path: Path, name: str, text: str, message: str, **options: Any) -> None:
    """Preparing this text is refused with this message and leaves nothing behind."""
    (tmp_path / name).write_text(text)
    with pytest.raises(LaresError, match=message):
        prepare(str(tmp_path / name), str(tmp_path / "out"), **options)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_missing_column_names_what_is_there(tmp_path: Path) -> None:
    refused(tmp_path, "x.csv", "user,item_id\nu,i\n", r"no column 'user_id'; it has user, item_id.*--columns.user")


def test_nan_timestamp_names_the_row(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp\nu,i,1\nu,j,nan\n"
    refused(tmp_path, "x.csv", text, r"data row 2 has 'timestamp' = 'nan'.*Mend or remove")


def test_a_word_for_a_rating_names_the_row(tmp_path: Path) -> None:
    refused(tmp_path, "x.csv", "user_id,item_id,rating\nu,i,good\n", "data row 1 has 'rating' = 'good'", min_rating=1)


def test_missing_item_names_the_row(tmp_path: Path) -> None:
    refused(tmp_path, "x.csv", "user_id,item_id\nu,i\nu,\n", "data row 2 has no 'item_id'")


def test_a_row_with_too_many_fields(tmp_path: Path) -> None:
    refused(tmp_path, "x.csv", "user_id,item_id\nu,i\nu,i,1,2\n", "can't be read as csv")


def test_a_user_without_items(tmp_path: Path) -> None:
    refused(tmp_path, "x.txt", "1 2\n3\n", r"line 2 has a user \(3\) and no item")


def test_empty_file(tmp_path: Path) -> None:
    refused(tmp_path, "x.csv", "user_id,item_id\n", "no interactions in it")


def test_nothing_left(tmp_path: Path) -> None:
    refused(tmp_path, "x.csv", "user_id,item_id\nu,i\n", "nothing is left after the filters", k_core=2)


def test_unknown_ending(tmp_path: Path) -> None:
    refused(tmp_path, "x.dat", "1 2\n", "can't tell the format.*--format")


def test_truncated_gzip(tmp_path: Path) -> None:
    whole = gzip.compress(b"user_id,item_id\n" + b"u,i\n" * 5000)
    (tmp_path / "x.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LaresError, match="can't be read as csv"):
        prepare(str(tmp_path / "x.csv.gz"), str(tmp_path / "out"))


def test_min_rating_without_ratings(tmp_path: Path) -> None:
    refused(tmp_path, "x.csv", "user_id,item_id\nu,i\n", "needs ratings", min_rating=3)


def test_an_existing_dataset_stays_unless_told_otherwise(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("1 2 3\n")
    (tmp_path / "y.txt").write_text("1 4\n")
    prepare(str(tmp_path / "x.txt"), str(tmp_path / "out"))
    with pytest.raises(LaresError, match="--overwrite true"):
        prepare(str(tmp_path / "y.txt"), str(tmp_path / "out"))
    assert sequences(tmp_path / "out") == {"1": ["2", "3"]}
    prepare(str(tmp_path / "y.txt"), str(tmp_path / "out"), overwrite=True)
    assert sequences(tmp_path / "out") == {"1": ["4"]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "x.txt", "y.txt"]


def test_a_folder_that_is_no_dataset_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("1 2 3\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(LaresError, match="not a prepared dataset"):
        prepare(str(tmp_path / "x.txt"), str(tmp_path / "out"), overwrite=True)
    assert (tmp_path / "out" / "thesis.tex").exists()


def test_a_crash_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.txt").write_text("1 2 3\n")

    def full(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("lares_pl.data.prepare.json.dumps", full)
    with pytest.raises(OSError, match="No space"):
        prepare(str(tmp_path / "x.txt"), str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]


@pytest.mark.parametrize("damage", ["dataset.json", "items.parquet", "sequences.parquet"])
def test_a_damaged_dataset_is_refused(tmp_path: Path, damage: str) -> None:
    (tmp_path / "x.txt").write_text("1 2 3\n")
    prepare(str(tmp_path / "x.txt"), str(tmp_path / "out"))
    (tmp_path / "out" / damage).write_bytes((tmp_path / "out" / damage).read_bytes()[:20])
    with pytest.raises(LaresError, match=r"not a whole prepared dataset.*Prepare it again"):
        SequenceDataset.load(tmp_path / "out")


@pytest.mark.parametrize("state", ["whole", "damaged", "missing", "of another file"])
def test_sequences_are_mapped_where_their_flat_copies_are_whole(tmp_path: Path, state: str) -> None:
    (tmp_path / "x.txt").write_text("1 2 3\n2 3\n5 6 7 8\n")
    prepare(str(tmp_path / "x.txt"), str(tmp_path / "out"))
    copy = tmp_path / "out" / "flat-items.npy"
    if state == "damaged":
        copy.write_bytes(copy.read_bytes()[:-4])
    elif state == "missing":
        copy.unlink()
    elif state == "of another file":
        table = pq.read_table(tmp_path / "out" / "sequences.parquet")
        pq.write_table(table.slice(0, 2), tmp_path / "out" / "sequences.parquet")
    data = SequenceDataset.load(tmp_path / "out")
    assert isinstance(data.items, np.memmap) == (state == "whole")
    assert data.offsets.tolist() == ([0, 2, 3] if state == "of another file" else [0, 2, 3, 6])
    assert data.items.tolist() == [1, 2, 2, 3, 4, 5][: data.offsets[-1]]
    assert data.items.dtype == np.int32


def test_rows_longer_than_the_header_are_refused_not_cut(tmp_path: Path) -> None:
    refused(tmp_path, "x.csv", "user_id,item_id\n1,a,x\n2,b,x\n", "more fields than its header")


def test_a_dataset_folder_with_something_else_in_it_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("1 2 3\n")
    prepare(str(tmp_path / "x.txt"), str(tmp_path / "out"))
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(LaresError, match=r"more than a prepared dataset \(notes.txt\)"):
        prepare(str(tmp_path / "x.txt"), str(tmp_path / "out"), overwrite=True)
    assert (tmp_path / "out" / "notes.txt").exists()


def test_a_link_to_a_dataset_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("1 2 3\n")
    (tmp_path / "y.txt").write_text("1 4\n")
    prepare(str(tmp_path / "x.txt"), str(tmp_path / "real"))
    (tmp_path / "link").symlink_to(tmp_path / "real")
    prepare(str(tmp_path / "y.txt"), str(tmp_path / "link"), overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert sequences(tmp_path / "real") == {"1": ["4"]}


def test_whole_timestamps_keep_every_digit(tmp_path: Path) -> None:
    stamps = [1700000000123456788, 1700000000123456789]
    (tmp_path / "x.csv").write_text("user_id,item_id,timestamp\n" + "".join(f"u,i{stamp},{stamp}\n" for stamp in stamps))
    prepare(str(tmp_path / "x.csv"), str(tmp_path / "out"))
    assert pq.read_table(tmp_path / "out" / "sequences.parquet")["timestamps"].to_pylist() == [stamps]
