"""A stage that starts from a checkpoint of an older catalogue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from lares_pl import LaresError, Recommender, load_stage, prepare
from lares_pl.model import tiles
from lares_pl.stages.growth import grown_table, match_catalogues, nearest_by_text
from tests.training import data, released_spt, trainer


def test_rows_are_matched_by_id_and_new_ones_are_the_mean() -> None:
    table = torch.tensor([[9.0, 9.0], [1.0, 2.0], [3.0, 4.0], [5.0, 9.0]])
    change = match_catalogues(pa.array([10, 20, 30]), pa.array(["30", "77", "10.0", "78"]))
    assert (change.matched, change.new, change.gone) == (2, 2, 1)
    assert grown_table(table, change).tolist() == [[9, 9], [5, 9], [3, 5], [1, 2], [3, 5]]
    assert table[1].tolist() == [1, 2]


def test_the_nearest_by_text_against_a_naive_search() -> None:
    generator = torch.Generator().manual_seed(0)
    known, asked = torch.randn(30, 3, generator=generator), torch.randn(20, 3, generator=generator)
    known[[0, 4, 7]] = 0
    asked[3] = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "CHUNK", 64)  # several chunks
        found = nearest_by_text(known.half(), asked.half()).tolist()
    for row, item in enumerate(found):
        cosines = {i: float(torch.cosine_similarity(known[i], asked[row], dim=0)) for i in range(30) if known[i].any()}
        assert item == (0 if row == 3 else max(cosines, key=lambda i: cosines[i]))
    assert nearest_by_text(torch.zeros(3, 2), torch.ones(1, 2)).tolist() == [0]


def test_new_items_with_text_start_from_the_nearest_by_it() -> None:
    table = torch.tensor([[9.0], [1.0], [2.0], [6.0]])
    known = torch.tensor([[0.0, 0], [1, 0], [0, 1], [0, 0]])
    change = match_catalogues(pa.array(["a", "b", "c"]), pa.array(["b", "new", "dark"]))
    change = change.with_text(known, torch.tensor([[0.0, 0], [1, 0], [3, 1], [0, 0]]))  # b has another text now: it stays b
    assert grown_table(table, change).tolist() == [[9], [2], [1], [3]]
    assert str(change) == (
        "1 items matched by id, 2 new (1 start from the item nearest by text, 1 from the mean of the item embeddings), 2 gone"
    )


def write(folder: Path, name: str, low: int, high: int, prefix: str = "i") -> Path:
    generator = np.random.default_rng(low)
    rows = [(f"u{u}", f"{prefix}{i}") for u in range(30) for i in generator.integers(low, high, 8)]
    pd.DataFrame(rows, columns=["user_id", "item_id"]).to_csv(folder / f"{name}.csv", index=False)
    prepare(str(folder / f"{name}.csv"), str(folder / name))
    return folder / name


def test_training_continues_on_a_newer_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("lares_pl.stages.network.rank_zero_info", said.append)
    old, new, other = write(tmp_path, "old", 0, 20), write(tmp_path, "new", 5, 30), write(tmp_path, "other", 0, 9, "x")
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(released_spt(), data(old))
    fit.save_checkpoint(tmp_path / "old.ckpt")
    first = load_stage(tmp_path / "old.ckpt")

    stage = released_spt(init_from=str(tmp_path / "old.ckpt"))
    again = trainer(tmp_path, max_epochs=1)
    stage.take_catalogue(data(new))
    stage.configure_model()
    assert [line.partition(": ")[2] for line in said] == [
        "15 items matched by id, 10 new (they start from the mean of the item embeddings), 5 gone"
    ]
    ids = {name: [None, *module.sequences.item_ids.to_pylist()] for name, module in (("old", data(old)), ("new", data(new)))}
    before, after = first.backbone.item_vectors.detach(), stage.backbone.item_vectors.detach()
    for number, item in enumerate(ids["new"][1:], start=1):
        expected = before[ids["old"].index(item)] if item in ids["old"] else before[1:].mean(dim=0)
        assert torch.equal(after[number], expected)
    others = {name: value for name, value in first.backbone.state_dict().items() if name != "embedding.item.weight"}
    assert all(torch.equal(stage.backbone.state_dict()[name], value) for name, value in others.items())

    again.fit(stage, data(new))
    again.save_checkpoint(tmp_path / "new.ckpt")
    lists = Recommender.from_checkpoint(tmp_path / "new.ckpt").recommend([["i29", "i6"]], k=25)
    assert sorted(lists.item_ids[0]) == sorted(ids["new"][1:])
    strange = released_spt(init_from=str(tmp_path / "old.ckpt"))
    strange.take_catalogue(data(other))
    with pytest.raises(LaresError, match="another catalogue"):
        strange.configure_model()
