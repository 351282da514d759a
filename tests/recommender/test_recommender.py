"""The recommender: original ids in, ranked original ids out."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lares_pl import (
    SPT,
    CosineSimilarity,
    LaresError,
    Reasoning,
    Recommender,
    RecurrentBackbone,
    ResidualStop,
    SequenceDataModule,
    SequenceDataset,
)
from lares_pl.cli.main import main
from lares_pl.data.loading.histories import Histories
from lares_pl.model import tiles
from lares_pl.model.recurrence import KeyedNoise
from lares_pl.recommender import candidates
from tests.console import error
from tests.released import released_backbone
from tests.training import data, released_spt, trainer

IDS = pa.array([f"item-{number}" for number in range(1, 31)])
HISTORIES = {"ann": ["item-3", "item-1", "item-4"], "bob": ["item-5"], "cleo": [f"item-{n}" for n in range(1, 13)]}


def recommender(**settings: object) -> Recommender:
    torch.manual_seed(0)
    config = released_backbone(hidden_size=8, pre_layers=1, core_layers=1, initializer_range=0.4, **settings)
    return Recommender(RecurrentBackbone(30, 6, config), IDS, Reasoning(3))


def by_hand(model: Recommender, history: list[str], depth: int) -> pd.Series:
    """Scores of all items by id, best first, from the model itself."""
    numbers = [int(item.split("-")[1]) for item in history][-model.backbone.max_length :]
    histories = Histories.from_lists([numbers])
    with torch.no_grad():
        (states,) = model.backbone.rollout(histories, [depth], KeyedNoise(histories))
        scores = model.backbone.head().scores(states[-1])[0, 1:]
    return pd.Series(scores.numpy(), index=IDS.to_pylist()).sort_values(ascending=False)


@pytest.mark.parametrize("settings", [{}, {"similarity": CosineSimilarity()}])
@pytest.mark.parametrize("exclude_seen", [False, True])
def test_lists_equal_the_ranking_of_the_model(settings: dict[str, object], exclude_seen: bool) -> None:
    model = recommender(**settings)
    found = model.recommend(HISTORIES, k=30, depth=4, exclude_seen=exclude_seen, batch_size=2)
    assert found.users == ["ann", "bob", "cleo"]
    assert found.steps == [4.0] * 3
    for (history, items), scores in zip(zip(HISTORIES.values(), found.item_ids, strict=True), found.scores, strict=True):
        expected = by_hand(model, history, 4)
        if exclude_seen:
            expected = expected.drop(history)  # of the whole history, also where the model reads its end only
        assert items == expected.index.tolist()
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


def test_a_history_gets_the_same_list_alone_and_in_a_batch() -> None:
    model = recommender()
    alone = [model.recommend(history, k=5) for history in HISTORIES.values()]
    together = model.recommend(HISTORIES, k=5)
    assert [one.item_ids[0] for one in alone] == together.item_ids
    assert model.recommend(HISTORIES, k=5) == together


def test_all_forms_of_histories_give_equal_lists() -> None:
    model = recommender()
    expected = model.recommend(HISTORIES, k=4)
    lists = list(HISTORIES.values())
    rows = [(user, item, time) for user, items in HISTORIES.items() for time, item in enumerate(items)]
    interactions = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    shuffled = interactions.sample(frac=1, random_state=1).sort_values("user_id", kind="stable")
    by_user = pa.table({"user_id": list(HISTORIES), "item_ids": lists})
    for given in (interactions, shuffled, pa.Table.from_pandas(interactions), by_user, by_user.to_pandas()):
        assert model.recommend(given, k=4) == expected
    for unnamed in (lists, [np.array(part) for part in lists], by_user.drop_columns(["user_id"])):
        found = model.recommend(unnamed, k=4)
        assert (found.users, found.item_ids) == ([0, 1, 2], expected.item_ids)


def test_unknown_items_are_skipped_and_reported() -> None:
    model = recommender()
    found = model.recommend({"ann": ["item-3", "x", "item-1", "item-4", "y"], "new": ["x"], "none": []}, k=3)
    assert found.item_ids == [model.recommend(HISTORIES, k=3).item_ids[0], [], []]
    assert found.unknown == [["x", "y"], ["x"], []]
    table = found.to_arrow()
    assert table["unknown"].to_pylist() == found.unknown
    assert found.to_pandas()["user_id"].tolist() == ["ann"] * 3
    assert found.to_pandas()["rank"].tolist() == [1, 2, 3]
    assert len(model.recommend({}, k=3)) == len(model.recommend([], k=3)) == 0


def test_candidates_and_filter() -> None:
    model = recommender()
    everything = model.recommend(HISTORIES, k=30)
    some = ["item-9", "item-2", "item-7", "x", "item-9"]
    found = model.recommend(HISTORIES, k=10, candidates=some)
    for items, whole in zip(found.item_ids, everything.item_ids, strict=True):
        assert items == [item for item in whole if item in some]
    assert model.recommend(HISTORIES, k=10, candidates=iter(some)) == found  # read once
    even = model.recommend(HISTORIES, k=30, filter=lambda item: int(item.split("-")[1]) % 2 == 0, exclude_seen=True)
    for history, items, whole in zip(HISTORIES.values(), even.item_ids, everything.item_ids, strict=True):
        assert items == [item for item in whole if int(item.split("-")[1]) % 2 == 0 and item not in history]
    own = {"ann": ["item-9", "item-3"], "cleo": ["item-30", "item-2", "item-8"]}
    mine = model.recommend(HISTORIES, k=2, candidates=own, exclude_seen=True)
    assert mine.item_ids == [["item-9"], [], ["item-30"]]
    mine = model.recommend(HISTORIES, k=2, candidates=own, filter=lambda item: item != "item-2")
    for user, items, scores in zip(mine.users, mine.item_ids, mine.scores, strict=True):
        of_user = by_hand(model, HISTORIES[user], 3)
        expected = of_user[[item in own.get(user, ()) and item != "item-2" for item in of_user.index]][:2]
        assert items == expected.index.tolist()
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)


def test_own_candidates_take_no_more_memory_for_more_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lists are also independent of the number of users that are processed together."""
    model = recommender()
    own = {"ann": [f"item-{n}" for n in range(1, 6)], "bob": ["item-2"], "cleo": [f"item-{n}" for n in range(9, 29)]}
    expected = model.recommend(HISTORIES, k=12, candidates=own, exclude_seen=True)
    looked_up: list[int] = []
    pad = torch.nn.utils.rnn.pad_sequence

    def padded(parts: list[torch.Tensor], batch_first: bool) -> torch.Tensor:
        items = pad(parts, batch_first=batch_first)
        looked_up.append(items.numel() * 8)  # numbers of d = 8 each
        return items

    monkeypatch.setattr(candidates, "pad_sequence", padded)
    for chunk in (1, 2 * 20 * 8):
        looked_up.clear()
        monkeypatch.setattr(tiles, "CHUNK", chunk)
        assert model.recommend(HISTORIES, k=12, candidates=own, exclude_seen=True) == expected
        assert max(looked_up) <= max(chunk, 20 * 8)
        assert len(looked_up) > 1


