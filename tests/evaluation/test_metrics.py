"""Metrics against naive computations, and both protocols against ranking twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lares_pl import LaresError, SequenceDataModule
from lares_pl.data.loading.batches import Batch
from lares_pl.data.loading.histories import Histories
from lares_pl.data.loading.item_pairs import ItemPairs
from lares_pl.evaluation.exposure import AveragePopularity, Coverage, Gini, Novelty
from lares_pl.evaluation.metrics import DEFAULT_METRICS, MAP, MRR, NDCG, Catalogue, Ranking, RankMetric, Recall
from lares_pl.evaluation.popularity import HitRateByPopularity
from lares_pl.evaluation.protocols import MetricSums
from lares_pl.model.catalogue_head import CatalogueHead
from lares_pl.model.similarity import DotSimilarity
from lares_pl.serialization import to_plain
from lares_pl.stages.loading import load_stage
from tests.docs.examples import script
from tests.training import data, released_spt, trainer

ITEMS, K = 9, 3
POPULARITY = torch.tensor([0, 5, 0, 1, 7, 7, 2, 0, 3, 1])
LISTED = (Coverage((K, 5)), Gini((K,)), AveragePopularity((K,)), Novelty((K,)))


@dataclass(frozen=True)
class First(RankMetric):
    """A metric of a user's own."""

    def functions(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        return {"first": lambda ranks: (ranks == 1).float()}


@st.composite
def rankings(draw: st.DrawFn) -> tuple[list[int], list[int], list[list[int]]]:
    users = draw(st.integers(1, 12))
    ranks = draw(st.lists(st.integers(1, ITEMS), min_size=users, max_size=users))
    targets = draw(st.lists(st.integers(1, ITEMS), min_size=users, max_size=users))
    return ranks, targets, [draw(st.permutations(range(1, ITEMS + 1)))[:5] for _ in range(users)]


@settings(max_examples=40, deadline=None)
@given(rankings(), st.integers(0, 12))
def test_metrics_against_a_naive_computation(given: tuple[list[int], list[int], list[list[int]]], cut: int) -> None:
    ranks, targets, lists = given
    sums = MetricSums(
        [Recall((1, 3)), NDCG((3,)), MAP((3,)), MRR(), First(), HitRateByPopularity(3, 0.4), *LISTED],
        Catalogue(ITEMS, POPULARITY),
        exclude_seen=False,
    )
    for part in (slice(0, cut), slice(cut, None)):
        own = Ranking(
            torch.tensor(ranks[part], dtype=torch.int64),
            torch.tensor(targets[part], dtype=torch.int64),
            torch.tensor(lists[part], dtype=torch.int64).reshape(-1, 5),
        )
        sums.update(own, own.ranks)
    found = {name: float(value) for name, value in sums.compute().items()}

    def share(hits: list[bool]) -> float:
        return sum(hits) / max(len(hits), 1)

    head = sorted(range(1, ITEMS + 1), key=lambda item: (-int(POPULARITY[item]), item))[: round(0.4 * ITEMS)]
    recommended = [item for items in lists for item in items[:K]]
    counts = sorted(recommended.count(item) for item in range(1, ITEMS + 1))
    differences = sum(abs(a - b) for a in counts for b in counts)
    probability = {item: (int(POPULARITY[item]) + 1) / (int(POPULARITY.sum()) + ITEMS) for item in recommended}
    expected = {
        "recall@1": share([rank == 1 for rank in ranks]),
        "recall@3": share([rank <= 3 for rank in ranks]),
        "ndcg@3": np.mean([1 / math.log2(1 + rank) if rank <= 3 else 0 for rank in ranks]),
        "map@3": np.mean([1 / rank if rank <= 3 else 0 for rank in ranks]),
        "mrr": np.mean([1 / rank for rank in ranks]),
        "first": share([rank == 1 for rank in ranks]),
        "recall@3-head": share([rank <= 3 for rank, target in zip(ranks, targets, strict=True) if target in head]),
        "recall@3-tail": share([rank <= 3 for rank, target in zip(ranks, targets, strict=True) if target not in head]),
        "coverage@3": len(set(recommended)) / ITEMS,
        "coverage@5": len({item for items in lists for item in items}) / ITEMS,
        "gini@3": differences / (2 * ITEMS * sum(counts)),
        "popularity@3": np.mean([int(POPULARITY[item]) for item in recommended]),
        "novelty@3": np.mean([-math.log2(probability[item]) for item in recommended]),
    }
    assert {name: value for name, value in found.items() if "/" not in name} == pytest.approx(expected, rel=1e-6)
    assert {name for name in found if "/" in name} == {f"unseen/{name}" for name in list(expected)[:8]}


def test_metrics_of_no_instance_are_zero() -> None:
    sums = MetricSums([*DEFAULT_METRICS, *LISTED], Catalogue(ITEMS, POPULARITY), exclude_seen=True)
    assert {float(value) for value in sums.compute().values()} == {0.0}


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_both_protocols_are_what_ranking_twice_gives(exclude_seen: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    states, vectors = torch.randn(7, 4, generator=generator), torch.randn(ITEMS + 1, 4, generator=generator)
    targets = torch.tensor([1, 2, 3, 4, 5, 6, 7])
    pairs = ItemPairs(torch.tensor([0, 0, 0, 2, 2, 5, 6]), torch.tensor([4, 4, 5, 3, 9, 1, 8]))  # twice, and a target
    head = CatalogueHead(vectors, DotSimilarity())
    batch = Batch(
        Histories.from_lists([[1]] * 7), targets, torch.arange(7), torch.tensor([True] * 6 + [False]),
        seen_rows=pairs.rows, seen_items=pairs.items,
    )  # fmt: skip
    sums = MetricSums([Recall((3,)), MRR(), Coverage((8,))], Catalogue(ITEMS, torch.empty(0)), exclude_seen)
    sums.rank(head, states, batch)
    found = {name: float(value) for name, value in sums.compute().items()}
    plain, unseen = head.rank(states, targets)[:6], head.rank(states, targets, pairs)[:6]
    assert (plain != unseen).any()
    own, other, prefix = (unseen, plain, "all/") if exclude_seen else (plain, unseen, "unseen/")
    assert found["mrr"] == pytest.approx(float((1 / own.double()).mean()), rel=1e-6)
    assert found[f"{prefix}mrr"] == pytest.approx(float((1 / other.double()).mean()), rel=1e-6)
    assert found[f"{prefix}recall@3"] == pytest.approx(float((other <= 3).double().mean()), rel=1e-6)
    lists = head.top_k(states, 8, pairs if exclude_seen else None)[1][:6]
    assert found["coverage@8"] == pytest.approx(len(lists.unique()) / ITEMS)


def test_a_stage_reports_both_protocols_and_the_metrics_of_its_choice(toy_dataset: Path, tmp_path: Path) -> None:
    chosen = [Recall((10,)), NDCG((10,)), Coverage(), Novelty((5,)), HitRateByPopularity()]
    reported = {}
    for exclude_seen in (False, True):
        torch.manual_seed(0)
        stage = released_spt(exclude_seen=exclude_seen, metrics=chosen)
        fit = trainer(tmp_path, max_epochs=1)
        fit.fit(stage, data(toy_dataset))
        reported[exclude_seen] = {name: float(value) for name, value in fit.callback_metrics.items() if name.startswith("val/")}
        path = tmp_path / f"{exclude_seen}.ckpt"
        fit.save_checkpoint(path)
        assert to_plain(load_stage(path).metrics) == to_plain(chosen)
    ranks = ("recall@10", "ndcg@10", "recall@10-head", "recall@10-tail")
    assert set(reported[False]) == {
        *(f"val/{prefix}{name}" for name in ranks for prefix in ("", "unseen/")),
        *("val/coverage@10", "val/novelty@5"),
    }
    for name in ranks:
        assert reported[False][f"val/{name}"] == reported[True][f"val/all/{name}"]
        assert reported[True][f"val/{name}"] == reported[False][f"val/unseen/{name}"]
    assert reported[False]["val/unseen/ndcg@10"] > reported[False]["val/ndcg@10"]


def test_names_that_clash_and_bad_cutoffs_are_refused() -> None:
    with pytest.raises(LaresError, match="two metrics are called recall@10"):
        MetricSums([Recall(), Recall((10,))], Catalogue(ITEMS, POPULARITY), False)
    with pytest.raises(LaresError, match=r"Coverage: cutoffs must be different numbers from 1 on, got \[0\]"):
        Coverage((0,))


def test_popularity_counts_training_interactions_alone(toy_dataset: Path) -> None:
    sequences = SequenceDataModule(str(toy_dataset)).sequences
    counts = np.zeros(sequences.catalogue_size + 1, dtype=int)
    for start, end in zip(sequences.offsets, sequences.offsets[1:], strict=False):
        items = sequences.items[start:end]
        np.add.at(counts, items if len(items) < 3 else items[:-2], 1)
    assert sequences.training_popularity.tolist() == counts.tolist()


def test_the_metric_of_the_documentation_is_named_by_its_class_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_metric.py").write_text(script("docs/extending.md", "my_metric.py"))
    monkeypatch.syspath_prepend(tmp_path)
    stage = released_spt(metrics=[{"class_path": "my_metric.HitAtOne"}, {"class_path": "lares_pl.Gini"}])
    assert [type(metric).__name__ for metric in stage.metrics] == ["HitAtOne", "Gini"]
    sums = MetricSums(stage.metrics, Catalogue(3, torch.empty(0)), False)
    sums.update(Ranking(torch.tensor([1, 3]), torch.tensor([1, 1]), torch.tensor([[1, 2], [1, 3]])), torch.tensor([1, 2]))
    found = {name: float(value) for name, value in sums.compute().items()}
    assert found == pytest.approx({"hit@1": 0.5, "gini@10": 1 / 6, "unseen/hit@1": 0.5})
