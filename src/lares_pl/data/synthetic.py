"""The embedded demonstration data: trips whose next stop is several hops away, with the best possible NDCG@10.

A network of stations is joined by two lines; each line leads from every station to one other. Stations are of a few kinds.
The first items of a user are tickets: one for each kind, which says by which line this user leaves stations of that kind. Then
come stations. From the last one the user rides on, hop by hop, by the line that the tickets say for the kind of the station
just reached, until a station of the same kind as the one visited before the last: that is the next item. The stations passed
on the way are not recorded. With a small probability the user goes anywhere instead, and always where the ride finds no such
station within `most_hops`.

The number of hops differs between users and visits. A table of destinations would need an entry for each station, kind and
set of tickets; a block that makes one hop, and stays where the kind fits, needs the two lines only, but has to be applied as
often as there are hops. That is what recurrent depth is for.

Because the rules are known, so is the probability of every next item given a history, and with it the best ranking anyone could
give.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lares_pl.atomic_io import write_text
from lares_pl.errors import LaresError


class Network(NamedTuple):
    """The fixed rules of a process."""

    following: np.ndarray  # [lines, stations]: the station after each one on each line
    kind: np.ndarray  # [stations]


@dataclass(frozen=True)
class Process:
    """The generating process.

    Args:
        users: number of sequences.
        stations: number of stations; items 0 … stations - 1.
        kinds: number of kinds; station s is of kind `s % kinds`.
        lines: number of lines; the ticket for line l at kind k is item `stations + k * lines + l`.
        min_length, max_length: lengths of sequences, tickets included, uniform between them.
        noise: probability of any station at all instead of the destination.
        most_hops: rides that find no station of the wanted kind within so many hops end anywhere.
        seed: seed of everything.
    """

    users: int = 12000
    stations: int = 240
    kinds: int = 4
    lines: int = 2
    min_length: int = 12
    max_length: int = 14
    noise: float = 0.05
    most_hops: int = 8
    seed: int = 0

    @property
    def items(self) -> int:
        """Catalogue size: stations and tickets."""
        return self.stations + self.kinds * self.lines

    def network(self) -> Network:
        """The rules."""
        generator = np.random.default_rng((self.seed, 0))
        following = np.stack([generator.permutation(self.stations) for _ in range(self.lines)])
        return Network(following, np.arange(self.stations) % self.kinds)

    def sample(self) -> tuple[np.ndarray, np.ndarray]:
        """Items (from 0) of all users, `[users, max_length]`, and the length of each sequence, `[users]`."""
        generator = np.random.default_rng((self.seed, 1))
        items = generator.integers(0, self.stations, (self.users, self.max_length))  # where nothing else is decided
        line = generator.integers(0, self.lines, (self.users, self.kinds))
        items[:, : self.kinds] = self.stations + np.arange(self.kinds) * self.lines + line
        anywhere = generator.random(items.shape) < self.noise
        for t in range(self.kinds + 2, self.max_length):
            destination, hops = self.ride(items, np.full(self.users, t))
            items[:, t] = np.where((hops == 0) | anywhere[:, t], items[:, t], destination)
        lengths = generator.integers(self.min_length, self.max_length + 1, self.users)
        return items, lengths

    def ride(self, items: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the rules lead after the first `lengths` items of each user.

        Args:
            items: `[users, max_length]`.
            lengths: `[users]`, at least 1.

        Returns:
            The station, `[users]`, and the number of hops to it, `[users]`: 0 where the history decides nothing.
        """
        following, kind = self.network()
        rows = np.arange(len(items))
        decided = lengths > self.kinds + 1
        at = np.where(decided, items[rows, lengths - 1], 0)
        wanted = kind[np.where(decided, items[rows, lengths - 2], 0) % self.stations]
        line = (items[:, : self.kinds] - self.stations) % self.lines
        hops = np.zeros(len(items), dtype=np.int64)
        riding = decided.copy()
        for _ in range(self.most_hops):
            at = np.where(riding, following[line[rows, kind[at]], at], at)
            hops += riding
            riding &= kind[at] != wanted
        return at, np.where(riding, 0, hops)

    def next_item_probabilities(self, items: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Probability of every next item after the first `lengths` items of each user, `[users, items]`; exact."""
        destination, hops = self.ride(items, lengths)
        decided = hops > 0
        probabilities = np.zeros((len(items), self.items))
        probabilities[:, : self.stations] = (np.where(decided, self.noise, 1.0) / self.stations)[:, None]
        probabilities[np.flatnonzero(decided), destination[decided]] += 1 - self.noise
        for kind in range(self.kinds):  # while there are tickets to come
            first = self.stations + kind * self.lines
            probabilities[lengths == kind] = 0.0
            probabilities[lengths == kind, first : first + self.lines] = 1 / self.lines
        return probabilities

    def best_ndcg(self, items: np.ndarray, lengths: np.ndarray, k: int = 10) -> np.ndarray:
        """Expected NDCG@k of each user, over what may come last, of ranking by the true probabilities, `[users]`."""
        best = -np.sort(-self.next_item_probabilities(items, lengths - 1), axis=1)[:, :k]
        expected: np.ndarray = (best / np.log2(np.arange(2, k + 2))).sum(axis=1)
        return expected

    def optimum(self, k: int = 10) -> float:
        """The best possible test NDCG@k: the mean of `best_ndcg` over all users."""
        return float(self.best_ndcg(*self.sample(), k).mean())


def synthetic(output: str = "synthetic.tsv", users: int = 12000, seed: int = 0, overwrite: bool = False) -> None:
    """Write the embedded demonstration data as a table of raw interactions, and say how well it can be ranked.

    Args:
        output: file to write, tab-separated: user_id, item_id, timestamp.
        users: number of users.
        seed: seed of everything.
        overwrite: replace the file if it is there.

    Example:
        lares synthetic --output toy.tsv --users 500
    """
    path = Path(output)
    if path.exists() and not overwrite:
        raise LaresError(f"{path} exists; --overwrite true replaces it, or name another --output")
    process = Process(users=users, seed=seed)
    write_interactions(process, path)
    print(f"wrote {path}; the best possible test NDCG@10 is {process.optimum():.4f}")


def write_interactions(process: Process, path: Path) -> None:
    """Write the sequences of a process as raw interactions; the file appears whole or not at all."""
    items, lengths = process.sample()
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(["user_id", "item_id", "timestamp"])
    for user, (sequence, length) in enumerate(zip(items.tolist(), lengths.tolist(), strict=True)):
        writer.writerows((f"u{user}", f"i{item}", time) for time, item in enumerate(sequence[:length]))
    write_text(path, text.getvalue())
