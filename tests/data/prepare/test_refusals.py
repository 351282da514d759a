"""Input that `lares prepare` refuses, without leaving incomplete files."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lares_pl import LaresError, SequenceDataset, prepare
from lares_pl.data.dataset import mmap_cache as flat_module
from tests.data.prepare.test_prepare import refused, sequences


def test_missing_column_names_what_is_there(tmp_path: Path) -> None:
    refused(tmp_path, "x.csv", "user,item_id\nu,i\n", r"no column 'user_id'; it has user, item_id.*--columns.user")


def test_nan_timestamp_names_the_row(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp\nu,i,1\nu,j,nan\n"
    refused(tmp_path, "x.csv", text, r"data row 2 has 'timestamp' = 'nan'.*Correct or remove")


def test_an_invalid_rating_names_the_row(tmp_path: Path) -> None:
    refused(tmp_path, "x.csv", "user_id,item_id,rating\nu,i,good\n", "data row 1 has 'rating' = 'good'", min_rating=1)


def test_missing_item_names_the_row(tmp_path: Path) -> None:
    refused(tmp_path, "x.csv", "user_id,item_id\nu,i\nu,\n", "data row 2 has no 'item_id'")


def test_a_row_with_too_many_fields(tmp_path: Path) -> None:
    refused(tmp_path, "x.csv", "user_id,item_id\nu,i\nu,i,1,2\n", r"as its header \(Expected 2 fields in line 3, saw 4\)")


def test_a_user_without_items(tmp_path: Path) -> None:
    refused(tmp_path, "x.txt", "1 2\n3\n", r"line 2 has a user \(3\) and no item")


def test_empty_file(tmp_path: Path) -> None:
    refused(tmp_path, "x.csv", "user_id,item_id\n", "no interactions in it")


def test_filters_that_leave_nothing_are_an_error(tmp_path: Path) -> None:
    refused(tmp_path, "x.csv", "user_id,item_id\nu,i\n", "nothing is left after the filters", k_core=2)


def test_an_unknown_file_extension(tmp_path: Path) -> None:
    refused(tmp_path, "x.dat", "1 2\n", "unknown file extension.*--format")


def test_truncated_gzip(tmp_path: Path) -> None:
    whole = gzip.compress(b"user_id,item_id\n" + b"u,i\n" * 5000)
    (tmp_path / "x.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LaresError, match="cannot be read as csv"):
        prepare(str(tmp_path / "x.csv.gz"), str(tmp_path / "out"))


def test_min_rating_without_ratings(tmp_path: Path) -> None:
    refused(tmp_path, "x.csv", "user_id,item_id\nu,i\n", "needs ratings", min_rating=3)


def test_an_existing_dataset_is_replaced_only_on_request(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("1 2 3\n")
    (tmp_path / "y.txt").write_text("1 4\n")
    prepare(str(tmp_path / "x.txt"), str(tmp_path / "out"))
    with pytest.raises(LaresError, match="--overwrite true"):
        prepare(str(tmp_path / "y.txt"), str(tmp_path / "out"))
    assert sequences(tmp_path / "out") == {"1": ["2", "3"]}
    prepare(str(tmp_path / "y.txt"), str(tmp_path / "out"), overwrite=True)
    assert sequences(tmp_path / "out") == {"1": ["4"]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "x.txt", "y.txt"]


def test_a_folder_that_is_not_a_dataset_is_never_replaced(tmp_path: Path) -> None:
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
def test_incomplete_flat_copies_are_recreated(tmp_path: Path, state: str) -> None:
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


def test_flat_copies_of_a_rewritten_file_of_the_same_size_are_recreated(tmp_path: Path) -> None:
    for name, text in (("one", "1 2 3 4\n2 3 4\n"), ("other", "1 4 3 2\n2 3 4\n")):
        (tmp_path / f"{name}.txt").write_text(text)
        prepare(str(tmp_path / f"{name}.txt"), str(tmp_path / name))
    one, other = (tmp_path / name / "sequences.parquet" for name in ("one", "other"))
    assert one.stat().st_size == other.stat().st_size
    expected = SequenceDataset.load(tmp_path / "other").items.tolist()
    assert SequenceDataset.load(tmp_path / "one").items.tolist() != expected
    one.write_bytes(other.read_bytes())
    assert SequenceDataset.load(tmp_path / "one").items.tolist() == expected


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


def test_sequences_that_contradict_their_description_are_refused(tmp_path: Path) -> None:
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


def test_rows_longer_than_the_header_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, "x.csv", "user_id,item_id\n1,a,x\n2,b,x\n", "rows do not have as many fields as its header")


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
