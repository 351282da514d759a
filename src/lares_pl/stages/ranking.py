"""Evaluation of a network: full rankings of held-out items, and ranked lists."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from lares_pl.data.loading.batches import Batch
from lares_pl.data.loading.item_pairs import ItemPairs
from lares_pl.evaluation.metrics import metric_names, ranking_metrics
from lares_pl.model.architecture import BackboneConfig
from lares_pl.model.reasoning import Reasoning, StopRule
from lares_pl.stages.memory import trim
from lares_pl.stages.network import NetworkModule

CUTOFFS = (5, 10, 20, 50)


class Ranked(NamedTuple):
    """What `predict_step` gives for B rows."""

    instances: Tensor  # [B]
    valid: Tensor  # [B]
    items: Tensor  # [B, k]
    scores: Tensor  # [B, k]


class RankingModule(NetworkModule):
    """Validates, tests and predicts by ranking the catalogue.

    Args:
        backbone, init_from, ema: as `NetworkModule`.
        exclude_seen: leave items of the history out of rankings and recommendations (the paper ranks them).
    """

    def __init__(self, backbone: BackboneConfig, init_from: str | None, ema: float, exclude_seen: bool) -> None:
        super().__init__(backbone, init_from, ema)
        self.exclude_seen = exclude_seen
        #: depth of validation, test and prediction
        self.evaluation_depth = backbone.depth.evaluation_depth
        #: ends reasoning about a history before that depth, once it has arrived
        self.stop: StopRule | None = None
        #: trajectories whose scores are averaged in validation, test and prediction
        self.trajectories = 1
        #: length of the lists that `predict` gives
        self.predict_k = 10
        self.metrics = torch.nn.ModuleDict({split: ranking_metrics(f"{split}/", CUTOFFS) for split in ("val", "test")})

    def setup(self, stage: str) -> None:
        """Start with new metrics: training can't add to those that `validate` and `test` leave, made in inference mode."""
        super().setup(stage)
        for metrics in self.metrics.values():
            cast(MetricCollection, metrics).reset()

    @property
    def needs_seen(self) -> bool:
        """Whether batches of evaluation must bring the items seen before."""
        return self.exclude_seen

    @property
    def validated_metrics(self) -> tuple[str, ...]:
        """Names that validation logs."""
        return tuple(f"val/{name}" for name in [*metric_names(CUTOFFS), *(["steps"] if self.stop is not None else [])])

    @property
    def needs_read(self) -> bool:
        """Whether batches must bring what has been read at each instance."""
        return self.backbone.config.repeat_bias

    @property
    def reasoning(self) -> Reasoning:
        """What evaluation spends on a history."""
        return Reasoning(self.evaluation_depth, self.stop, self.trajectories)

    def excluded(self, batch: Batch) -> ItemPairs | None:
        """Items that are not ranked: those seen before, where they are to be left out."""
        if not self.exclude_seen:
            return None
        assert batch.seen_rows is not None
        assert batch.seen_items is not None
        return ItemPairs(batch.seen_rows, batch.seen_items)

    def _evaluate(self, batch: Batch, split: str) -> None:
        states, steps = self.reasoning(self.backbone, batch.histories)
        ranks = self.backbone.head(batch.histories, read=batch.read).rank(states, batch.targets, self.excluded(batch))
        metrics = cast(MetricCollection, self.metrics[split])
        metrics.update(ranks[batch.valid])
        self.log_dict(metrics, on_step=False, on_epoch=True, batch_size=len(batch))
        if self.stop is not None:
            counted = int(batch.valid.sum())
            mean = steps[batch.valid].sum() / max(counted, 1)
            self.log(f"{split}/steps", mean, on_step=False, on_epoch=True, sync_dist=True, batch_size=counted)

    def validation_step(self, batch: Batch) -> None:
        """Rank validation targets."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch) -> None:
        """Rank test targets."""
        self._evaluate(batch, "test")

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Keep memory from growing."""
        trim(batch_idx)

    def on_validation_batch_end(self, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As in training."""
        trim(batch_idx)

    def on_test_batch_end(self, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As in training."""
        trim(batch_idx)

    def on_predict_batch_end(self, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As in training."""
        trim(batch_idx)

    def predict_step(self, batch: Batch) -> Ranked:
        """The best `predict_k` items of each user."""
        k = min(self.predict_k, self.backbone.items)
        states, _ = self.reasoning(self.backbone, batch.histories)
        scores, items = self.backbone.head(batch.histories, read=batch.read).top_k(states, k, self.excluded(batch))
        return Ranked(batch.instances, batch.valid, items, scores)
