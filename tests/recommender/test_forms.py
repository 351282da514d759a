"""Histories and candidates in all supported types and files; ids in one canonical form."""

from __future__ import annotations

import decimal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lares_pl import LaresError, Recommender, SequenceDataModule, SequenceDataset, load_stage, prepare
from lares_pl.callbacks.prediction_writer import PredictionWriter
from lares_pl.data.prepare.text_files import read_id_lines
from lares_pl.recommender.command import recommend
from lares_pl.recommender.recommendations import Recommendations
from lares_pl.stages.checkpoint import read_checkpoint
from tests.recommender.test_recommender import HISTORIES, recommender
from tests.training import released_spt, trainer

# ---------------------------------------------------------------- histories


@pytest.fixture(scope="module")
def model() -> Recommender:
    return recommender()


@pytest.fixture(scope="module")
def expected(model: Recommender) -> Recommendations:
    return model.recommend(HISTORIES, k=3)


def interactions() -> pd.DataFrame:
    rows = [(user, item, time) for user, items in HISTORIES.items() for time, item in enumerate(items)]
    return pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])


FORMS: dict[str, Any] = {
    "series of lists": pd.Series(HISTORIES),
    "series of arrays": pd.Series({user: np.array(items) for user, items in HISTORIES.items()}),
    "series of lists, index named": pd.Series(HISTORIES).rename_axis("user_id"),
    "grouped": interactions().groupby("user_id")["item_id"].apply(list),
    "grouped, aggregated": interactions().groupby("user_id")["item_id"].agg(tuple),
    "series of items by user": interactions().set_index("user_id")["item_id"],
    "series of items by user and time": interactions().set_index(["user_id", "timestamp"])["item_id"],
    "table of items by user": interactions().set_index("user_id"),
    "table of lists by user": pd.Series(HISTORIES).rename_axis("user_id").to_frame("item_ids"),
    "Arrow table of pandas, users as index": pa.Table.from_pandas(interactions().set_index("user_id")),
    "table by user and time, latest first": interactions().set_index(["user_id", "timestamp"])[::-1].loc[list(HISTORIES)],
    "series of items by user and time, latest first": interactions()[::-1]
    .set_index(["user_id", "timestamp"])["item_id"]
    .loc[list(HISTORIES)],
    "series of Arrow arrays": pd.Series({user: pa.array(items, pa.string()) for user, items in HISTORIES.items()}),
    "indexes by user": {user: pd.Index(items) for user, items in HISTORIES.items()},
    "categories": interactions().astype({"user_id": "category", "item_id": "category"}),
}


@pytest.mark.parametrize("form", FORMS)
def test_users_are_kept(form: str, model: Recommender, expected: Recommendations) -> None:
    assert model.recommend(FORMS[form], k=3) == expected


def test_what_is_no_list_of_ids_is_refused(model: Recommender) -> None:
    for odd in ({"item-1"}, frozenset({"item-1"}), {"item-1": 1}, [["item-1"]]):
        with pytest.raises(LaresError, match=r"histories: \w+ in place of an item id|contains both item ids and lists"):
            model.recommend([odd, odd])
    listed = pa.array([["item-1", "item-2"]])
    assert model.recommend(listed, k=3) == model.recommend([["item-1", "item-2"]], k=3)


@pytest.mark.parametrize("name", ["ts", "Timestamp", "event_time"])
def test_times_under_another_name_are_not_ignored_silently(name: str, model: Recommender) -> None:
    with pytest.raises(LaresError, match=f"no column timestamp to order the items by. Call '{name}' so"):
        model.recommend(interactions().rename(columns={"timestamp": name}))


def test_a_series_may_lack_histories(model: Recommender) -> None:
    found = model.recommend(pd.Series({"ann": ["item-1"], "none": [], "nothing": None}), k=1)
    assert found.users == ["ann", "none", "nothing"]
    assert [len(items) for items in found.item_ids] == [1, 0, 0]


