"""Metrics of what is recommended, whether or not it is what users chose: how often each item is among the first k."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lares_pl.evaluation.metrics import Catalogue, Ranking, RankingMetric, check_cutoffs


@dataclass(frozen=True)
class ExposureMetric(RankingMetric):
    """A function of how often each item is among the first k of a list, over all users.

    It keeps a counter for each item and k.

    Args:
        cutoffs: the values of k.
    """

    cutoffs: Sequence[int] = (10,)

    def __post_init__(self) -> None:
        check_cutoffs(self, self.cutoffs)

    @property
    @abstractmethod
    def label(self) -> str:
        """Its name in reports, without k."""

    @abstractmethod
    def value(self, exposure: Tensor, popularity: Tensor) -> float:
        """The metric.

        Args:
            exposure: how often each item is listed, `[N]` float64, not all 0.
            popularity: number of training interactions of each item, `[N]` float64; empty unless `reads_popularity`.
        """

    @property
    def list_length(self) -> int:
        return max(self.cutoffs)

    def size(self, catalogue: Catalogue) -> int:
        return len(self.cutoffs) * (catalogue.items + 1)

    def count(self, ranking: Ranking, catalogue: Catalogue) -> Tensor:
        listed = [ranking.lists[:, :k].flatten() for k in self.cutoffs]
        return torch.cat([torch.bincount(items, minlength=catalogue.items + 1) for items in listed])

    def results(self, totals: Tensor, catalogue: Catalogue) -> dict[str, float]:
        # column 0 counts the missing items of lists that are too short
        listed = totals.view(len(self.cutoffs), -1)[:, 1:].cpu().double()
        popularity = catalogue.popularity[1:].cpu().double()
        pairs = zip(self.cutoffs, listed, strict=True)
        return {f"{self.label}@{k}": self.value(of_k, popularity) if bool(of_k.any()) else 0.0 for k, of_k in pairs}


@dataclass(frozen=True)
class Coverage(ExposureMetric):
    """Share of the catalogue that is recommended to anybody.

    Args:
        cutoffs: the values of k.
    """

    label = "coverage"

    def value(self, exposure: Tensor, popularity: Tensor) -> float:
        return float((exposure > 0).double().mean())


@dataclass(frozen=True)
class Gini(ExposureMetric):
    """Gini coefficient of how often each item of the catalogue is recommended: 0 if all equally often, near 1 if one takes all.

    Args:
        cutoffs: the values of k.
    """

    label = "gini"

    def value(self, exposure: Tensor, popularity: Tensor) -> float:
        items = len(exposure)
        weights = 2 * torch.arange(1, items + 1, dtype=torch.float64) - items - 1
        return float((weights * exposure.sort().values).sum() / (items * exposure.sum()))


@dataclass(frozen=True)
class AveragePopularity(ExposureMetric):
    """Mean number of training interactions of recommended items.

    Args:
        cutoffs: the values of k.
    """

    label = "popularity"
    reads_popularity = True

    def value(self, exposure: Tensor, popularity: Tensor) -> float:
        return float((exposure * popularity).sum() / exposure.sum())


@dataclass(frozen=True)
class Novelty(ExposureMetric):
    """Mean self-information of recommended items in bits: `-log2 p(item)`, p its share of training interactions.

    One interaction is added to each item, so that an item without any has a finite value.

    Args:
        cutoffs: the values of k.
    """

    label = "novelty"
    reads_popularity = True

    def value(self, exposure: Tensor, popularity: Tensor) -> float:
        share = (popularity + 1) / (popularity.sum() + len(popularity))
        return float(-(exposure * share.log2()).sum() / exposure.sum())
