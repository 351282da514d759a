"""Both protocols of full ranking from one pass: items seen before ranked with all others, or left out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from lares_pl.data.loading.batches import Batch
from lares_pl.data.loading.item_pairs import ItemPairs
from lares_pl.errors import LaresError
from lares_pl.evaluation.metrics import Catalogue, Ranking, RankingMetric
from lares_pl.model.catalogue_head import CatalogueHead


def seen_items(batch: Batch) -> ItemPairs:
    """The items that each user of an evaluation batch has seen before the target."""
    assert batch.seen_rows is not None
    assert batch.seen_items is not None
    return ItemPairs(batch.seen_rows, batch.seen_items)


def other_protocol(exclude_seen: bool) -> str:
    """Prefix of the metrics under the protocol that was not chosen: `unseen/` (seen items left out) or `all/` (ranked)."""
    return "all/" if exclude_seen else "unseen/"


def own_and_other(ranks: tuple[Tensor, Tensor], exclude_seen: bool) -> tuple[Tensor, Tensor]:
    """Ranks among all items and among unseen ones, that of the chosen protocol first."""
    everything, unseen = ranks
    return (unseen, everything) if exclude_seen else (everything, unseen)


class MetricSums(Metric):
    """Sums of metrics over instances: under the chosen protocol and, for metrics that need no lists, under the other one.

    Args:
        metrics: the metrics.
        catalogue: the items.
        exclude_seen: whether the chosen protocol leaves items seen before out of rankings.

    Raises:
        LaresError: if two values have the same name.
    """

    full_state_update = False

    def __init__(self, metrics: Sequence[RankingMetric], catalogue: Catalogue, exclude_seen: bool) -> None:
        super().__init__()
        self.catalogue = catalogue
        self.exclude_seen = exclude_seen
        #: length of the lists that are made
        self.list_length = min(catalogue.items, max((metric.list_length for metric in metrics), default=0))
        of_ranks = [metric for metric in metrics if metric.list_length == 0]
        self._kept = [("", metric) for metric in metrics] + [(other_protocol(exclude_seen), metric) for metric in of_ranks]
        #: of the values, in the order of tables
        self.names: list[str] = []
        for number, (prefix, metric) in enumerate(self._kept):
            zeros = torch.zeros(metric.size(catalogue), dtype=torch.int64)
            for name in metric.results(zeros, catalogue):
                if prefix + name in self.names:
                    raise LaresError(f"model.metrics: two metrics are called {name}; leave one of them out")
                self.names.append(prefix + name)
            self.add_state(f"totals_{number}", zeros, dist_reduce_fx="sum")

    def update(self, own: Ranking, other: Tensor) -> None:
        """Add B instances.

        Args:
            own: under the chosen protocol.
            other: ranks under the other one, `[B]`.
        """
        self.catalogue = self.catalogue.to(other.device)
        for number, (prefix, metric) in enumerate(self._kept):
            totals: Tensor = getattr(self, f"totals_{number}")
            totals += metric.count(own._replace(ranks=other) if prefix else own, self.catalogue)

    def compute(self) -> dict[str, Tensor]:
        """Values by name, float32, over all instances of all processes."""
        values: dict[str, Tensor] = {}
        for number, (prefix, metric) in enumerate(self._kept):
            totals: Tensor = getattr(self, f"totals_{number}")
            for name, value in metric.results(totals, self.catalogue).items():
                values[prefix + name] = torch.tensor(value, dtype=torch.float32, device=totals.device)
        return values

    def rank(self, head: CatalogueHead, states: Tensor, batch: Batch) -> None:
        """Rank the targets of a batch, and add them.

        Args:
            head: scores of the batch's rows.
            states: user states, `[B, d]`.
            batch: B instances with the items seen before.
        """
        seen, valid = seen_items(batch), batch.valid
        ranks, other = own_and_other(head.rank_both(states, batch.targets, seen), self.exclude_seen)
        lists = batch.targets.new_empty(len(batch), 0)
        if self.list_length:
            scores, lists = head.top_k(states, self.list_length, seen if self.exclude_seen else None)
            lists = lists.masked_fill(scores == -torch.inf, 0)
        self.update(Ranking(ranks[valid], batch.targets[valid], lists[valid]), other[valid])
