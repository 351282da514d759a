"""Hit rate by popularity of the target."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lares_pl.checks import check_fields
from lares_pl.errors import LaresError
from lares_pl.evaluation.metrics import Catalogue, Ranking, RankingMetric
from lares_pl.losses.rewards import recall


@dataclass(frozen=True)
class HitRateByPopularity(RankingMetric):
    """Recall@k of popular targets (`recall@k-head`) and of all others (`recall@k-tail`); 0 where a group has no target.

    Args:
        k: length of the list, at least 1.
        head: share of the catalogue that counts as popular, within (0, 1): the items with the most training interactions; of
            equally popular ones those with the lower index.
    """

    reads_popularity = True

    k: int = 10
    head: float = 0.2

    def __post_init__(self) -> None:
        check_fields(self)
        if self.k < 1 or not 0 < self.head < 1:
            raise LaresError(f"HitRateByPopularity: k must be at least 1 and head within (0, 1), got {self.k} and {self.head}")

    def size(self, catalogue: Catalogue) -> int:
        return 4

    def count(self, ranking: Ranking, catalogue: Catalogue) -> Tensor:
        popular = self._popular(catalogue)[ranking.targets]
        hit = recall(ranking.ranks, self.k).bool()
        return torch.stack([(hit & popular).sum(), popular.sum(), (hit & ~popular).sum(), (~popular).sum()])

    def results(self, totals: Tensor, catalogue: Catalogue) -> dict[str, float]:
        head_hits, head, tail_hits, tail = totals.tolist()
        return {f"recall@{self.k}-head": head_hits / max(head, 1), f"recall@{self.k}-tail": tail_hits / max(tail, 1)}

    def _popular(self, catalogue: Catalogue) -> Tensor:
        """Which items are popular, `[N + 1]`."""
        popular = torch.zeros_like(catalogue.popularity, dtype=torch.bool)
        popular[catalogue.by_popularity[: max(1, round(self.head * catalogue.items))]] = True
        return popular
