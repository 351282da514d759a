"""Between the stages: keep what the SPT model can nearly do (METHOD "Between the stages: pruning")."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lares_pl.data.batches import Batch
from lares_pl.errors import LaresError
from lares_pl.model.backbone import RecurrentBackbone
from lares_pl.model.recurrence import KeyedNoise


@dataclass(frozen=True)
class Pruning:
    """Which training instances to keep.

    Args:
        passes: number of stochastic passes over all instances.
        top: keep an instance if its target is among the first `top` in any pass.
    """

    passes: int = 3
    top: int = 100

    def __post_init__(self) -> None:
        if self.passes < 1 or self.top < 1:
            raise LaresError("passes and top must be at least 1")


@torch.no_grad()
def kept_instances(
    backbone: RecurrentBackbone, batches: Iterable[Batch], instances: int, depth: int, pruning: Pruning
) -> Tensor:
    """Which of these instances survive; the passes differ in their noise, which is a function of history and pass.

    Args:
        backbone: the SPT model, in evaluation mode.
        batches: (this process's share of) the training instances.
        instances: number of all training instances.
        depth: number of reasoning steps.
        pruning: the rule.

    Returns:
        1 for each instance kept, 0 for those pruned or not in `batches`, `[instances]`, uint8 on the backbone's device.
    """
    device = backbone.item_vectors.device
    kept = torch.zeros(instances, dtype=torch.uint8, device=device)
    for batch in batches:
        batch = batch.to(device)
        noise = [KeyedNoise(batch.histories, seed) for seed in range(pruning.passes)]
        for states in backbone.rollout(batch.histories, [depth] * pruning.passes, noise, read=batch.places):
            ranks = backbone.target_rank(states[-1], batch.targets)
            kept[batch.instances[batch.valid & (ranks <= pruning.top)]] = 1
    return kept
