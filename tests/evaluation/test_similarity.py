"""Intra-list similarity against a loop over pairs."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lares_pl import IntraListSimilarity, LaresError, Recall, SequenceDataset, prepare
from lares_pl.evaluation.metrics import Catalogue, Ranking
from lares_pl.evaluation.protocols import MetricSums
from tests.training import data, released_spt, trainer

ITEMS = 9


def dataset(folder: Path, vectors: np.ndarray) -> SequenceDataset:
    """Items 0 to 8 of 20 users, with these text vectors."""
    generator = np.random.default_rng(0)
    lines = [f"u{user} " + " ".join(map(str, generator.permutation(ITEMS)[:6])) for user in range(20)]
    (folder / "x.txt").write_text("\n".join(lines) + "\n")
    np.save(folder / "v.npy", vectors)
    prepare(str(folder / "x.txt"), str(folder / "text"), item_text=str(folder / "v.npy"))
    return SequenceDataset.load(folder / "text")


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> SequenceDataset:
    vectors = np.random.default_rng(1).normal(size=(ITEMS, 7)).astype(np.float32)
    vectors[[2, 5]] = 0
    return dataset(tmp_path_factory.mktemp("text"), 100 * vectors)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.permutations([*range(1, ITEMS + 1), 0, 0]), max_size=8), st.integers(0, 8))
def test_similarity_against_a_loop_over_pairs(sequences: SequenceDataset, rows: list[list[int]], cut: int) -> None:
    vectors, directions = sequences.text_vectors(), sequences.text_directions
    assert vectors is not None
    assert directions is not None
    lists = torch.tensor([row[:5] for row in rows], dtype=torch.int64).reshape(-1, 5)
    metric, catalogue = IntraListSimilarity((2, 5)), Catalogue(ITEMS, torch.empty(0), torch.from_numpy(directions))

    def count(lists: torch.Tensor) -> torch.Tensor:
        any_item = torch.ones(len(lists), dtype=torch.int64)
        return metric.count(Ranking(any_item, any_item, lists), catalogue)

    totals = count(lists)
    assert torch.equal(totals, count(lists[:cut]) + count(lists[cut:]))  # exactly, however instances are divided
    found = metric.results(totals, catalogue)
    for k in (2, 5):
        of_k = [[vectors[item].astype(float) for item in row[:k] if vectors[item].any()] for row in rows]
        cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for row in of_k for a, b in combinations(row, 2)]
        assert found[f"similarity@{k}"] == pytest.approx(np.mean(cosines) if cosines else 0, abs=1e-4)


def test_a_model_without_text_reports_it(sequences: SequenceDataset, tmp_path: Path) -> None:
    stage = released_spt(metrics=[Recall((5,)), IntraListSimilarity((3,))])
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(stage, data(Path(sequences.path)))
    (tested,) = fit.test(stage, data(Path(sequences.path)), verbose=False)
    assert set(tested) == {"test/recall@5", "test/unseen/recall@5", "test/similarity@3"}
    assert -1 < tested["test/similarity@3"] < 1


def test_lists_of_one_direction_are_wholly_similar(tmp_path: Path) -> None:
    directions = dataset(tmp_path, np.arange(1, ITEMS + 1, dtype=np.float32)[:, None]).text_directions
    assert directions is not None
    sums = MetricSums([IntraListSimilarity((4,))], Catalogue(ITEMS, torch.empty(0), torch.from_numpy(directions)), False)
    one = torch.tensor([1])
    sums.update(Ranking(one, one, torch.tensor([[3, 1, 7, 2]])), one)
    assert {name: float(value) for name, value in sums.compute().items()} == {"similarity@4": 1.0}


def test_a_dataset_without_text_is_refused(toy_dataset: Path) -> None:
    stage = released_spt(metrics=[IntraListSimilarity()])
    with pytest.raises(LaresError, match=r"IntraListSimilarity reads item text, and .* has none; prepare it with --item_text"):
        stage.make_sums(SequenceDataset.load(toy_dataset))
