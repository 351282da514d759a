"""Metrics against RePlay's, from the ranked lists of random states: `pip install lares-pl[metrics]`, otherwise skipped."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lares_pl.data.loading.batches import Batch
from lares_pl.data.loading.histories import Histories
from lares_pl.data.loading.item_pairs import ItemPairs
from lares_pl.evaluation.exposure import Coverage
from lares_pl.evaluation.metrics import MAP, MRR, NDCG, Catalogue, Recall
from lares_pl.evaluation.popularity import HitRateByPopularity
from lares_pl.evaluation.protocols import MetricSums
from lares_pl.model.catalogue_head import CatalogueHead
from lares_pl.model.similarity import DotSimilarity

USERS, ITEMS, K = 53, 120, [1, 3, 10]


@pytest.fixture(scope="module")
def replay() -> Any:
    return pytest.importorskip("replay.metrics", reason="RePlay is not installed: pip install lares-pl[metrics]")


@pytest.mark.parametrize("exclude_seen", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_those_of_replay(replay: Any, seed: int, exclude_seen: bool) -> None:
    torch.manual_seed(seed)
    vectors = torch.randn(ITEMS + 1, 8)
    targets = torch.randint(1, ITEMS + 1, (USERS,))
    states = torch.randn(USERS, 8) + 0.5 * vectors[targets]
    seen = torch.rand(USERS, ITEMS + 1) < 0.3
    seen[:, 0] = False
    seen[torch.arange(USERS), targets] = False
    popularity = torch.randint(0, 20, (ITEMS + 1,))
    pairs = ItemPairs(*seen.nonzero(as_tuple=True))
    head = CatalogueHead(vectors, DotSimilarity())
    batch = Batch(
        Histories.from_lists([[1]] * USERS), targets, torch.arange(USERS), torch.ones(USERS, dtype=torch.bool),
        seen_rows=pairs.rows, seen_items=pairs.items,
    )  # fmt: skip
    catalogue = Catalogue(ITEMS, popularity)
    sums = MetricSums([Recall(K), NDCG(K), MAP(K), MRR(), HitRateByPopularity(10), Coverage(K)], catalogue, exclude_seen)
    sums.rank(head, states, batch)
    found = {name: float(value) for name, value in sums.compute().items()}

    head_items = set(catalogue.by_popularity[: ITEMS // 5].tolist())
    for prefix, excluded in (("", exclude_seen), ("all/" if exclude_seen else "unseen/", not exclude_seen)):
        scores, items = head.top_k(states, ITEMS, pairs if excluded else None)
        lists = {
            user: [(item, score) for item, score in zip(*row, strict=True) if score > -torch.inf]
            for user, row in enumerate(zip(items.tolist(), scores.tolist(), strict=True))
        }
        truth = {user: [target] for user, target in enumerate(targets.tolist())}
        for ours, theirs in (("recall", "Recall"), ("recall", "HitRate"), ("ndcg", "NDCG"), ("map", "MAP"), ("map", "MRR")):
            values = getattr(replay, theirs)(K)(lists, truth)
            expected = {f"{ours}@{k}": values[f"{theirs}@{k}"] for k in K}
            assert {name: found[prefix + name] for name in expected} == pytest.approx(expected, rel=1e-5), theirs
        assert found[f"{prefix}mrr"] == pytest.approx(replay.MRR(ITEMS)(lists, truth)[f"MRR@{ITEMS}"], rel=1e-5)
        for group, popular in (("head", True), ("tail", False)):
            users = [user for user, (target,) in truth.items() if (target in head_items) == popular]
            hits = replay.HitRate(10)({user: lists[user] for user in users}, {user: truth[user] for user in users})
            assert found[f"{prefix}recall@10-{group}"] == pytest.approx(hits["HitRate@10"], rel=1e-5)
        if not prefix:
            everything = {0: list(range(1, ITEMS + 1))}
            values = replay.Coverage(K)(lists, everything)
            assert {k: found[f"coverage@{k}"] for k in K} == pytest.approx({k: values[f"Coverage@{k}"] for k in K}, rel=1e-5)
