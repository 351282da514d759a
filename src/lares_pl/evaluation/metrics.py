"""Ranking metrics as torchmetrics, from ranks: sums and counts, reduced once over processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lares_pl.losses.rewards import ndcg, recall, reciprocal_rank

_UNIT = 2**30


class _RankMetric(Metric):
    """Mean over instances of a function of the target's rank.

    Values are summed as integer multiples of 2^-30, so that the sum is exact and independent of batches and processes.
    """

    full_state_update = False
    higher_is_better = True
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def value(self, ranks: Tensor) -> Tensor:
        """Metric of each rank, `[B]` -> `[B]`."""
        raise NotImplementedError

    def update(self, ranks: Tensor) -> None:
        """Add ranks (1 is best), `[B]`."""
        self.total += (self.value(ranks) * _UNIT).round().long().sum()
        self.count += ranks.numel()

    def compute(self) -> Tensor:
        """Return the mean over all instances of all processes, float32; 0 if there are none."""
        mean = int(self.total) / _UNIT / max(int(self.count), 1)
        return torch.tensor(mean, dtype=torch.float32, device=self.total.device)


class Recall(_RankMetric):
    """Fraction of instances whose target is among the first k.

    Args:
        k: length of the list.
    """

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def value(self, ranks: Tensor) -> Tensor:
        return recall(ranks, self.k)


class NDCG(_RankMetric):
    """`1 / log2(1 + rank)` within the first k, else 0.

    Args:
        k: length of the list.
    """

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def value(self, ranks: Tensor) -> Tensor:
        return ndcg(ranks, self.k)


class MRR(_RankMetric):
    """`1 / rank`."""

    def value(self, ranks: Tensor) -> Tensor:
        return reciprocal_rank(ranks)


def ranking_metrics(prefix: str, cutoffs: Sequence[int]) -> MetricCollection:
    """Make the collection of Recall@K and NDCG@K for each cutoff, and MRR.

    Args:
        prefix: prefix of each name, such as `val/`.
        cutoffs: the values of K.
    """
    # compute groups would merge metrics whose states are equal by chance
    return MetricCollection(_all_metrics(cutoffs), prefix=prefix, compute_groups=False)  # type: ignore[arg-type]


def metric_names(cutoffs: Sequence[int]) -> tuple[str, ...]:
    """The names of `ranking_metrics`, in the order of tables."""
    return tuple(_all_metrics(cutoffs))


def _all_metrics(cutoffs: Sequence[int]) -> dict[str, Metric]:
    recalls: dict[str, Metric] = {f"recall@{k}": Recall(k) for k in cutoffs}
    ndcgs: dict[str, Metric] = {f"ndcg@{k}": NDCG(k) for k in cutoffs}
    return recalls | ndcgs | {"mrr": MRR()}