def test_what_is_spent_on_a_history_reaches_the_model() -> None:
    model = recommender()
    deep = model.recommend(HISTORIES, k=30, depth=9)
    assert deep.scores != model.recommend(HISTORIES, k=30, depth=1).scores
    stopped = model.recommend(HISTORIES, k=30, depth=9, stop=ResidualStop(1e9))
    assert stopped.steps == [2.0] * 3
    assert stopped.item_ids == model.recommend(HISTORIES, k=30, depth=2).item_ids
    assert model.recommend(HISTORIES, k=30, trajectories=3).scores != model.recommend(HISTORIES, k=30).scores
    averaged = model.recommend(HISTORIES, k=30, depth=9, average_steps=True)
    assert averaged.scores not in (deep.scores, model.recommend(HISTORIES, k=30, depth=1).scores)
    averaging = Recommender(model.backbone, IDS, Reasoning(9, average_steps=True))
    assert averaging.recommend(HISTORIES, k=30) == averaged
    explained = averaging.explain(HISTORIES["ann"], k=30)
    assert explained[explained["step"] == 9]["item_id"].tolist() == averaged.item_ids[0]
    with pytest.raises(LaresError, match="average_steps must be True or False; got 'false'"):
        model.recommend(HISTORIES, average_steps="false")  # type: ignore[arg-type]
    first = model.recommend(HISTORIES, k=30, depth=1, average_steps=True)
    assert first.item_ids == model.recommend(HISTORIES, k=30, depth=1).item_ids