def test_a_series_that_can_be_read_in_two_ways_is_refused(model: Recommender) -> None:
    twice = interactions().set_index("user_id")["item_id"].rename_axis("who")
    with pytest.raises(LaresError, match=r"whose index repeats: call the index user_id.*reset_index\(drop=True\)"):
        model.recommend(twice)
    assert len(model.recommend(twice.reset_index(drop=True))) == 1
    with pytest.raises(LaresError, match="the series names user 'ann' twice"):
        model.recommend(pd.Series([["item-1"], ["item-2"]], index=["ann", "ann"]))


# ---------------------------------------------------------------- candidates

OWN = {"ann": ["item-9", "item-3"], "bob": ["item-2"], "cleo": ["item-30", "x", "item-8"]}


@pytest.mark.parametrize(
    "candidates",
    [
        list(OWN.values()),
        tuple(map(tuple, OWN.values())),
        [set(part) for part in OWN.values()],
        [np.array(part) for part in OWN.values()],
        (part for part in OWN.values()),
        pd.Series(OWN),
        pd.Series(OWN)[::-1],
        pd.Series(list(OWN.values())),
    ],
    ids=["lists", "tuples", "sets", "arrays", "iterator", "series", "series in another order", "series without users"],
)
def test_each_history_may_have_its_own_candidates(candidates: Any, model: Recommender) -> None:
    found = model.recommend(HISTORIES, k=3, candidates=candidates)
    assert found == model.recommend(HISTORIES, k=3, candidates=OWN)
    assert [sorted(items) for items in found.item_ids] == [["item-3", "item-9"], ["item-2"], ["item-30", "item-8"]]
    assert found.unknown_candidates == ["x"]


def test_a_matrix_of_candidates_has_one_row_per_history(model: Recommender) -> None:
    matrix = np.array([["item-1", "item-2"], ["item-3", "item-4"], ["item-5", "item-6"]])
    found = model.recommend(HISTORIES, k=2, candidates=matrix)
    assert [sorted(items) for items in found.item_ids] == matrix.tolist()


def test_users_of_candidates_are_compared_as_items_are(model: Recommender) -> None:
    found = model.recommend({7: ["item-1"], "8": ["item-1"]}, candidates={"7": ["item-2"], 8.0: ["item-3"]})
    assert found.item_ids == [["item-2"], ["item-3"]]


def test_candidates_without_histories_are_of_nobody(model: Recommender) -> None:
    assert len(model.recommend({}, candidates={"ann": ["item-1"]})) == 0


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ([["item-1"], ["item-2"]], "2 lists for 3 histories; give each history one"),
        ([["item-1"], "item-2", ["item-3"]], r"both item ids and lists \(its part 1\)"),
        (pd.DataFrame({"item_id": ["item-1"]}), "a table is not understood"),
        (pa.table({"item_id": ["item-1"]}), "a table is not understood"),
        (pd.Series([["item-1"], ["item-2"]], index=["ann", "ann"]), "names user 'ann' twice"),
        ({"nobody": ["item-1"]}, "users such as 'nobody', and none of them has a history"),
        ("item-1", "is no list of item ids"),
        (7, "is no list of item ids"),
    ],
)
def test_ambiguous_candidates_are_refused(candidates: Any, message: str, model: Recommender) -> None:
    with pytest.raises(LaresError, match=message):
        model.recommend(HISTORIES, candidates=candidates)


# ---------------------------------------------------------------- one spelling, from the log to the list

USERS, ITEMS = 12, 15


def log() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {"user_id": np.repeat(np.arange(1, USERS + 1), 8), "item_id": rng.permutation(np.arange(USERS * 8) % ITEMS) + 1}
    )


def floats(table: pd.DataFrame) -> pd.DataFrame:
    return table.astype(float)


def decimals(table: pd.DataFrame) -> pd.DataFrame:
    return table.map(lambda value: decimal.Decimal(value).quantize(decimal.Decimal("1.00")))


