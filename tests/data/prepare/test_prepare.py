"""Raw files to prepared datasets: every format, every filter against brute force, and nothing half-written."""

from __future__ import annotations

import contextlib
import gzip
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lares_pl import Columns, LaresError, SequenceDataset, prepare
from lares_pl.data.dataset import mmap_cache as flat_module
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


def test_times_may_be_whole_in_one_piece_and_not_in_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.csv").write_text("user_id,item_id,timestamp\nu,a,3\nu,b,2\nu,c,2.5\nu,d,1\n")
    monkeypatch.setattr("lares_pl.data.prepare.readers.ROWS", 2)
    prepare(str(tmp_path / "x.csv"), str(tmp_path / "out"))
    assert sequences(tmp_path / "out") == {"u": ["d", "b", "c", "a"]}


def test_a_bad_value_far_down_is_named_by_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lares_pl.data.prepare.readers.ROWS", 2)
    text = "user_id,item_id,timestamp\n" + "u,a,2024-01-01\n" * 4 + "u,a,17\n"
    refused(tmp_path, "x.csv", text, r"data row 5 has 'timestamp' = '17'; expected a number or an ISO date")


def test_an_engine_with_too_little_memory_says_so(tmp_path: Path) -> None:
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
    refused(tmp_path, "x.csv", text, r"data row 2 has 'timestamp' = 'nan'.*Correct or remove")


def test_a_word_for_a_rating_names_the_row(tmp_path: Path) -> None:
    refused(tmp_path, "x.csv", "user_id,item_id,rating\nu,i,good\n", "data row 1 has 'rating' = 'good'", min_rating=1)


def test_missing_item_names_the_row(tmp_path: Path) -> None:
    refused(tmp_path, "x.csv", "user_id,item_id\nu,i\nu,\n", "data row 2 has no 'item_id'")


def test_a_row_with_too_many_fields(tmp_path: Path) -> None:
    refused(tmp_path, "x.csv", "user_id,item_id\nu,i\nu,i,1,2\n", "cannot be read as csv")


def test_a_user_without_items(tmp_path: Path) -> None:
    refused(tmp_path, "x.txt", "1 2\n3\n", r"line 2 has a user \(3\) and no item")


def test_empty_file(tmp_path: Path) -> None:
    refused(tmp_path, "x.csv", "user_id,item_id\n", "no interactions in it")


def test_nothing_left(tmp_path: Path) -> None:
    refused(tmp_path, "x.csv", "user_id,item_id\nu,i\n", "nothing is left after the filters", k_core=2)


def test_unknown_ending(tmp_path: Path) -> None:
    refused(tmp_path, "x.dat", "1 2\n", "unknown file extension.*--format")


