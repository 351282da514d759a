"""The data of `lares demo`: trips whose next stop is several hops away, with the best possible NDCG@10.

Two lines join the stations of a network; each leads from every station to one other. Stations are of eight kinds, and kinds
form four groups. The first items of a user are tickets, one for each kind: by which line this user leaves stations of that
kind. Then come the stations visited. From the last one the user travels on, hop by hop, by the line of the ticket for the kind
of the station just reached, until a station of the same group as the one visited before the last: that is the next item.
Stations on the way are not recorded. With a small probability the user goes anywhere instead, and always where no such station
comes within `most_hops`.

The number of hops differs between users and visits. A table of destinations needs an entry for each station, group and set of
tickets on the way. A block that makes one hop, and stays where the group fits, needs the two lines only, and is applied as
often as there are hops. So a model that repeats its block has less to learn from the same users.

As the rules are known, so is the probability of every next item given a history, and with it the best ranking there is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lares_pl.data.synthetic import best_ndcg


@dataclass(frozen=True)
class Trips:
    """The generating process.

    Args:
        users: number of sequences.
        stations: number of stations; items 0 … stations - 1. Station s is of kind `s % kinds`.
        kinds: number of kinds; the ticket for line l at kind k is item `stations + k * lines + l`.
        groups: number of groups; kind k is of group `k % groups`. Must divide `kinds`.
        lines: number of lines.
        min_visits, max_visits: stations in a sequence, uniform between them.
        noise: probability of any station at all instead of the destination.
        most_hops: trips that find no station of the wanted group within so many hops end anywhere.
        seed: seed of everything.
    """

    users: int = 3000
    stations: int = 80
    kinds: int = 8
    groups: int = 4
    lines: int = 2
    min_visits: int = 6
    max_visits: int = 9
    noise: float = 0.05
    most_hops: int = 8
    seed: int = 0

    @property
    def items(self) -> int:
        """Catalogue size: stations and tickets."""
        return self.stations + self.kinds * self.lines

    def following(self) -> np.ndarray:
        """The station after each one on each line, `[lines, stations]`."""
        generator = np.random.default_rng((self.seed, 0))
        return np.stack([generator.permutation(self.stations) for _ in range(self.lines)])

    def sample(self) -> tuple[np.ndarray, np.ndarray]:
        """Items (from 0) of all users, `[users, kinds + max_visits]`, and the length of each sequence, `[users]`."""
        generator = np.random.default_rng((self.seed, 1))
        length = self.kinds + self.max_visits
        items = generator.integers(0, self.stations, (self.users, length))  # where nothing else is decided
        line = generator.integers(0, self.lines, (self.users, self.kinds))
        items[:, : self.kinds] = self.stations + np.arange(self.kinds) * self.lines + line
        anywhere = generator.random(items.shape) < self.noise
        for t in range(self.kinds + 2, length):
            destination, hops = self.travel(items, np.full(self.users, t))
            items[:, t] = np.where((hops == 0) | anywhere[:, t], items[:, t], destination)
        lengths = self.kinds + generator.integers(self.min_visits, self.max_visits + 1, self.users)
        return items, lengths

    def travel(self, items: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the rules lead after the first `lengths` items of each user.

        Args:
            items: `[users, T]`.
            lengths: `[users]`, at least 1.

        Returns:
            The station, `[users]`, and the number of hops to it, `[users]`: 0 where the history decides nothing.
        """
        following, rows = self.following(), np.arange(len(items))
        travelling = lengths > self.kinds + 1
        at = np.where(travelling, items[rows, lengths - 1], 0)
        wanted = np.where(travelling, items[rows, lengths - 2], 0) % self.groups
        line = (items[:, : self.kinds] - self.stations) % self.lines
        hops = np.zeros(len(items), dtype=np.int64)
        for _ in range(self.most_hops):
            at = np.where(travelling, following[line[rows, at % self.kinds], at], at)
            hops += travelling
            travelling &= at % self.groups != wanted
        return at, np.where(travelling, 0, hops)

    def next_item_probabilities(self, items: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Probability of every next item after the first `lengths` items of each user, `[users, items]`; exact.

        Args:
            items: `[users, T]`.
            lengths: `[users]`, at least the number of kinds: after the tickets.
        """
        destination, hops = self.travel(items, lengths)
        decided = hops > 0
        probabilities = np.zeros((len(items), self.items))
        probabilities[:, : self.stations] = (np.where(decided, self.noise, 1.0) / self.stations)[:, None]
        probabilities[np.flatnonzero(decided), destination[decided]] += 1 - self.noise
        return probabilities

    def best_ndcg(self, items: np.ndarray, lengths: np.ndarray, k: int = 10) -> np.ndarray:
        """Expected NDCG@k of each user, over what may come last, of ranking by the true probabilities, `[users]`."""
        return best_ndcg(self.next_item_probabilities(items, lengths - 1), k)
