"""Data loaders: from instances to batches, sharded exactly over processes, without worker processes or loops over rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from lares_pl.data.dataset.instances import HistorySpans, Instances, ranges
from lares_pl.data.dataset.prepared import SequenceDataset
from lares_pl.data.loading.batches import Batch, cut_histories
from lares_pl.data.loading.fitting import SAMPLE, BatchSizes
from lares_pl.data.loading.histories import Histories
from lares_pl.data.loading.instance_rng import InstanceDraws
from lares_pl.data.loading.partners import SameTargetPartners
from lares_pl.data.loading.sampler import EpochOrder, Shard
from lares_pl.data.loading.windows import Windows
from lares_pl.errors import LaresError

AHEAD = 64  # batches whose instances are drawn at once


@dataclass(frozen=True)
class BatchesOf:
    """What the batches of an epoch depend on; a run that stopped within one goes on there with the same alone.

    Args:
        batch_size: units per batch and process.
        seed: of the order.
        instances: what a unit is.
        processes: how many share an epoch.
    """

    batch_size: int
    seed: int
    instances: Literal["prefix", "sequence"]
    processes: int


class BatchLoader(ABC):
    """Serves batches of one split to one process; an iterable that Lightning takes as a data loader.

    Args:
        dataset: the sequences.
        count: number of units (instances or windows).
        batch_size: units per batch and process.
        max_length: maximum history length L.
        shuffle: whether to draw a new order each epoch (training).
        seed: seed of order and partners.
        shard: this process's share.
        pin: whether batches are in page-locked memory.
        with_read: whether each batch has the items that have been read at each instance.
        fitted: whether batches are filled up to the same shapes (`lares_pl.data.loading.fitting`).
    """

    batch_sampler = None  # Lightning looks for it wherever there is a `sampler`
    unit: ClassVar[Literal["prefix", "sequence"]]  # what one row of a batch is

    def __init__(
        self,
        dataset: SequenceDataset,
        count: int,
        batch_size: int,
        max_length: int,
        shuffle: bool = False,
        seed: int = 0,
        shard: Shard = Shard(),
        pin: bool = False,
        with_read: bool = False,
        fitted: bool = False,
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.max_length = max_length
        self.pin = pin
        self.with_read = with_read
        self.fitted = fitted
        self.sampler = EpochOrder(count, shuffle, seed, shard)  # Lightning calls `sampler.set_epoch`
        self._served = 0  # batches of this epoch
        self._resumed = (-1, 0, 0)  # epoch in which a run is resumed, the batches already served in it, and all of it

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        size, served = self.batch_size, self._served_before()
        draws = InstanceDraws(self.sampler.seed, self.sampler.epoch)
        while served < len(self):
            indices = self.sampler.indices(served * size, (served + AHEAD) * size)
            for start in range(0, len(indices), size):
                batch = self._cut(indices[start : start + size], draws)
                if self.fitted:
                    batch = self._sizes.fit(batch)
                served += 1
                self._served = served
                yield batch.in_one_buffer(self.pin) if self.pin or self.fitted else batch

    def _cut(self, indices: np.ndarray, draws: InstanceDraws) -> Batch:
        """Make a batch, with what was read if that is asked for."""
        batch = self.cut(indices, draws)
        if self.with_read:
            batch.note_read()
        return batch

    @cached_property
    def _sizes(self) -> BatchSizes:
        """Those of fitted batches, from the first ones of the first epoch."""
        order = EpochOrder(self.sampler.count, self.sampler.shuffle, self.sampler.seed, self.sampler.shard)
        some = order.indices(0, max(1, min(SAMPLE, len(order) // self.batch_size)) * self.batch_size)
        draws = InstanceDraws(order.seed, 0)
        parts = (some[start : start + self.batch_size] for start in range(0, len(some), self.batch_size))
        return BatchSizes.of([self._cut(part, draws) for part in parts], self.max_length)

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the epoch, and what its batches depend on; Lightning stores it in checkpoints."""
        position = {"epoch": self.sampler.epoch, "served": self._served, "batches": len(self)}
        order = self.sampler
        of_batches = BatchesOf(self.batch_size, order.seed, self.unit, order.shard.world_size)
        return {**position, **asdict(of_batches)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue in that epoch after the batches already served."""
        self.sampler.epoch, self._served = state["epoch"], state["served"]
        self._resumed = state["epoch"], state["served"], state["batches"]

    def _served_before(self) -> int:
        """Batches of this epoch that a run served before it was resumed.

        Raises:
            LaresError: if the rest of the epoch would be others, since it has another number of batches now.
        """
        epoch, served, batches = self._resumed
        if epoch != self.sampler.epoch:
            return 0
        if 0 < served < batches != len(self):
            raise LaresError(
                f"the run stopped within an epoch of {batches} batches, and it has {len(self)} now: its instances are others "
                "(another dataset, or another model.pruning). Resume it as before, or start a new run from its weights "
                "(--model.init_from)"
            )
        return served

    @abstractmethod
    def cut(self, indices: np.ndarray, draws: InstanceDraws) -> Batch:
        """Make the batch of these units (-1: padding)."""

    def histories(self, spans: HistorySpans) -> Histories:
        """Return the histories of these instances."""
        return cut_histories(self.dataset.items, spans.starts, spans.ends, self.max_length)


class InstanceLoader(BatchLoader):
    """Each instance with its own history.

    Args:
        dataset: the sequences.
        instances: the split.
        batch_size: instances per batch and process.
        max_length: maximum history length L.
        partners: if set, each batch has same-target partners.
        with_seen: whether each batch has the items of each user before the target.
        options: as of `BatchLoader`.
    """

    unit = "prefix"

    def __init__(
        self,
        dataset: SequenceDataset,
        instances: Instances,
        batch_size: int,
        max_length: int,
        partners: SameTargetPartners | None = None,
        with_seen: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(dataset, len(instances), batch_size, max_length, **options)
        self.instances = instances
        self.partners = partners
        self.with_seen = with_seen

    def cut(self, indices: np.ndarray, draws: InstanceDraws) -> Batch:
        """Make the batch of these instances."""
        valid = indices >= 0
        indices = np.maximum(indices, 0)
        chosen = self.instances.take(indices)
        targets = self.dataset.targets(chosen) if self.instances.has_target else np.zeros(len(chosen))
        batch = Batch(self.histories(chosen), _tensor(targets), _tensor(indices), torch.from_numpy(valid))
        if self.partners is not None:
            batch.partners = self.histories(self.partners.draw(chosen, draws, indices))
        if self.with_seen:
            index, lengths = ranges(chosen.starts, chosen.ends)
            batch.seen_items = _tensor(self.dataset.items[index])
            batch.seen_rows = torch.repeat_interleave(_tensor(lengths))
        return batch


class WindowLoader(BatchLoader):
    """Windows with a training instance at each position.

    Args:
        dataset: the sequences.
        windows: the windows.
        batch_size: windows per batch and process.
        max_length: maximum history length L.
        kept: mask of the training instances to use; None uses all.
        aligned: number of instances of each window that are aligned, drawn for each batch; all of them if it has fewer.
        partners: if set, each batch has same-target partners of the aligned instances.
        options: as of `BatchLoader`.
    """

    unit = "sequence"

    def __init__(
        self,
        dataset: SequenceDataset,
        windows: Windows,
        batch_size: int,
        max_length: int,
        kept: np.ndarray | None = None,
        aligned: int = 0,
        partners: SameTargetPartners | None = None,
        **options: Any,
    ) -> None:
        self.windows = windows if kept is None else windows.keeping(kept)
        super().__init__(dataset, len(self.windows), batch_size, max_length, **options)
        self.instances = dataset.training_instances
        self.kept = kept
        self.aligned = aligned
        self.partners = partners

    def cut(self, indices: np.ndarray, draws: InstanceDraws) -> Batch:
        """Make the batch of these windows."""
        chosen = self.windows.take(np.maximum(indices, 0))
        histories = cut_histories(self.dataset.items, chosen.starts, chosen.ends, self.max_length)
        instances, _ = ranges(chosen.firsts, chosen.firsts + chosen.counts)
        behind = (chosen.ends - chosen.starts).cumsum()  # tokens up to the end of each window
        places, _ = ranges(behind - chosen.counts, behind)
        window = np.repeat(np.arange(len(chosen)), chosen.counts)
        if self.kept is not None:
            counted = self.kept[instances]
            instances, places, window = instances[counted], places[counted], window[counted]
        batch = Batch(
            histories,
            _tensor(self.dataset.targets(self.instances.take(instances))),
            _tensor(instances),
            torch.from_numpy(indices[window] >= 0),
            _tensor(places),
        )
        if self.aligned:
            some = instances[_some_of_each(window, self.aligned, draws.uniform(instances, purpose=1))]
            spans = self.instances.take(some)
            batch.aligned = self.histories(spans)
            batch.aligned_targets = _tensor(self.dataset.targets(spans))
            if self.partners is not None:
                batch.partners = self.histories(self.partners.draw(spans, draws, some))
        return batch


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.int64, copy=False))


def _some_of_each(group: np.ndarray, most: int, draws: np.ndarray) -> np.ndarray:
    """Draw at most `most` members of each group, uniformly without replacement; return their indices.

    Args:
        group: group of each member, ascending, `[n]`.
        most: number per group.
        draws: a uniform random number for each member, `[n]`.
    """
    order = np.lexsort((draws, group))
    sizes = np.bincount(group)
    number = np.arange(len(group)) - np.repeat(sizes.cumsum() - sizes, sizes)
    drawn: np.ndarray = order[number < most]
    return drawn