def test_truncated_gzip(tmp_path: Path) -> None:
    whole = gzip.compress(b"user_id,item_id\n" + b"u,i\n" * 5000)
    (tmp_path / "x.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LaresError, match="cannot be read as csv"):
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
    with pytest.raises(LaresError, match="contains no prepared dataset"):
        prepare(str(tmp_path / "x.txt"), str(tmp_path / "out"), overwrite=True)
    assert (tmp_path / "out" / "thesis.tex").exists()


def test_a_crash_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.txt").write_text("1 2 3\n")

    def full(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("lares_pl.data.prepare.command.json.dumps", full)
    with pytest.raises(LaresError, match=r"could not be written \(No space left on device\)"):
        prepare(str(tmp_path / "x.txt"), str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]


@pytest.mark.parametrize("damage", ["dataset.json", "items.parquet", "sequences.parquet"])
def test_a_damaged_dataset_is_refused(tmp_path: Path, damage: str) -> None:
    (tmp_path / "x.txt").write_text("1 2 3\n")
    prepare(str(tmp_path / "x.txt"), str(tmp_path / "out"))
    (tmp_path / "out" / damage).write_bytes((tmp_path / "out" / damage).read_bytes()[:20])
    with pytest.raises(LaresError, match=r"incomplete prepared dataset.*Prepare it again"):
        SequenceDataset.load(tmp_path / "out")


@pytest.mark.parametrize("state", ["whole", "damaged", "missing", "of another file", "out of range"])
def test_flat_copies_that_are_not_whole_are_made_again(tmp_path: Path, state: str) -> None:
    (tmp_path / "x.txt").write_text("1 2 3\n2 3\n5 6 7 8\n")
    prepare(str(tmp_path / "x.txt"), str(tmp_path / "out"))
    flat = tmp_path / "out" / "flat"
    if state == "damaged":
        (flat / "items.npy").write_bytes((flat / "items.npy").read_bytes()[:-4])
    elif state == "missing":
        shutil.rmtree(flat)
    elif state == "of another file":
        (flat / "made-from.json").write_text('{"sequences.parquet": 3}')
    elif state == "out of range":
        np.save(flat / "items.npy", np.array([1, 2, 2, 3, 4, 99], dtype=np.int32))
    data = SequenceDataset.load(tmp_path / "out")
    assert isinstance(data.items, np.memmap)
    assert data.offsets.tolist() == [0, 2, 3, 6]
    assert data.items.tolist() == [1, 2, 2, 3, 4, 5]
    names = ["dataset.json", "flat", "items.parquet", "sequences.parquet"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names


def test_sequences_in_many_files_are_one_dataset(tmp_path: Path, toy_dataset: Path) -> None:
    shutil.copytree(toy_dataset, tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "sequences.parquet")
    (tmp_path / "out" / "sequences.parquet").unlink()
    (tmp_path / "out" / "sequences").mkdir()
    for part, start in enumerate(range(0, len(table), 17)):
        pq.write_table(table.slice(start, 17), tmp_path / "out" / "sequences" / f"part-{part:05}.parquet", row_group_size=5)
    assert sequences(tmp_path / "out") == sequences(toy_dataset)
    ours, theirs = SequenceDataset.load(tmp_path / "out"), SequenceDataset.load(toy_dataset)
    assert isinstance(ours.items, np.memmap)
    assert np.array_equal(ours.flat.by_target, theirs.flat.by_target)


def test_sequences_that_do_not_fit_their_description_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("1 2 3\n2 3\n5 6 7 8\n")
    prepare(str(tmp_path / "x.txt"), str(tmp_path / "out"))
    (tmp_path / "y.txt").write_text("1 2 3 4 9 8 11\n2 3\n")
    prepare(str(tmp_path / "y.txt"), str(tmp_path / "other"))
    kept = {name: (tmp_path / "out" / name).read_bytes() for name in ("sequences.parquet", "items.parquet")}

    def refused_with(name: str, content: bytes, message: str) -> None:
        (tmp_path / "out" / name).write_bytes(content)
        with pytest.raises(LaresError, match=message):
            SequenceDataset.load(tmp_path / "out")
        (tmp_path / "out" / name).write_bytes(kept[name])

    other = {name: (tmp_path / "other" / name).read_bytes() for name in kept}
    refused_with("items.parquet", other["items.parquet"], "items.parquet does not list the items 1 … 5")
    refused_with("sequences.parquet", other["sequences.parquet"], "3 users and 6 interactions")
    table = pa.table({"user_id": ["a", "b", "c"], "items": pa.array([[1], [1, 2], [2, 3, 6]], type=pa.list_(pa.int32()))})
    pq.write_table(table, tmp_path / "y.parquet")
    refused_with("sequences.parquet", (tmp_path / "y.parquet").read_bytes(), "items from 1 to 6 in a catalogue of 5")
    pq.write_table(table.set_column(1, "items", pa.array([[1], None, [2, 3, 5]])), tmp_path / "y.parquet")
    refused_with("sequences.parquet", (tmp_path / "y.parquet").read_bytes(), "without nulls")
    SequenceDataset.load(tmp_path / "out")


@given(st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=9), min_size=1, max_size=8), st.integers(1, 12))
def test_targets_are_grouped_by_item(users: list[list[int]], size: int) -> None:
    items = np.array([item for user in users for item in user], dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum([len(user) for user in users])])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flat_module._stretches, "__defaults__", (size,))
        flat = flat_module.flat_of(items, offsets, 6)
    data = SequenceDataset(flat, pa.array(range(len(users))), pa.array(range(1, 7)), "made up")
    ends = data.training_instances.all().ends.tolist()
    for item in range(1, 7):
        group = flat.by_target[flat.of_item[item] : flat.of_item[item + 1]].tolist()
        assert group == [end for end in ends if items[end] == item]
    assert flat.of_item[0] == flat.of_item[1] == 0


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
