"""Data loaders: instances to batches, exactly sharded over processes, without worker processes or loops over rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lares_pl.data.dataset.prepared import HistorySpans, Instances, SequenceDataset
from lares_pl.data.loading.batches import Batch, cut_histories, ranges
from lares_pl.data.loading.histories import Histories
from lares_pl.data.loading.instance_rng import InstanceDraws
from lares_pl.data.loading.partners import SameTargetPartners
from lares_pl.data.loading.sampler import EpochOrder, Shard
from lares_pl.data.loading.windows import Windows

AHEAD = 64  # batches whose instances are drawn at once


class BatchLoader(ABC):
    """Serves batches of one split to one process; an iterable that Lightning takes as a data loader.

    Args:
        dataset: the sequences.
        count: how many things (instances, windows) there are to serve.
        batch_size: things a batch and process.
        max_length: longest history L.
        shuffle: draw a new order each epoch (training).
        seed: seed of order and partners.
        shard: this process's share.
        pin: whether batches come in page-locked memory.
    """

    batch_sampler = None  # Lightning looks for it wherever there is a `sampler`

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
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.max_length = max_length
        self.pin = pin
        self.sampler = EpochOrder(count, shuffle, seed, shard)  # Lightning calls `sampler.set_epoch`
        self._served = 0  # batches of this epoch
        self._resumed = (-1, 0)  # epoch in which a run goes on, and batches that it served before

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        epoch, size = self.sampler.epoch, self.batch_size
        draws = InstanceDraws(self.sampler.seed, epoch)
        served = self._resumed[1] if epoch == self._resumed[0] else 0
        while served < len(self):
            indices = self.sampler.indices(served * size, (served + AHEAD) * size)
            for start in range(0, len(indices), size):
                batch = self.cut(indices[start : start + size], draws)
                served += 1
                self._served = served
                yield batch.pin_memory() if self.pin else batch

    def state_dict(self) -> dict[str, int]:
        """Where in its epoch the loader stands; Lightning keeps it in checkpoints."""
        return {"epoch": self.sampler.epoch, "served": self._served}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on in that epoch behind the batches that were served."""
        self._resumed = state["epoch"], state["served"]

    @abstractmethod
    def cut(self, indices: np.ndarray, draws: InstanceDraws) -> Batch:
        """The batch of these (-1: a row that only fills up)."""

    def histories(self, spans: HistorySpans) -> Histories:
        """What each of these instances reads."""
        return cut_histories(self.dataset.items, spans.starts, spans.ends, self.max_length)


class InstanceLoader(BatchLoader):
    """Each instance with a history of its own.

    Args:
        dataset: the sequences.
        instances: the split.
        batch_size: instances a batch and process.
        max_length: longest history L.
        partners: where set, each batch brings same-target partners.
        with_seen: whether each batch brings the items each user had before the target.
        options: of every loader.
    """

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
        """The batch of these instances."""
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
    """Windows of which each position is a training instance.

    Args:
        dataset: the sequences.
        windows: the windows.
        batch_size: windows a batch and process.
        max_length: longest history L.
        kept: which training instances count (a mask); all where None.
        aligned: how many instances of each window are aligned, drawn anew for each batch; those it has if it has fewer.
        partners: where set, each batch brings same-target partners of the aligned instances.
        options: of every loader.
    """

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
        """The batch of these windows."""
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
    """Indices of at most `most` members of each group, drawn uniformly without replacement.

    Args:
        group: ascending group of each member, `[n]`.
        most: how many of each.
        draws: a uniform number of each member, `[n]`.
    """
    order = np.lexsort((draws, group))
    sizes = np.bincount(group)
    number = np.arange(len(group)) - np.repeat(sizes.cumsum() - sizes, sizes)
    drawn: np.ndarray = order[number < most]
    return drawn
