"""RecBole benchmark files: whole sequences from split rows; other splits than leave-one-out are refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lares_pl import Columns, LaresError, SequenceDataset, prepare
from lares_pl.data.synthetic import Process
from tests.data.prepare.test_prepare import sequences

HEADER = "user_id:token\titem_id_list:token_seq\titem_id:token\n"
Row = tuple[str, list[str], str]


def split(users: dict[str, list[str]], longest: int, newest_first: bool) -> dict[str, list[Row]]:
    """Leave-one-out rows as UniSRec's scripts write them."""
    parts: dict[str, list[Row]] = {"train": [], "valid": [], "test": []}
    for user, items in users.items():
        rows = [(user, items[max(0, end - longest) : end], items[end]) for end in range(1, len(items))]
        parts["test"].append(rows[-1])
        parts["valid"].append(rows[-2])
        parts["train"] += rows[-3::-1] if newest_first else rows[:-2]
    return parts


def write(folder: Path, parts: dict[str, list[Row]], name: str = "Toy") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part, rows in parts.items():
        text = "".join(f"{user}\t{' '.join(history)}\t{item}\n" for user, history, item in rows)
        (folder / f"{name}.{part}.inter").write_text(HEADER + text)


def generated_benchmark(folder: Path, users: int = 60) -> None:
    """Generated users as a benchmark, with a table of item texts."""
    process = Process(users=users, min_length=3, max_length=12)
    drawn, lengths = process.sample()
    names = {str(user): [str(item) for item in row[:n]] for user, (row, n) in enumerate(zip(drawn, lengths, strict=True))}
    write(folder, split(names, 50, True), name="Generated")
    rows = [f"{item}\titem {item} of topic {item // process.topic_size}\n" for item in range(process.items)]
    (folder / "item_text.tsv").write_text("item_index\ttext\n" + "".join(rows))


def few_users(benchmark: Path, folder: Path, users: int = 60) -> None:
    """The first users of a real benchmark, as a benchmark."""
    folder.mkdir()
    for path in benchmark.glob("*.inter"):
        header, *rows = path.read_text().splitlines()
        kept = [row for row in rows if int(row.split("\t")[0]) < users]
        (folder / path.name).write_text("\n".join([header, *kept]) + "\n")


items = st.lists(st.sampled_from("abcdefgh"), min_size=3, max_size=12)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(items, min_size=1, max_size=5), st.integers(2, 20), st.booleans())
def test_whole_sequences_are_restored(tmp_path: Path, histories: list[list[str]], longest: int, newest_first: bool) -> None:
    users = {f"u{n}": history for n, history in enumerate(histories)}
    write(tmp_path / "toy", split(users, longest, newest_first))
    prepare(str(tmp_path / "toy"), str(tmp_path / "out"), overwrite=True)
    assert sequences(tmp_path / "out") == users


def test_one_file_selects_the_benchmark_and_columns_can_be_named(tmp_path: Path) -> None:
    users = {"x": list("abcd"), "y": list("bcda")}
    write(tmp_path, split(users, 50, True))
    write(tmp_path, split({"z": list("aaa")}, 50, True), name="Other")
    prepare(str(tmp_path / "Toy.valid.inter"), str(tmp_path / "out"))
    assert sequences(tmp_path / "out") == users
    with pytest.raises(LaresError, match="found those of Other, Toy: give one of the files"):
        prepare(str(tmp_path), str(tmp_path / "out2"))
    with pytest.raises(LaresError, match=r"no column 'who'; it has user_id, item_id_list, item_id"):
        prepare(str(tmp_path / "Toy.valid.inter"), str(tmp_path / "out2"), Columns(user="who"))


def test_compressed_parts_and_parts_under_another_name(tmp_path: Path) -> None:
    users = {"x": list("abcd"), "y": list("bcda")}
    write(tmp_path, split(users, 50, True))
    for part in ("train", "test"):
        path = tmp_path / f"Toy.{part}.inter"
        with gzip.open(f"{path}.gz", "wb") as file:
            file.write(path.read_bytes())
        path.unlink()
    for number, source in enumerate((tmp_path, tmp_path / "Toy.train.inter.gz", tmp_path / "Toy.valid.inter")):
        prepare(str(source), str(tmp_path / f"out{number}"))
        assert sequences(tmp_path / f"out{number}") == users
    (tmp_path / "Toy.valid.inter").rename(tmp_path / "valid.inter")
    with pytest.raises(LaresError, match=r"a part of RecBole benchmark files\. Name the parts NAME\.train\.inter"):
        prepare(str(tmp_path / "valid.inter"), str(tmp_path / "out"))


def test_other_splits_than_leave_one_out_are_refused(tmp_path: Path) -> None:
    good = split({"x": list("abcdef"), "y": list("bcda")}, 50, False)

    def said(changed: dict[str, list[Row]]) -> str:
        write(tmp_path / "bad", changed)
        with pytest.raises(LaresError) as caught:
            prepare(str(tmp_path / "bad"), str(tmp_path / "out"))
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    assert "user 'y' has 0 rows in the test file" in said({**good, "test": good["test"][:1]})
    assert "user 'x' has 2 rows in the valid file" in said({**good, "valid": [good["valid"][0], *good["valid"]]})
    gap = {**good, "train": [row for row in good["train"] if len(row[1]) != 2]}
    assert "Toy.train.inter: data row 2 (user 'x')" in said(gap)
    other = {**good, "test": [("x", list("abcdX"), "f"), good["test"][1]]}
    assert "Toy.test.inter: data row 1 (user 'x'): its history is not that of" in said(other)
    assert "has no history" in said({**good, "train": [("x", [], "a"), *good["train"]]})
    write(tmp_path / "bad", good)
    (tmp_path / "bad" / "Toy.test.inter").unlink()
    assert "Toy.test.inter of the benchmark Toy is missing" in _error(tmp_path / "bad", tmp_path)
    (tmp_path / "empty").mkdir()
    assert "found none" in _error(tmp_path / "empty", tmp_path)


def _error(source: Path, tmp_path: Path) -> str:
    with pytest.raises(LaresError) as caught:
        prepare(str(source), str(tmp_path / "out"))
    return str(caught.value)


def test_scientific_gives_the_instances_of_its_files(scientific: Path, tmp_path: Path) -> None:
    prepare(str(scientific), str(tmp_path / "out"))
    data = SequenceDataset.load(tmp_path / "out")
    assert (data.users, data.catalogue_size) == (8442, 4385)
    instances = data.training_instances.all()
    rows = (scientific / "Scientific.train.inter").read_text().splitlines()[1:]
    assert len(instances) == len(rows)
    # instance for instance: the same multiset of (user, target, last item before it)
    ids, users = data.item_ids.to_pylist(), data.user_ids.to_pylist()
    ours = sorted(
        (users[user], ids[data.items[end] - 1], ids[data.items[end - 1] - 1])
        for user, end in zip(instances.users, instances.ends, strict=True)
    )
    theirs = sorted((user, target, history.split()[-1]) for user, history, target in (row.split("\t") for row in rows))
    assert ours == theirs
    test = data.held_out("test").all()
    last = {users[user]: ids[data.items[end] - 1] for user, end in zip(test.users, test.ends, strict=True)}
    for row in (scientific / "Scientific.test.inter").read_text().splitlines()[1:]:
        user, _, target = row.split("\t")
        assert last[user] == target
    assert np.all(np.diff(data.offsets) >= 3)
