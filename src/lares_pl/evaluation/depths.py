"""Quality by depth at the cost of the deepest: one rollout per batch, metrics after each of its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from lares_pl.data.loading.batches import Batch
from lares_pl.evaluation.protocols import MetricSums
from lares_pl.model.backbone import RecurrentBackbone
from lares_pl.model.reasoning import mean_up_to_each
from lares_pl.model.recurrence import KeyedNoise


@torch.no_grad()
def metrics_by_depth(
    backbone: RecurrentBackbone,
    batches: Iterable[Batch],
    depths: Sequence[int],
    make_metrics: Callable[[], MetricSums],
    average_steps: bool = False,
) -> list[dict[str, float]]:
    """Compute metrics at each depth, over the batches of all processes; the noise is that of evaluation at any depth.

    Args:
        backbone: the model, in evaluation mode.
        batches: (this process's share of) evaluation batches.
        depths: the depths, at least 1 each.
        make_metrics: makes the metrics of one depth.
        average_steps: rank by the mean score of all steps up to each depth.

    Returns:
        One row per depth: `depth`, `recall@5`, …, and the values under the other protocol.
    """
    device = next(backbone.parameters()).device
    metrics = [make_metrics().to(device) for _ in depths]
    for batch in batches:
        batch = batch.to(device)
        (states,) = backbone.rollout(batch.histories, [max(depths)], KeyedNoise(batch.histories))
        if average_steps:
            states = mean_up_to_each(backbone.config.similarity, states)
        head = backbone.head(batch.histories, read=batch.read)
        for of_depth, depth in zip(metrics, depths, strict=True):
            of_depth.rank(head, states[depth - 1], batch)
    values = [{name: float(value) for name, value in of_depth.compute().items()} for of_depth in metrics]
    return [{"depth": float(depth), **row} for depth, row in zip(depths, values, strict=True)]