@pytest.mark.parametrize("form", ["floats.parquet", "decimals.parquet", "numbers.parquet", "floats.csv", "numbers.csv"])
def test_ids_have_one_canonical_form(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    forms: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {"floats": floats, "decimals": decimals, "numbers": pd.DataFrame}
    for name, made in forms.items():
        made(log()).to_parquet(f"{name}.parquet")
        made(log()).to_csv(f"{name}.csv", index=False)
    prepare(form, "data")
    number: Any = int if form.endswith(".parquet") else str
    items = {number(n) for n in range(1, ITEMS + 1)}
    users = [number(n) for n in range(1, USERS + 1)]
    data = SequenceDataset.load("data")
    assert set(data.item_ids.to_pylist()) == items
    assert data.user_ids.to_pylist() == users

    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(released_spt(), SequenceDataModule("data", max_length=8, batch_size=64))
    fit.save_checkpoint("spt.ckpt")
    assert read_checkpoint("spt.ckpt").item_ids == data.item_ids.cast(pa.int64() if number is int else pa.large_string())
    lists = []
    for histories in (None, *(f"{name}.{kind}" for name in forms for kind in ("parquet", "csv"))):
        stage, module = load_stage("spt.ckpt"), SequenceDataModule("data", max_length=8, histories=histories)
        trainer(tmp_path, callbacks=[PredictionWriter("predicted.parquet", overwrite=True)]).predict(stage, module)
        table = pq.read_table("predicted.parquet").to_pydict()
        assert [str(user) for user in table["user_id"]] == list(map(str, users))
        lists.append(table["item_ids"])
        if histories is not None:
            recommend("spt.ckpt", histories, output="found.parquet", overwrite=True)
            found = pq.read_table("found.parquet").to_pydict()
            assert [str(user) for user in found["user_id"]] == list(map(str, users))
            assert not any(found["unknown"])
            lists.append(found["item_ids"])
    assert all(each == lists[0] for each in lists)
    assert {item for part in lists[0] for item in part} <= items

    model = Recommender.from_checkpoint("spt.ckpt")
    for table in (floats(log()), decimals(log()), log(), floats(log()).astype(str)):
        found = model.recommend(table)
        assert (found.item_ids, any(found.unknown)) == (lists[0], False)
        assert [str(user) for user in found.to_arrow()["user_id"].to_pylist()] == list(map(str, users))
    for spelled in ("11.0", 11, 11.0, np.float32(11), "11", decimal.Decimal("11.00"), pd.NA):
        known = model.recommend([[spelled]], k=1)
        assert any(known.unknown) == (spelled is pd.NA)
    Path("some.txt").write_bytes("\ufeff11.0  \r\n\r\n 3\r\n12\t\r\n".encode())
    recommend("spt.ckpt", "floats.csv", output="some.csv", candidates="some.txt")
    some = pd.read_csv("some.csv", dtype=str)
    assert set(some["item_id"]) == {"11", "3", "12"}
    assert some["user_id"].unique().tolist() == list(map(str, users))


def test_loading_and_recommending_leave_the_random_state_unchanged(tmp_path: Path, toy_dataset: Path) -> None:
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(released_spt(), SequenceDataModule(str(toy_dataset), max_length=8, batch_size=64))
    fit.save_checkpoint(tmp_path / "spt.ckpt")
    ids = SequenceDataset.load(toy_dataset).item_ids.to_pylist()
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    model = Recommender.from_checkpoint(tmp_path / "spt.ckpt")
    model.recommend([ids[:3], ids[:1]])
    load_stage(tmp_path / "spt.ckpt")
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(99)
    again = Recommender.from_checkpoint(tmp_path / "spt.ckpt")
    assert again.recommend([ids[:3]]) == model.recommend([ids[:3]])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_candidates_of_a_file(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_bytes("Käse \r\n\r\n  Brot\t\r\nMilch 1 l".encode(encoding))
    assert read_id_lines(tmp_path / "some.txt", "cp1252" if encoding == "cp1252" else None) == ["Käse", "Brot", "Milch 1 l"]
    if encoding == "cp1252":
        with pytest.raises(LaresError, match=r"some.txt: .*--encoding"):
            read_id_lines(tmp_path / "some.txt")
    with pytest.raises(LaresError, match=r"none.txt: cannot be read"):
        read_id_lines(tmp_path / "none.txt")
