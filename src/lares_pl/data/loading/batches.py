"""Instances to batches: histories cut from the flat array, same-target partners, exact sharding over processes.

All of it is vectorised: no Python loop over rows, no worker processes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lares_pl.data.dataset.prepared import HistorySpans, Instances, SequenceDataset
from lares_pl.data.loading.histories import Histories
from lares_pl.data.loading.instance_rng import InstanceDraws
from lares_pl.data.loading.sampler import EpochOrder, Shard
from lares_pl.data.loading.windows import Windows

AHEAD = 64  # batches whose instances are drawn at once


@dataclass  # not frozen: Lightning's true-precision plugins rebuild a batch field by field
class Batch:
    """B instances.

    Args:
        histories: their histories, B of them; or, with `target_positions`, windows of which each holds several.
        targets: target items, `[B]`; 0 where there is none to predict.
        instances: index of each instance in its split, `[B]`.
        valid: False for rows that only fill up the last batch of a process, `[B]`.
        target_positions: tokens of `histories` (indices into its items) at which the instances' histories end, `[B]`,
            ascending; the last of each history where None.
        aligned: histories of the instances that are aligned, S of them; those of all instances where None.
        aligned_targets: their targets, `[S]`; those of all instances where None.
        partners: for each aligned history that of another training instance with the same target.
        seen_rows, seen_items: pairs (row, item) of what each user had before the target, rows ascending, `[E]` each.
    """

    histories: Histories
    targets: Tensor
    instances: Tensor
    valid: Tensor
    target_positions: Tensor | None = None
    aligned: Histories | None = None
    aligned_targets: Tensor | None = None
    partners: Histories | None = None
    seen_rows: Tensor | None = None
    seen_items: Tensor | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def _each(self, move: Callable[[Any], Any]) -> Batch:
        moved = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: move(value) for name, value in moved.items() if value is not None})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on another device."""
        return self._each(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory."""
        return self._each(lambda value: value.pin_memory())


def cut_histories(items: np.ndarray, starts: np.ndarray, ends: np.ndarray, max_length: int) -> Histories:
    """Histories `items[max(start, end - max_length):end]`, packed.

    Args:
        items: flat array.
        starts, ends: where each user's items begin and where the target stands, `[B]`.
        max_length: longest history L.
    """
    starts = np.maximum(starts, ends - max_length)
    index, lengths = _ranges(starts, ends)
    return Histories(torch.from_numpy(items[index].astype(np.int64)), torch.from_numpy(lengths), int(lengths.max(initial=0)))


def _ranges(starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All numbers of the ranges [start, end) one after the other, and the ranges' lengths."""
    lengths = ends - starts
    shift = starts - np.concatenate([[0], lengths.cumsum()])[:-1]
    return np.arange(lengths.sum()) + np.repeat(shift, lengths), lengths


class SameTargetPartners:
    """Draws, for a training instance, another one with the same target, uniformly; itself where there is none.

    Args:
        dataset: the sequences.
    """

    def __init__(self, dataset: SequenceDataset) -> None:
        self._dataset = dataset

    def draw(self, spans: HistorySpans, draws: InstanceDraws, instances: np.ndarray) -> HistorySpans:
        """A partner for each, `[B]`.

        Args:
            spans: the instances, `[B]`.
            draws: what is drawn from.
            instances: their numbers, `[B]`.
        """
        flat = self._dataset.flat
        targets = flat.items[spans.ends]
        firsts = flat.of_item[targets]
        others = flat.of_item[targets + 1] - firsts - 1
        number = np.floor(draws.uniform(instances) * others).astype(np.int64)
        # the n-th of the others: places ascend, so those from its own on are one further
        places = flat.by_target[firsts + number].astype(np.int64)
        further = flat.by_target[firsts + np.minimum(number + 1, others)].astype(np.int64)
        ends = np.where(others == 0, spans.ends, np.where(places < spans.ends, places, further))
        users = np.searchsorted(flat.offsets, ends, side="right") - 1
        return HistorySpans(users, flat.offsets[users], ends)


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
            index, lengths = _ranges(chosen.starts, chosen.ends)
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
        instances, _ = _ranges(chosen.firsts, chosen.firsts + chosen.counts)
        behind = (chosen.ends - chosen.starts).cumsum()  # tokens up to the end of each window
        places, _ = _ranges(behind - chosen.counts, behind)
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
