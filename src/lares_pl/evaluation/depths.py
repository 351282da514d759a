"""Quality by depth at the cost of the deepest: one rollout per batch, ranks after each of its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from lares_pl.data.loading.batches import Batch
from lares_pl.data.loading.item_pairs import ItemPairs
from lares_pl.evaluation.metrics import ranking_metrics
from lares_pl.model.backbone import RecurrentBackbone
from lares_pl.model.recurrence import KeyedNoise


def ranks_by_depth(
    backbone: RecurrentBackbone, batch: Batch, depths: Sequence[int], excluded: ItemPairs | None = None
) -> Tensor:
    """Return the rank of each target at each depth, `[D, B]`, 1 is best; the noise is that of evaluation at any depth.

    Args:
        backbone: the model, in evaluation mode.
        batch: B instances.
        depths: D depths, at least 1 each.
        excluded: items that are not ranked.
    """
    (states,) = backbone.rollout(batch.histories, [max(depths)], KeyedNoise(batch.histories))
    head = backbone.head(batch.histories, read=batch.read)
    return torch.stack([head.rank(states[depth - 1], batch.targets, excluded) for depth in depths])


@torch.no_grad()
def metrics_by_depth(
    backbone: RecurrentBackbone,
    batches: Iterable[Batch],
    depths: Sequence[int],
    cutoffs: Sequence[int],
    excluded: Callable[[Batch], ItemPairs | None],
) -> list[dict[str, float]]:
    """Compute recall, NDCG and MRR at each depth, over the batches of all processes.

    Args:
        backbone: the model, in evaluation mode.
        batches: (this process's share of) evaluation batches.
        depths: the depths, at least 1 each.
        cutoffs: the values of K.
        excluded: returns the items of a batch that are not ranked.

    Returns:
        One row per depth: `depth`, `recall@5`, `ndcg@5`, …, `mrr`.
    """
    device = next(backbone.parameters()).device
    metrics = [ranking_metrics("", cutoffs).to(device) for _ in depths]
    for batch in batches:
        batch = batch.to(device)
        for metric, ranks in zip(metrics, ranks_by_depth(backbone, batch, depths, excluded(batch)), strict=True):
            metric.update(ranks[batch.valid])
    values = [{name: float(value) for name, value in metric.compute().items()} for metric in metrics]
    return [{"depth": float(depth), **row} for depth, row in zip(depths, values, strict=True)]
