"""Splits against brute force, and training that knows nothing of what happened later."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lares_pl import DataSplit, LaresError, LastK, LeaveOneOut, SequenceDataset, TemporalSplit, prepare
from lares_pl.data.dataset.instances import Instances
from lares_pl.data.loading.loaders import InstanceLoader, WindowLoader
from lares_pl.data.loading.partners import SameTargetPartners
from lares_pl.data.loading.windows import training_windows
from lares_pl.stages.loading import load_stage
from tests.training import data as data_module
from tests.training import released_rpt, released_spt, trainer

Row = tuple[str, str, int]  # user, item, time
LOGS = st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from("uvwxyz"), st.integers(0, 30)), min_size=1, max_size=40)


def prepared(folder: Path, rows: Sequence[Row], split: DataSplit, **options: Any) -> SequenceDataset:
    text = "".join(f"{user}\t{item}\t{time}\n" for user, item, time in rows)
    (folder / "log.tsv").write_text(f"user_id\titem_id\ttimestamp\n{text}")
    prepare(str(folder / "log.tsv"), str(folder / "out"), split=split, overwrite=True, **options)
    return SequenceDataset.load(folder / "out")


def triples(data: SequenceDataset, instances: Instances) -> list[tuple[str, list[str], str]]:
    """User, history and target of each instance, in original ids."""
    spans = instances.all()
    ids = [None, *data.item_ids.to_pylist()]
    users = data.user_ids.take(spans.users).to_pylist()
    histories = [[ids[item] for item in data.items[start:end]] for start, end in zip(spans.starts, spans.ends, strict=True)]
    return list(zip(users, histories, [ids[item] for item in data.targets(spans)], strict=True))


def core(rows: list[Row], k: int) -> list[Row]:
    while True:
        users, items = Counter(row[0] for row in rows), Counter(row[1] for row in rows)
        kept = [row for row in rows if users[row[0]] >= k and items[row[1]] >= k]
        if len(kept) == len(rows):
            return rows
        rows = kept


def ordered(rows: list[Row]) -> dict[str, list[tuple[str, int]]]:
    found: dict[str, list[tuple[str, int]]] = {}
    for user, item, time in sorted(rows, key=lambda row: row[2]):  # stable
        found.setdefault(user, []).append((item, time))
    return found


def expected(users: dict[str, list[tuple[str, int]]], low: float, high: float, targets: str) -> list[Any]:
    """Instances with a target at a time within [low, high), by user."""
    found = []
    for user, events in users.items():
        part = [number for number, (_, time) in enumerate(events) if low <= time < high]
        for number in part[:1] if targets == "first" else part:
            if number:
                found.append((user, [item for item, _ in events[:number]], events[number][0]))
    return found


@settings(max_examples=40, deadline=None)
@given(LOGS, st.integers(1, 29), st.integers(1, 20), st.sampled_from(["first", "all"]), st.integers(0, 2))
def test_a_temporal_split_against_brute_force(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[Row],
    begin: int,
    length: int,
    targets: Literal["first", "all"],
    k: int,
) -> None:
    past = core([row for row in rows if row[2] < begin], k)
    items = {row[1] for row in past}
    later = [row for row in rows if row[2] >= begin and row[1] in items]
    kept = ordered([row for row in rows if row in later or (row[2] < begin and row in past)])
    train = expected(kept, -1, begin, "all")
    validation, test = expected(kept, begin, begin + length, targets), expected(kept, begin + length, 99, targets)
    split = TemporalSplit(begin, str(begin + length), targets=targets)
    folder = tmp_path_factory.mktemp("split")
    if not (past and validation and test):
        with pytest.raises(LaresError, match=r"nothing happened before|nothing is left|leaves no target"):
            prepared(folder, rows, split, k_core=k)
        return
    data = prepared(folder, rows, split, k_core=k)
    assert sorted(triples(data, data.training_instances)) == sorted(train)
    assert sorted(triples(data, data.held_out("validation"))) == sorted(validation)
    assert sorted(triples(data, data.held_out("test"))) == sorted(test)
    counts = Counter(row[1] for row in past)
    assert dict(zip(data.item_ids.to_pylist(), data.training_popularity[1:].tolist(), strict=True)) == counts
    described = json.loads((folder / "out" / "dataset.json").read_text())
    assert described["training_instances"] == len(train)
    unknown = [row for row in rows if row[2] >= begin and row[1] not in items]
    assert described["split"] == {
        "rule": "temporal",
        "validation_time": begin,
        "test_time": begin + length,
        "targets": targets,
        "new_users": len(kept) - len({row[0] for row in past}),
        "new_items": len({row[1] for row in unknown}),
        "new_item_rows": len(unknown),
        "validation_targets": len(validation),
        "test_targets": len(test),
    }


@settings(max_examples=25, deadline=None)
@given(LOGS, st.integers(1, 3))
def test_last_k_against_brute_force(tmp_path_factory: pytest.TempPathFactory, rows: list[Row], k: int) -> None:
    users = {user: [item for item, _ in events] for user, events in ordered(rows).items()}
    folder = tmp_path_factory.mktemp("split")
    if not any(len(items) > 2 * k for items in users.values()):
        with pytest.raises(LaresError, match="leaves no target for validation"):
            prepared(folder, rows, LastK(k))
        return
    data = prepared(folder, rows, LastK(k))

    def targets(begin: int, end: int) -> list[Any]:
        """Instances at the positions from the end, of users with enough items."""
        held = {user: items for user, items in users.items() if len(items) > 2 * k}
        return sorted(
            (user, items[:n], items[n]) for user, items in held.items() for n in range(len(items) - begin, len(items) - end)
        )

    assert sorted(triples(data, data.held_out("validation"))) == targets(2 * k, k)
    assert sorted(triples(data, data.held_out("test"))) == targets(k, 0)
    train = [(u, i[:n], i[n]) for u, i in users.items() for n in range(1, len(i) - (2 * k if len(i) > 2 * k else 0))]
    assert sorted(triples(data, data.training_instances)) == sorted(train)
    if k == 1:
        plain = prepared(folder, rows, LeaveOneOut())
        assert not (folder / "out" / "split.parquet").exists()
        for name in ("validation", "test", "next"):
            assert triples(plain, plain.held_out(name)) if name != "next" else len(plain.held_out(name)) == len(users)
            if name != "next":
                assert triples(plain, plain.held_out(name)) == triples(data, data.held_out(name))
        assert all(np.array_equal(a, b) for a, b in zip(plain.flat, data.flat, strict=True))


def log(generator: np.random.Generator, users: int, items: int, rows: int, low: int, high: int) -> list[Row]:
    drawn = zip(generator.integers(users, size=rows), generator.integers(items, size=rows), strict=True)
    times = generator.integers(low, high, size=rows)
    return [(f"u{user}", f"i{item}", int(time)) for (user, item), time in zip(drawn, times, strict=True)]


def trained_on(data: SequenceDataset) -> list[Any]:
    """All that training reads of a dataset: batches of both kinds with partners, the catalogue, its counts."""
    partners, read = SameTargetPartners(data), []
    options: dict[str, Any] = {"shuffle": True, "seed": 3}
    windows = WindowLoader(data, training_windows(data, 6), 16, 6, None, 2, partners, **options)
    for loader in (InstanceLoader(data, data.training_instances, 64, 6, partners, **options), windows):
        for batch in loader:
            for part in (batch.histories, batch.aligned, batch.partners):
                read += [] if part is None else [part.items.tolist(), part.lengths.tolist()]
            read += [batch.targets.tolist(), batch.instances.tolist()]
    described = json.loads((Path(data.path) / "dataset.json").read_text())
    return [*read, data.item_ids.to_pylist(), data.training_popularity.tolist(), described["items"]]


@pytest.mark.parametrize("k", [0, 3])
def test_training_does_not_depend_on_what_happened_later(tmp_path: Path, k: int) -> None:
    generator = np.random.default_rng(0)
    past = log(generator, users=30, items=25, rows=300, low=0, high=100)
    split = TemporalSplit(100, 150, targets="all")
    read = []
    for users, items, rows in ((30, 25, 120), (45, 60, 400), (20, 25, 30)):
        later = log(generator, users, items, rows, 100, 200)
        # among, before and behind the rows of the past, whose own order stays
        placed = [*enumerate(past), *((int(generator.integers(-5, 320)), row) for row in later)]
        mixed = sorted(placed, key=lambda pair: pair[0])
        read.append(trained_on(prepared(tmp_path, [row for _, row in mixed], split, k_core=k)))
    assert read[0] == read[1] == read[2]


def test_shares_are_shares_of_the_log(tmp_path: Path) -> None:
    rows = log(np.random.default_rng(1), users=10, items=8, rows=200, low=0, high=10_000)
    times = sorted(row[2] for row in rows)
    data = prepared(tmp_path, rows, TemporalSplit(validation_share=0.7, test_share=0.85))
    assert data.split is not None
    assert (data.split["validation_time"], data.split["test_time"]) == (times[140], times[170])


def test_dates_are_times(tmp_path: Path) -> None:
    rows = [(user, "x", 1401494400 + day * 86400) for user in "ab" for day in range(-2, 4)]
    data = prepared(tmp_path, rows, TemporalSplit("2014-05-31", "2014-06-02T00:00:00Z"))
    assert np.diff(data.training_instances.firsts).tolist() == [1, 1]
    assert [len(history) for _, history, _ in triples(data, data.held_out("test"))] == [4, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs --split.validation_time and --split.test_time"),
        ({"validation_time": 3, "test_share": 0.5}, "given: test_share, validation_time"),
        ({"validation_share": 0.9, "test_share": 0.8}, "0 < validation_share < test_share < 1"),
        ({"validation_time": 5, "test_time": 5}, "test must begin later"),
        ({"validation_time": "soon", "test_time": 5}, "--split.validation_time: 'soon' is neither a number nor a date"),
        ({"validation_time": -1, "test_time": 5}, "the times of the log run from 1 to 3"),
        ({"validation_time": 2, "test_time": 9}, "no target for test"),
    ],
)
def test_splits_that_hold_nothing_out_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(LaresError, match=message):
        prepared(tmp_path, [("a", "x", 1), ("a", "y", 2), ("a", "x", 3)], TemporalSplit(**options))


def test_a_temporal_split_needs_times(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id\na,x\na,y\n")
    with pytest.raises(LaresError, match=r"a temporal split needs times.*--columns.time"):
        prepare(str(tmp_path / "log.csv"), str(tmp_path / "out"), split=TemporalSplit(1, 2))


def test_both_stages_train_and_are_tested_on_a_temporal_split(tmp_path: Path) -> None:
    rows = log(np.random.default_rng(2), users=31, items=20, rows=600, low=0, high=100)
    dataset = Path(prepared(tmp_path, rows, TemporalSplit(70, 85, targets="all")).path)
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(released_spt(alpha=0.1), data_module(dataset))
    fit.save_checkpoint(tmp_path / "spt.ckpt")
    again = trainer(tmp_path, max_epochs=1)
    again.fit(released_rpt(tmp_path / "spt.ckpt"), data_module(dataset))
    again.save_checkpoint(tmp_path / "rpt.ckpt")
    module = data_module(dataset)
    (metrics,) = trainer(tmp_path).test(load_stage(tmp_path / "rpt.ckpt"), module, verbose=False)
    assert 0 < metrics["test/recall@10"] < 1
    assert len(module.sequences.held_out("test")) == sum(len(h) > 0 for _, h, _ in expected(ordered(rows), 85, 999, "all"))
