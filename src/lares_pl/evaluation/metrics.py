"""Metrics as choices: integers that are summed over instances, batches and processes, and what follows from the sums."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor

from lares_pl.checks import whole
from lares_pl.errors import LaresError
from lares_pl.losses.rewards import ndcg, recall, reciprocal_rank

CUTOFFS = (5, 10, 20, 50)
_UNIT = 2**30


class Ranking(NamedTuple):
    """What evaluation found for B instances.

    Args:
        ranks: of the targets, 1 is best, `[B]`.
        targets: `[B]`.
        lists: the best items of each instance, best first; 0 where no item is left. `[B, k]`, k = 0 if no metric reads them.
    """

    ranks: Tensor
    targets: Tensor
    lists: Tensor


@dataclass(frozen=True)
class Catalogue:
    """What metrics know about the items.

    Args:
        items: their number N.
        popularity: number of training interactions of each, `[N + 1]` int64; empty if no metric reads it.
        text: `SequenceDataset.text_directions`, `[N + 1, p]` int16; None if no metric reads it.
    """

    items: int
    popularity: Tensor
    text: Tensor | None = None

    @cached_property
    def by_popularity(self) -> Tensor:
        """Items from the most to the least popular, of equally popular ones the lower index first, `[N]`."""
        return self.popularity[1:].argsort(descending=True, stable=True) + 1

    def to(self, device: torch.device) -> Catalogue:
        """The same on another device; itself if it is there."""
        if self.popularity.device == device:
            return self
        return Catalogue(self.items, self.popularity.to(device), None if self.text is None else self.text.to(device))


class RankingMetric(ABC):
    """A metric of validation and test. Your own derives from it, or from `RankMetric` if it is a mean over targets.

    It keeps integers, so that its value does not depend on batches and processes.
    """

    #: whether it reads the popularity of items, and their text
    reads_popularity = False
    reads_text = False

    @property
    def list_length(self) -> int:
        """Length of the lists that it reads; 0: the ranks of the targets are enough."""
        return 0

    @abstractmethod
    def size(self, catalogue: Catalogue) -> int:
        """How many integers it keeps."""

    @abstractmethod
    def count(self, ranking: Ranking, catalogue: Catalogue) -> Tensor:
        """What some instances add to the integers, `[size]` int64."""

    @abstractmethod
    def results(self, totals: Tensor, catalogue: Catalogue) -> dict[str, float]:
        """Values by name.

        Args:
            totals: the integers, summed over all instances of all processes, `[size]`; zeros if there are none.
            catalogue: the items.
        """


class RankMetric(RankingMetric):
    """The mean over targets of a function of their rank, or of several functions.

    Values are summed as multiples of 2^-30, so that the sum is exact.
    """

    @abstractmethod
    def functions(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """Each function by its name in reports: ranks (1 is best) to values, of the same shape."""

    def size(self, catalogue: Catalogue) -> int:
        return len(self.functions()) + 1

    def count(self, ranking: Ranking, catalogue: Catalogue) -> Tensor:
        sums = [(of_ranks(ranking.ranks) * _UNIT).round().long().sum() for of_ranks in self.functions().values()]
        return torch.stack([*sums, sums[0].new_tensor(len(ranking.ranks))])

    def results(self, totals: Tensor, catalogue: Catalogue) -> dict[str, float]:
        *sums, number = totals.tolist()
        return {name: total / _UNIT / max(number, 1) for name, total in zip(self.functions(), sums, strict=True)}


def check_cutoffs(metric: RankingMetric, cutoffs: Sequence[int]) -> None:
    """Check that lists are not empty and no cut-off occurs twice."""
    wanted = "different numbers from 1 on"
    name = f"{type(metric).__name__}: cutoffs"
    if not isinstance(cutoffs, Sequence) or not cutoffs:
        raise LaresError(f"{name} must be a list of {wanted}, got {cutoffs!r}")
    if min(whole(name, k, wanted) for k in cutoffs) < 1 or len(set(cutoffs)) < len(cutoffs):
        raise LaresError(f"{name} must be {wanted}, got {list(cutoffs)}")


@dataclass(frozen=True)
class CutoffMetric(RankMetric):
    """The mean over targets of a function of their rank and of the length k of the list, for several k.

    Args:
        cutoffs: the values of k.
    """

    cutoffs: Sequence[int] = CUTOFFS

    def __post_init__(self) -> None:
        check_cutoffs(self, self.cutoffs)

    @property
    @abstractmethod
    def label(self) -> str:
        """Its name in reports, without k."""

    @abstractmethod
    def value(self, ranks: Tensor, k: int) -> Tensor:
        """The function: ranks (1 is best) to values, of the same shape."""

    def functions(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        return {f"{self.label}@{k}": partial(self.value, k=k) for k in self.cutoffs}


@dataclass(frozen=True)
class Recall(CutoffMetric):
    """Share of targets among the first k.

    Args:
        cutoffs: the values of k.
    """

    label = "recall"

    def value(self, ranks: Tensor, k: int) -> Tensor:
        return recall(ranks, k)


@dataclass(frozen=True)
class NDCG(CutoffMetric):
    """`1 / log2(1 + rank)` of targets among the first k, 0 of others.

    Args:
        cutoffs: the values of k.
    """

    label = "ndcg"

    def value(self, ranks: Tensor, k: int) -> Tensor:
        return ndcg(ranks, k)


@dataclass(frozen=True)
class MAP(CutoffMetric):
    """Mean average precision: with one target, `1 / rank` if it is among the first k, else 0 (others call this MRR@k).

    Args:
        cutoffs: the values of k.
    """

    cutoffs: Sequence[int] = (10,)
    label = "map"

    def value(self, ranks: Tensor, k: int) -> Tensor:
        return torch.where(ranks <= k, reciprocal_rank(ranks), 0.0)


@dataclass(frozen=True)
class MRR(RankMetric):
    """`1 / rank` over the whole catalogue."""

    def functions(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        return {"mrr": reciprocal_rank}


def functions_of(metrics: Sequence[RankMetric]) -> dict[str, Callable[[Tensor], Tensor]]:
    """The functions of all metrics, in the order of tables."""
    return {name: of_ranks for metric in metrics for name, of_ranks in metric.functions().items()}


#: what stages report unless told otherwise
DEFAULT_METRICS: tuple[RankMetric, ...] = (Recall(), NDCG(), MRR())
