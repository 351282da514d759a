"""The order of instances in an epoch, dealt out to the processes, without a list of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lares_pl.data.loading.instance_rng import mix

ROUNDS = 8


class Permutation:
    """A random permutation of 0 … count - 1 whose values are computed where they are asked for.

    A Feistel network over pairs (left, right) with `left * width + right` a little above `count`; what falls outside walks on
    until it falls inside (Black & Rogaway 2002). Memory and start do not depend on `count`.

    Args:
        count: number of values.
        seed: what it is a function of.
    """

    def __init__(self, count: int, seed: tuple[int, ...]) -> None:
        self.count = count
        self._sides = np.uint64(max(1, int(np.ceil(np.sqrt(count)))))
        self._keys = np.random.SeedSequence(seed).generate_state(ROUNDS, np.uint64)

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """Values at these places, `[B]` -> `[B]` int64."""
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

    def indices(self, start: int = 0, end: int | None = None) -> np.ndarray:
        """This process's instances in order, from its `start`-th to before its `end`-th; -1 fills up."""
        rank, world_size = self.shard.rank, self.shard.world_size
        places = rank + world_size * np.arange(start, len(self) if end is None else min(end, len(self)))
        if self.shuffle:
            return Permutation(self.count, (self.seed, self.epoch))(places)
        return np.where(places < self.count, places, -1)
