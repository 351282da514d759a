"""The order of instances in an epoch, distributed over the processes, without materialising it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lares_pl.data.loading.instance_rng import mix

ROUNDS = 8


class Permutation:
    """A random permutation of 0 … count - 1 whose values are computed on demand.

    A Feistel network over pairs (left, right), whose domain is slightly larger than `count`; a value outside the range is
    permuted again until it is inside (cycle walking, Black & Rogaway 2002). Memory and start-up time do not depend on `count`.

    Args:
        count: number of values.
        seed: the seed.
    """

    def __init__(self, count: int, seed: tuple[int, ...]) -> None:
        self.count = count
        self._sides = np.uint64(max(1, int(np.ceil(np.sqrt(count)))))
        self._keys = np.random.SeedSequence(seed).generate_state(ROUNDS, np.uint64)

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """Values at these indices, `[B]` -> `[B]` int64."""
        values = self._step(numbers.astype(np.uint64))
        while len(outside := np.flatnonzero(values >= self.count)):
            values[outside] = self._step(values[outside])
        return values.astype(np.int64)

    def _step(self, x: np.ndarray) -> np.ndarray:
        left, right = np.divmod(x, self._sides)
        for key in self._keys:
            left, right = right, (left + mix(right + key)) % self._sides
        value: np.ndarray = left * self._sides + right
        return value


@dataclass(frozen=True)
class Shard:
    """The share of the instances that this process serves.

    Args:
        rank: rank of this process.
        world_size: number of processes.
    """

    rank: int = 0
    world_size: int = 1


class EpochOrder:
    """The order of instances: a pure function of (seed, epoch), distributed over the processes.

    In training (shuffled) each process gets the same number of instances, so up to `world_size - 1` instances are left out of
    an epoch; in evaluation every instance is served exactly once and the shares are padded with -1.

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

    def indices(self, start: int = 0, end: int | None = None) -> np.ndarray:
        """This process's instances `start` to `end - 1`, in order; -1 is padding."""
        rank, world_size = self.shard.rank, self.shard.world_size
        places = rank + world_size * np.arange(start, len(self) if end is None else min(end, len(self)))
        if self.shuffle:
            return Permutation(self.count, (self.seed, self.epoch))(places)
        return np.where(places < self.count, places, -1)
