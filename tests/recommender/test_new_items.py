"""Items that a model was not trained on, ranked from their text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lares_pl import (
    LaresError,
    Reasoning,
    Recommender,
    RecurrentBackbone,
    SequenceDataModule,
    TedRecEmbedder,
    TextOptions,
    prepare,
)
from lares_pl.cli.main import main
from lares_pl.model.embedding import ItemText
from tests.console import error
from tests.released import released_backbone
from tests.training import released_spt, trainer

TEDREC = released_backbone(
    hidden_size=8, embedder=TedRecEmbedder(experts=2), pre_layers=1, core_layers=1, initializer_range=0.4
)


@pytest.fixture
def model() -> Recommender:
    torch.manual_seed(0)
    text = torch.randn(21, 5)
    text[0] = 0
    return Recommender(RecurrentBackbone(20, 6, TEDREC, ItemText(text)), pa.array(range(101, 121)), Reasoning(3))


def text_of(model: Recommender) -> np.ndarray:
    text = model.backbone.embedding.text
    assert isinstance(text, ItemText)
    return text.vectors.numpy()


def test_a_new_item_scores_as_the_item_nearest_by_text_and_can_be_read(model: Recommender) -> None:
    old = text_of(model)
    given = {501: 2 * old[7] + 0.01, 102: old[3], 502: old[12], 503: np.zeros(5)}  # 102 is known, 503 has no text
    draws = torch.get_rng_state()
    grown = model.with_items(list(given), np.stack(list(given.values())))
    assert torch.equal(torch.get_rng_state(), draws)
    assert grown.backbone.items == 22
    history = [[101, 105, 120]]
    before, after = (of.recommend(history, k=30) for of in (model, grown))
    scores = dict(zip(after.item_ids[0], after.scores[0], strict=True))
    assert set(scores) == {*range(101, 121), 501, 502}
    assert scores[501] == pytest.approx(scores[107], rel=1e-5)
    assert scores[502] == pytest.approx(scores[112], rel=1e-5)
    assert [item for item in after.item_ids[0] if int(item) < 500] == before.item_ids[0]
    assert grown.recommend(history, candidates=[502, 101]).unknown_candidates == []
    assert grown.recommend([[101, 502]]).unknown == [[]]
    assert model.recommend([[101, 502]]).unknown == [[502]]
    assert len(model.with_items([], np.zeros((0, 5))).recommend(history, k=30).item_ids[0]) == 20


def test_ids_of_another_type_become_text(model: Recommender) -> None:
    grown = model.with_items(["new"], text_of(model)[1:2])
    assert grown.recommend([[101, "102", "new"]], k=30).unknown == [[]]
    assert "new" in grown.recommend([[101]], k=30).item_ids[0]


def test_what_does_not_fit_is_refused(model: Recommender) -> None:
    with pytest.raises(LaresError, match="text vectors of 4 values; the model reads 5"):
        model.with_items([1], np.ones((1, 4)))
    with pytest.raises(LaresError, match=r"2 new items need as many vectors of finite numbers, got an array \[1, 5\]"):
        model.with_items([1, 2], np.ones((1, 5)))
    with pytest.raises(LaresError, match="new item 7 occurs twice"):
        model.with_items([7, 7], np.ones((2, 5)))
    with pytest.raises(LaresError, match="new item '7' occurs twice"):
        model.with_items([7, "7"], np.ones((2, 5)))
    plain = Recommender(RecurrentBackbone(20, 6, released_backbone(hidden_size=8)), pa.array(range(20)), Reasoning(1))
    with pytest.raises(LaresError, match=r"this model reads none; train one with tedrec\.yaml"):
        plain.with_items([99], np.ones((1, 5)))


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A checkpoint of items a to j, and `items.parquet` with two more, of which one has no text."""
    rng = np.random.default_rng(0)
    lines = [" ".join([f"u{user}", *rng.choice(list("abcdefghij"), 6)]) for user in range(30)]
    (tmp_path / "x.txt").write_text("\n".join(lines) + "\n")
    vectors = [*rng.normal(size=(10, 4)), np.zeros(4)]
    vectors.insert(10, 3 * vectors[2])
    pd.DataFrame({"item_id": [*"abcdefghij", "cold", "mute"], "embedding": vectors}).to_parquet(tmp_path / "items.parquet")
    text = TextOptions(vectors="embedding")
    prepare(str(tmp_path / "x.txt"), str(tmp_path / "prepared"), item_text=str(tmp_path / "items.parquet"), text=text)
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(released_spt(TEDREC), SequenceDataModule(str(tmp_path / "prepared"), max_length=6, batch_size=16))
    fit.save_checkpoint(tmp_path / "best.ckpt")
    return tmp_path


def test_the_command_ranks_new_items(shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(shop)
    (shop / "new.csv").write_text("user_id,item_id\nann,a\nann,cold\n")
    command = ["recommend", "--ckpt_path", "best.ckpt", "--histories", "new.csv", "--k", "20"]
    monkeypatch.setattr("sys.argv", ["lares", *command, "--new_items", "items.parquet"])
    main()
    said = capsys.readouterr().out
    assert "1 new items are ranked from their text, beside 10 known ones" in said
    assert "were skipped" not in said
    (row,) = pq.read_table("recommendations.parquet").to_pylist()
    assert sorted(row["item_ids"]) == [*"abc", "cold", *"defghij"]
    scores = dict(zip(row["item_ids"], row["scores"], strict=True))
    assert scores["cold"] == pytest.approx(scores["c"], rel=1e-5)
    pq.write_table(pa.table({"item_id": ["x", "y"], "embedding": [[1.0], [1.0, 2.0]]}), "ragged.parquet")
    again = [*command, "--output", "again.csv", "--new_items"]
    assert "embedding must have a list of numbers for each item, all of one length" in error(shop, *again, "ragged.parquet")
    assert "expected Parquet with the columns item_id and embedding" in error(shop, *again, "new.csv")
    assert "expected Parquet with the columns item_id and embedding" in error(shop, *again, "none.parquet")
    pq.write_table(pa.table({"item_id": ["x"]}), "bare.parquet")
    assert "expected Parquet with the columns item_id and embedding" in error(shop, *again, "bare.parquet")
