"""All users of a split through a checkpoint, once: what each step does to each of them.

`measure` is for others too, such as a study of your own:

    stage = load_stage("runs/beauty/rpt/checkpoints/best.ckpt")
    measured = measure(stage, "prepared/beauty", "test", deepest=16)
    measured.ranks  # [U, 16]: rank of each user's target after each step
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from lares_pl.data.loading.batches import Batch
from lares_pl.data.loading.loaders import InstanceLoader
from lares_pl.data.module import SequenceDataModule
from lares_pl.errors import LaresError
from lares_pl.evaluation.metrics import DEFAULT_METRICS, Catalogue, Ranking, functions_of
from lares_pl.evaluation.protocols import MetricSums, own_and_other, seen_items
from lares_pl.model.reasoning import Reasoning
from lares_pl.model.recurrence import KeyedNoise
from lares_pl.report.distributions import movement, residuals
from lares_pl.stages.base import BaseStage

Split = Literal["test", "val"]
_FUNCTIONS = functions_of(DEFAULT_METRICS)
METRICS = tuple(_FUNCTIONS)


@dataclass(frozen=True)
class Measured:
    """What one pass over U users gave, in the order of the dataset; T steps.

    Args:
        depths: 1 … T, or 0 alone for a model without recurrence, `[T]`.
        ranks: rank of the target, 1 is best, `[U, T]` int32.
        residual: `|z_t - z_{t-1}| / |z_t|` of the user state, `[U, T]`; NaN at the first step.
        cosine: of z_t and z_{t-1}, likewise.
        entropy: of the distribution over the catalogue, nats, `[U, T]`.
        kl: of that distribution from that of the step before, nats, `[U, T]`; NaN at the first step.
        other_ranks: rank of the target under the protocol that the stage was not evaluated by, `[U, T]` int32.
        exclude_seen: whether `ranks` are those among unseen items, and `other_ranks` those among all.
    """

    depths: np.ndarray
    ranks: np.ndarray
    residual: np.ndarray
    cosine: np.ndarray
    entropy: np.ndarray
    kl: np.ndarray
    other_ranks: np.ndarray
    exclude_seen: bool

    def column(self, depth: int) -> int:
        """Where a depth stands."""
        return int(np.flatnonzero(self.depths == depth)[0])

    def metrics(self, depth: int) -> dict[str, float]:
        """All metrics at a depth under both protocols, as `lares test` gives them."""
        own, other = (torch.from_numpy(ranks[:, self.column(depth)]) for ranks in (self.ranks, self.other_ranks))
        metrics = MetricSums(DEFAULT_METRICS, Catalogue(0, torch.empty(0)), self.exclude_seen)
        metrics.update(Ranking(own, torch.empty(0), torch.empty(0)), other)
        return {name: float(value) for name, value in metrics.compute().items()}


def values_of(metric: str, ranks: np.ndarray) -> np.ndarray:
    """A metric of each rank, float32 of the same shape."""
    return _FUNCTIONS[metric](torch.from_numpy(ranks)).float().numpy()


def batches(stage: BaseStage, dataset: str, split: Split, batch_size: int, shuffle: bool = False) -> Iterator[Batch]:
    """Users of a split as the stage reads them, on its device, with what they have seen before.

    Raises:
        LaresError: if there is no such split, the dataset's catalogue is not the stage's, or nothing is held out.
    """
    if split not in get_args(Split):
        raise LaresError(f"split must be {' or '.join(get_args(Split))}, got {split!r}")
    data = SequenceDataModule(dataset, max_length=stage.backbone.max_length)
    stage.take_catalogue(data)
    data.setup("test")
    instances = data.sequences.held_out("test" if split == "test" else "validation")
    loader = InstanceLoader(data.sequences, instances, batch_size, data.max_length, with_seen=True, shuffle=shuffle)
    for batch in loader:
        yield batch.to(stage.device)


class _Part(NamedTuple):
    """`[T, B]` each."""

    ranks: Tensor
    residual: Tensor
    cosine: Tensor
    entropy: Tensor
    kl: Tensor
    other_ranks: Tensor


def _measure_batch(stage: BaseStage, batch: Batch, deepest: int) -> _Part:
    """One rollout; at the depth of evaluation the states are those that `lares test` ranks by, to the last bit.

    (The end of a trajectory is computed for its last positions alone, and rounds otherwise than a step on the way.)
    """
    backbone = stage.backbone
    (states,) = backbone.rollout(batch.histories, [deepest], KeyedNoise(batch.histories))
    if 0 < stage.evaluation_depth < deepest:
        states[stage.evaluation_depth - 1] = Reasoning(stage.evaluation_depth)(backbone, batch.histories).states
    head = backbone.head(batch.histories)
    both = [head.rank_both(of_step, batch.targets, seen_items(batch)) for of_step in states]
    own, other = zip(*(own_and_other(ranks, stage.exclude_seen) for ranks in both), strict=True)
    moved = movement(states, head)
    return _Part(torch.stack(own).int(), *residuals(states), moved.entropy, moved.kl, torch.stack(other).int())


@torch.inference_mode()
def measure(stage: BaseStage, dataset: str, split: Split, deepest: int, batch_size: int = 1024) -> Measured:
    """Ranks of all users of a split after every step, and what the steps do to states and distributions.

    The noise is a function of each history alone, as in every evaluation; nothing of size users × items is ever held.

    Args:
        stage: a trained stage, on the device to compute on, in evaluation mode.
        dataset: directory of the prepared dataset.
        split: whose targets are ranked.
        deepest: number of steps T; 0 for a model without recurrence.
        batch_size: users a batch.

    Raises:
        LaresError: if the dataset is not the model's, or the model has no such depth.
    """
    parts = [
        _Part(*(values[:, batch.valid].T.cpu() for values in _measure_batch(stage, batch, deepest)))
        for batch in batches(stage, dataset, split, batch_size)
    ]
    together = {name: torch.cat(values).numpy() for name, values in zip(_Part._fields, zip(*parts, strict=True), strict=True)}
    depths = np.arange(1, deepest + 1) if deepest else np.zeros(1, dtype=np.int64)
    return Measured(depths, **together, exclude_seen=stage.exclude_seen)