def test_the_ranking_after_each_step() -> None:
    model = recommender()
    steps = model.explain(HISTORIES["ann"], k=4, depth=5)
    assert steps["step"].unique().tolist() == [1, 2, 3, 4, 5]
    for step, part in steps.groupby("step"):
        expected = by_hand(model, HISTORIES["ann"], int(str(step)))[:4]
        assert part["item_id"].tolist() == expected.index.tolist()
    seen = model.explain(HISTORIES["ann"], k=30, exclude_seen=True)
    assert not set(HISTORIES["ann"]) & set(seen["item_id"])
    with pytest.raises(LaresError, match="no item of this history"):
        model.explain(["x"])


def test_invalid_arguments_are_refused() -> None:
    model = recommender()
    for given, message in (
        (pd.DataFrame({"item_id": ["item-1"]}), "no column user_id"),
        (pd.DataFrame({"user_id": ["a", None], "item_id": ["item-1", "item-2"]}), "data row 2 names no user_id"),
        ("item-1", "str is not supported"),
        ([["item-1"], "item-2"], "both item ids and lists"),
        ({"ann": "item-1"}, "the value of user 'ann' is not a list"),
    ):
        with pytest.raises(LaresError, match=message):
            model.recommend(given)
    with pytest.raises(LaresError, match="k must be a whole number, at least 1; got 0"):
        model.recommend(HISTORIES, k=0)
    with pytest.raises(LaresError, match="depth must not be negative"):
        model.recommend(HISTORIES, depth=-1)
    with pytest.raises(LaresError, match="no item is left to rank"):
        model.recommend(HISTORIES, candidates=["x"])
    with pytest.raises(LaresError, match="29 item ids for a model of 30 items"):
        Recommender(model.backbone, IDS[:29], Reasoning(1))
    with pytest.raises(LaresError, match=r"--device nonsense: .*Choose auto, cpu"):
        Recommender(model.backbone, IDS, Reasoning(1), device="nonsense")


def test_numpy_numbers_are_accepted_and_other_types_refused() -> None:
    model = recommender()
    expected = model.recommend(HISTORIES, k=3, depth=2)
    assert model.recommend(HISTORIES, k=np.int64(3), depth=np.int32(2), batch_size=np.int64(99)) == expected  # type: ignore[arg-type]
    wrong = {"k": True, "depth": 2.5, "trajectories": 2.0, "batch_size": "4"}
    for name, value in wrong.items():
        with pytest.raises(LaresError, match=f"{name} must be a whole number.*; got {value!r}"):
            model.recommend(HISTORIES, **{name: value})  # type: ignore[arg-type]


def test_series_are_accepted_and_text_is_refused() -> None:
    model = recommender()
    history = HISTORIES["ann"]
    expected = model.recommend(history, k=3)
    series = pd.Series(history, index=[7, 8, 9])
    assert model.recommend(series, k=3) == model.recommend([series], k=3) == expected
    assert model.recommend({"ann": series}, k=3).item_ids == expected.item_ids
    assert model.explain(series, k=2).equals(model.explain(history, k=2))
    with pytest.raises(LaresError, match="str is not supported"):
        model.explain("item-1")  # not its letters
    with pytest.raises(LaresError, match=r"explain takes one history at a time.*there are 3"):
        model.explain(HISTORIES)


def test_candidates_that_are_unknown_are_reported() -> None:
    model = recommender()
    assert model.recommend(HISTORIES, candidates=["item-2", "x", "y", "x"]).unknown_candidates == ["x", "y"]
    own = {"ann": ["item-2", "x"], "bob": ["y", "x"], "stranger": ["z"]}
    assert model.recommend(HISTORIES, candidates=own).unknown_candidates == ["x", "y"]
    assert model.recommend(HISTORIES, candidates=["item-2"]).unknown_candidates == []
    for wrong in ("item-2", {"ann": "item-2"}, {"ann": 2}):
        with pytest.raises(LaresError, match="is no list of item ids"):
            model.recommend(HISTORIES, candidates=wrong)


