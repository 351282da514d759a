"""A trained model at many depths for the price of the deepest: one rollout a batch, ranks after each of its steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lares_pl.evaluation.metrics import ranking_metrics
from lares_pl.model.recurrence import KeyedNoise

if TYPE_CHECKING:
    from lares_pl.data.loading.batches import Batch
    from lares_pl.stages.base import BaseStage


def ranks_by_depth(stage: BaseStage, batch: Batch, depths: Sequence[int]) -> Tensor:
    """Rank of each target at each depth, `[D, B]`, 1 is best; the noise is that of evaluation at any of them.

    Args:
        stage: the model, in evaluation mode.
        batch: B instances.
        depths: D depths, at least 1 each.
    """
    (states,) = stage.backbone.rollout(batch.histories, [max(depths)], KeyedNoise(batch.histories))
    excluded = stage.excluded(batch)
    return torch.stack([stage.backbone.target_rank(states[depth - 1], batch.targets, excluded) for depth in depths])


@torch.no_grad()
def metrics_by_depth(
    stage: BaseStage, batches: Iterable[Batch], depths: Sequence[int], cutoffs: Sequence[int]
) -> list[dict[str, float]]:
    """Recall, NDCG and MRR at each depth, over the batches of all processes.

    Args:
        stage: the model, in evaluation mode.
        batches: (this process's share of) evaluation batches.
        depths: the depths, at least 1 each.
        cutoffs: the values of K.

    Returns:
        A row a depth: `depth`, `recall@5`, `ndcg@5`, …, `mrr`.
    """
    metrics = [ranking_metrics("", cutoffs).to(stage.device) for _ in depths]
    for batch in batches:
        batch = batch.to(stage.device)
        for metric, ranks in zip(metrics, ranks_by_depth(stage, batch, depths), strict=True):
            metric.update(ranks[batch.valid])
    values = [{name: float(value) for name, value in metric.compute().items()} for metric in metrics]
    return [{"depth": float(depth), **row} for depth, row in zip(depths, values, strict=True)]
