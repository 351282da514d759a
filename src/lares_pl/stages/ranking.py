"""Evaluation of a network: full rankings of held-out items, and ranked lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import MeanMetric

from lares_pl.checks import whole
from lares_pl.data.dataset.prepared import SequenceDataset
from lares_pl.data.loading.batches import Batch
from lares_pl.data.loading.item_pairs import ItemPairs
from lares_pl.errors import LaresError
from lares_pl.evaluation.metrics import DEFAULT_METRICS, Catalogue, RankingMetric
from lares_pl.evaluation.protocols import MetricSums, seen_items
from lares_pl.model.architecture import BackboneConfig
from lares_pl.model.reasoning import Reasoning, StopRule
from lares_pl.parsing import from_plain
from lares_pl.stages.memory import trim
from lares_pl.stages.network import NetworkModule


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
        exclude_seen: leave items of the history out of recommendations, and out of the rankings of the metrics with the short
            names (the paper ranks them); validation and test report both.
        metrics: what validation and test report; Recall and NDCG at 5, 10, 20 and 50 and MRR where None.
    """

    def __init__(
        self,
        backbone: BackboneConfig,
        init_from: str | None,
        ema: float,
        exclude_seen: bool,
        metrics: Sequence[RankingMetric] | None,
    ) -> None:
        super().__init__(backbone, init_from, ema)
        if not isinstance(metrics, Sequence | None):
            raise LaresError(f"metrics must be a list of metrics, such as [Recall(), NDCG()]; got {metrics!r}")
        self.exclude_seen = exclude_seen
        #: what validation and test report
        self.metrics: list[RankingMetric] = [
            from_plain(RankingMetric, metric, "metrics") for metric in (DEFAULT_METRICS if metrics is None else metrics)
        ]
        #: depth of validation, test and prediction
        self.evaluation_depth = backbone.depth.evaluation_depth
        #: ends reasoning about a history before that depth, once it has arrived
        self.stop: StopRule | None = None
        #: trajectories whose scores are averaged in validation, test and prediction
        self.trajectories = 1
        #: whether the scores of all steps are averaged there, instead of taking those of the last one
        self.average_steps = False
        #: length of the lists that `predict` gives
        self.predict_k = 10
        # of the validation or test that is running
        self._sums: MetricSums
        self._steps: MeanMetric

    @property
    def validated_metrics(self) -> tuple[str, ...]:
        """Names that validation logs."""
        any_catalogue = Catalogue(1, torch.zeros(2, dtype=torch.int64))  # names do not depend on it
        names = MetricSums(self.metrics, any_catalogue, self.exclude_seen).names
        return tuple(f"val/{name}" for name in [*names, *(["steps"] if self.stop is not None else [])])

    @property
    def needs_read(self) -> bool:
        """Whether batches must bring what has been read at each instance."""
        return self.backbone.config.repeat_bias

    @property
    def reasoning(self) -> Reasoning:
        """What evaluation spends on a history.

        Raises:
            LaresError: if its depth is no whole number or negative.
        """
        return Reasoning(whole("evaluation_depth", self.evaluation_depth), self.stop, self.trajectories, self.average_steps)

    def excluded(self, batch: Batch) -> ItemPairs | None:
        """Items that are not ranked: those seen before, where they are to be left out."""
        return seen_items(batch) if self.exclude_seen else None

    def make_sums(self, sequences: SequenceDataset) -> MetricSums:
        """The sums of this stage's metrics, still without instances.

        Args:
            sequences: the data that is evaluated on.

        Raises:
            LaresError: if a metric reads item text and there is none.
        """
        read = any(metric.reads_popularity for metric in self.metrics)
        popularity = torch.from_numpy(sequences.training_popularity) if read else torch.empty(0, dtype=torch.int64)
        readers = [type(metric).__name__ for metric in self.metrics if metric.reads_text]
        directions = sequences.text_directions if readers else None
        if readers and directions is None:
            raise LaresError(
                f"model.metrics: {readers[0]} reads item text, and {sequences.path} has none; prepare it with --item_text"
            )
        text = None if directions is None else torch.from_numpy(directions)
        return MetricSums(self.metrics, Catalogue(sequences.catalogue_size, popularity, text), self.exclude_seen)

    def on_validation_epoch_start(self) -> None:
        """Begin the sums."""
        self._sums = self.make_sums(self.trainer.datamodule.sequences).to(self.device)  # type: ignore[attr-defined]
        self._steps = MeanMetric().to(self.device)

    on_test_epoch_start = on_validation_epoch_start

    def _evaluate(self, batch: Batch) -> None:
        states, steps = self.reasoning(self.backbone, batch.histories)
        self._sums.rank(self.backbone.head(batch.histories, read=batch.read), states, batch)
        if self.stop is not None:
            self._steps.update(steps[batch.valid])

    def _log_metrics(self, split: str) -> None:
        values = {f"{split}/{name}": value for name, value in self._sums.compute().items()}
        if self.stop is not None:
            values[f"{split}/steps"] = self._steps.compute()
        del self._sums, self._steps  # counters of each item, which training has no use for
        # they are of all processes already; the greatest of equal values is the value itself
        self.log_dict(values, sync_dist=True, reduce_fx="max")

    def on_validation_epoch_end(self) -> None:
        """Log the metrics."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics."""
        self._log_metrics("test")

    def validation_step(self, batch: Batch) -> None:
        """Rank validation targets."""
        self._evaluate(batch)

    def test_step(self, batch: Batch) -> None:
        """Rank test targets."""
        self._evaluate(batch)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Keep memory from growing."""
        trim(batch_idx)

    def on_validation_batch_end(self, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As in training."""
        trim(batch_idx)

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def on_predict_start(self) -> None:
        """Say that lists are shorter than asked for, where the catalogue is."""
        if self.predict_k > self.backbone.items:
            count = self.backbone.items
            rank_zero_warn(f"the catalogue has {count} items, so lists have {count} instead of {self.predict_k} (--k)")

    def predict_step(self, batch: Batch) -> Ranked:
        """The best `predict_k` items of each user."""
        k = min(self.predict_k, self.backbone.items)
        states, _ = self.reasoning(self.backbone, batch.histories)
        scores, items = self.backbone.head(batch.histories, read=batch.read).top_k(states, k, self.excluded(batch))
        return Ranked(batch.instances, batch.valid, items, scores)