def test_arrow_tables_have_the_types_of_the_ids() -> None:
    model = recommender()
    assert model.recommend({1: ["item-1"], "ann": ["item-2"]}).to_arrow()["user_id"].to_pylist() == ["1", "ann"]
    some = model.recommend({"ann": ["item-1"]}).to_arrow().schema
    assert model.recommend({"ann": ["x"]}).to_arrow().schema == model.recommend({}).to_arrow().schema == some
    assert some.field("item_ids").type == pa.list_(pa.string())
    numbered = Recommender(model.backbone, pa.array(range(100, 130)), Reasoning(1))
    assert numbered.recommend([["x"]]).to_arrow().schema.field("item_ids").type == pa.list_(pa.int64())
    assert numbered.recommend([[100.0, 101.0]]).unknown == [[]]


# ---------------------------------------------------------------- of a checkpoint, and as a command


@pytest.fixture(scope="module")
def checkpoint(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recommender")
    fit = trainer(folder, max_epochs=1)
    fit.fit(released_spt(), data(toy_dataset))
    fit.save_checkpoint(folder / "spt.ckpt")
    return folder / "spt.ckpt"


def test_only_a_checkpoint_is_needed(checkpoint: Path, toy_dataset: Path, tmp_path: Path) -> None:
    """Its lists for the users of its dataset equal those of `predict`."""
    data = SequenceDataset.load(toy_dataset)
    ids = data.item_ids.to_pylist()
    histories = {
        user: [ids[item - 1] for item in data.items[start:end]]
        for user, (start, end) in zip(data.user_ids.to_pylist(), pairwise(data.offsets.tolist()), strict=True)
    }
    stage = SPT.load_from_checkpoint(checkpoint)
    module = SequenceDataModule(str(toy_dataset), max_length=8)
    (ranked,) = trainer(tmp_path).predict(stage, module) or []
    expected = [[ids[item - 1] for item in items] for items in ranked.items.tolist()]  # type: ignore[union-attr]
    assert Recommender.from_checkpoint(checkpoint).recommend(histories, k=10).item_ids == expected
    assert Recommender.from_checkpoint(checkpoint, toy_dataset).recommend(histories, k=10).item_ids == expected


def test_the_command(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ids = Recommender.from_checkpoint(checkpoint)._ids
    Path("new.csv").write_text(f"who,what\nme,{ids[1]}\nme,no-such-thing\nyou,{ids[2]}\nlost,neither\n")
    command = ["recommend", "--ckpt_path", str(checkpoint), "--histories", "new.csv"]
    columns = ["--columns.user", "who", "--columns.item", "what"]
    options = ["--k", "3", "--depth", "6", "--stop", "lares_pl.ResidualStop", "--stop.threshold", "1e9"]
    monkeypatch.setattr("sys.argv", ["lares", *command, *columns, *options])
    main()
    table = pq.read_table("recommendations.parquet").to_pydict()
    assert table["user_id"] == ["me", "you", "lost"]
    assert [len(items) for items in table["item_ids"]] == [3, 3, 0]
    assert table["steps"] == [2.0, 2.0, 0.0]
    assert table["unknown"] == [["no-such-thing"], [], ["neither"]]
    said = capsys.readouterr().out
    assert "wrote 2 rankings" in said
    assert "2 of 4 interactions name items that the model does not know" in said
    assert "'no-such-thing' of user 'me'\n1 users have no list: the first is 'lost'" in said
    Path("some.txt").write_text(f"{ids[3]}\n{ids[4]}\n")
    monkeypatch.setattr("sys.argv", ["lares", *command, *columns, "--candidates", "some.txt", "--output", "some.csv"])
    main()
    assert set(pd.read_csv("some.csv", dtype=str)["item_id"]) == {ids[3], ids[4]}
    assert "recommendations.parquet exists; --overwrite true" in error(tmp_path, *command, *columns)
    assert "name a file that ends with .parquet or .csv" in error(tmp_path, *command, "--output", "x.json")
    assert "no column" in error(tmp_path, *command, "--output", "new.parquet")
    assert "--device meta: " in error(tmp_path, *command, "--output", "new.parquet", "--device", "meta")
