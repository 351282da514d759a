"""Instances to batches: histories cut from the flat array, same-target partners, exact sharding over processes.

All of it is vectorised: no Python loop over rows, no worker processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lares_pl.data.dataset import Instances, SequenceDataset
from lares_pl.data.histories import Histories


@dataclass  # not frozen: Lightning's true-precision plugins rebuild a batch field by field
class Batch:
    """B instances.

    Args:
        histories: their histories.
        targets: target items, `[B]`; 0 where there is none to predict.
        instances: index of each instance in its split, `[B]`.
        valid: False for rows that only fill up the last batch of a process, `[B]`.
        partners: histories of other training instances with the same target, for trajectory alignment.
        seen_rows, seen_items: pairs (row, item) of what each user had before the target, rows ascending, `[E]` each.
    """

    histories: Histories
    targets: Tensor
    instances: Tensor
    valid: Tensor
    partners: Histories | None = None
    seen_rows: Tensor | None = None
    seen_items: Tensor | None = None

    def __len__(self) -> int:
        return len(self.histories)

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
    """Draws, for an instance, another one with the same target, uniformly; the instance itself where there is none.

    Args:
        targets: target of each instance, `[n]`.
    """

    def __init__(self, targets: np.ndarray) -> None:
        self._by_target = np.argsort(targets, kind="stable")
        counts = np.bincount(targets)
        firsts = np.concatenate([[0], counts.cumsum()])[:-1]
        place = np.empty_like(self._by_target)
        place[self._by_target] = np.arange(len(targets))
        self._first = firsts[targets]
        self._count = counts[targets]
        self._place = place - self._first  # place of each instance among those with its target

    def draw(self, instances: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """A partner for each of `instances`, `[B]` -> `[B]`."""
        count = self._count[instances]
        others = np.maximum(count - 1, 1)
        step = 1 + np.floor(generator.random(len(instances)) * others).astype(np.int64)
        partners: np.ndarray = self._by_target[self._first[instances] + (self._place[instances] + step) % count]
        return partners


@dataclass(frozen=True)
class Shard:
    """Which share of the instances this process serves.

    Args:
        rank: number of this process.
        world_size: number of processes.
    """

    rank: int = 0
    world_size: int = 1


class EpochOrder:
    """The order of instances: a pure function of (seed, epoch), dealt out to the processes.

    In training (shuffled) each process gets equally many instances, so up to `world_size - 1` of them sit an epoch
    out; in evaluation every instance is served exactly once and the shares are filled up with -1.

    Args:
        count: number of instances.
        shuffle: whether to draw a new order each epoch.
        seed: seed of the orders.
        shard: this process's share.
    """

    def __init__(self, count: int, shuffle: bool, seed: int, shard: Shard) -> None:
        self.count = count
        self.shuffle = shuffle
        self.seed = seed
        self.shard = shard
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        world_size = self.shard.world_size
        return self.count // world_size if self.shuffle else -(-self.count // world_size)

    def indices(self) -> np.ndarray:
        """This process's instances in order, `[len(self)]`; -1 fills up."""
        rank, world_size = self.shard.rank, self.shard.world_size
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.count)
        else:
            order = np.pad(np.arange(self.count), (0, len(self) * world_size - self.count), constant_values=-1)
        return order[rank::world_size][: len(self)]


class BatchLoader:
    """Serves batches of one split to one process; an iterable that Lightning takes as a data loader.

    Args:
        dataset: the sequences.
        instances: the split.
        batch_size: instances a batch and process.
        max_length: longest history L.
        shuffle: draw a new order each epoch (training).
        seed: seed of order and partners.
        shard: this process's share.
        partners: where set, each batch brings same-target partners.
        with_seen: whether each batch brings the items each user had before the target.
        pin: whether batches come in page-locked memory.
    """

    batch_sampler = None  # Lightning looks for it wherever there is a `sampler`

    def __init__(
        self,
        dataset: SequenceDataset,
        instances: Instances,
        batch_size: int,
        max_length: int,
        shuffle: bool = False,
        seed: int = 0,
        shard: Shard = Shard(),
        partners: SameTargetPartners | None = None,
        with_seen: bool = False,
        pin: bool = False,
    ) -> None:
        self.dataset = dataset
        self.instances = instances
        self.batch_size = batch_size
        self.max_length = max_length
        self.partners = partners
        self.with_seen = with_seen
        self.pin = pin
        self.sampler = EpochOrder(len(instances), shuffle, seed, shard)  # Lightning calls `sampler.set_epoch`

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        indices = self.sampler.indices()
        randomness = np.random.default_rng((self.sampler.seed, self.sampler.epoch, self.sampler.shard.rank, 1))
        for start in range(0, len(indices), self.batch_size):
            batch = self.cut(indices[start : start + self.batch_size], randomness)
            yield batch.pin_memory() if self.pin else batch

    def cut(self, indices: np.ndarray, randomness: np.random.Generator) -> Batch:
        """The batch of these instances (-1: a row that only fills up)."""
        valid = indices >= 0
        chosen = self.instances.take(np.maximum(indices, 0))
        items = self.dataset.items
        targets = items[chosen.ends] if chosen.has_target else np.zeros(len(chosen), dtype=np.int32)
        partners = seen_rows = seen_items = None
        if self.partners is not None:
            other = self.instances.take(self.partners.draw(np.maximum(indices, 0), randomness))
            partners = cut_histories(items, other.starts, other.ends, self.max_length)
        if self.with_seen:
            index, lengths = _ranges(chosen.starts, chosen.ends)
            seen_items = torch.from_numpy(items[index].astype(np.int64))
            seen_rows = torch.repeat_interleave(torch.from_numpy(lengths))
        return Batch(
            cut_histories(items, chosen.starts, chosen.ends, self.max_length),
            torch.from_numpy(targets.astype(np.int64)),
            torch.from_numpy(np.maximum(indices, 0)),
            torch.from_numpy(valid),
            partners,
            seen_rows,
            seen_items,
        )
