"""The embedded demonstration data: sequences from a known process, with the best possible NDCG@10.

Every user follows one of R hidden routes through K topics. At each step the user stays in the topic or moves on along
the route (taste drifts). Within a topic the next item is a fixed successor of the last item, and *which* of its
successors depends on the item before (its parity): a second-order rule. Moving on lands on the entrance of the next
topic that belongs to the last item. With a small probability anything happens. Telling the routes apart takes the whole
history, using the successor rule takes the last two items.

Because the process is known, so is the probability of every next item given a history (a mixture over routes, weighted by
how well each explains the history), and with it the best ranking anyone could give.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from lares_pl.atomic_io import write_text
from lares_pl.errors import LaresError


def best_ndcg(probabilities: np.ndarray, k: int = 10) -> np.ndarray:
    """Expected NDCG@k, over what may come next, of ranking by the true probabilities.

    Args:
        probabilities: of every next item, `[users, items]`.
        k: length of the lists.

    Returns:
        `[users]`.
    """
    best = -np.sort(-probabilities, axis=1)[:, :k]
    expected: np.ndarray = (best / np.log2(np.arange(2, k + 2))).sum(axis=1)
    return expected


@dataclass(frozen=True)
class Process:
    """The generating process.

    Args:
        users: number of sequences.
        topics: number of topics (K).
        topic_size: items in each topic.
        routes: number of hidden routes (R).
        min_length, max_length: lengths of sequences, uniform between them.
        move: probability of moving on to the next topic of the route.
        noise: probability of any item at all instead.
        seed: seed of everything.
    """

    users: int = 3000
    topics: int = 12
    topic_size: int = 20
    routes: int = 4
    min_length: int = 8
    max_length: int = 21
    move: float = 0.3
    noise: float = 0.1
    seed: int = 0

    @property
    def items(self) -> int:
        """Catalogue size."""
        return self.topics * self.topic_size

    def tables(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rules: successors `[2, items]` by parity of the item before, next topic `[R, K]`, entrances `[K, items]`."""
        generator = np.random.default_rng((self.seed, 0))
        base = np.arange(self.topics)[:, None] * self.topic_size
        successors = np.stack(
            [(base + np.stack([generator.permutation(self.topic_size) for _ in range(self.topics)])).ravel() for _ in range(2)]
        )
        next_topic = np.empty((self.routes, self.topics), dtype=np.int64)
        for route in range(self.routes):
            around = generator.permutation(self.topics)
            next_topic[route, around] = np.roll(around, -1)
        entrances = base + generator.integers(0, self.topic_size, (self.topics, self.items))
        return successors, next_topic, entrances

    def sample(self) -> tuple[np.ndarray, np.ndarray]:
        """Items (from 0) of all users, `[users, max_length]`, and the length of each sequence, `[users]`."""
        generator = np.random.default_rng((self.seed, 1))
        successors, next_topic, entrances = self.tables()
        items = np.empty((self.users, self.max_length), dtype=np.int64)
        route = generator.integers(0, self.routes, self.users)
        items[:, 0] = generator.integers(0, self.items, self.users)
        for t in range(1, self.max_length):
            last = items[:, t - 1]
            before = items[:, t - 2] if t > 1 else np.zeros_like(last)
            stays = successors[before % 2, last]
            moves = entrances[next_topic[route, last // self.topic_size], last]
            following = np.where(generator.random(self.users) < self.move, moves, stays)
            anything = generator.integers(0, self.items, self.users)
            items[:, t] = np.where(generator.random(self.users) < self.noise, anything, following)
        lengths = generator.integers(self.min_length, self.max_length + 1, self.users)
        return items, lengths

    def next_item_probabilities(self, items: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Probability of every next item after the first `lengths` items of each user, `[users, items]`.

        Bayes' rule over the hidden routes; exact.
        """
        log_posterior = np.zeros((len(items), self.routes))
        for t in range(1, items.shape[1]):
            by_route = self._given_route(items, np.full(len(items), t))  # [users, R, 2] candidates
            likelihood = self._likelihood(by_route, items[:, t])
            log_posterior += np.where((t < lengths)[:, None], np.log(likelihood), 0.0)
        posterior = np.exp(log_posterior - log_posterior.max(axis=1, keepdims=True))
        posterior /= posterior.sum(axis=1, keepdims=True)
        candidates = self._given_route(items, lengths)
        probabilities = np.full((len(items), self.items), self.noise / self.items)
        rows = np.arange(len(items))
        for route in range(self.routes):
            stays, moves = candidates[:, route, 0], candidates[:, route, 1]
            np.add.at(probabilities, (rows, stays), posterior[:, route] * (1 - self.noise) * (1 - self.move))
            np.add.at(probabilities, (rows, moves), posterior[:, route] * (1 - self.noise) * self.move)
        return probabilities

    def _given_route(self, items: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """For each user and route the item that staying leads to and the one that moving on leads to, `[users, R, 2]`."""
        successors, next_topic, entrances = self.tables()
        rows = np.arange(len(items))
        last = items[rows, lengths - 1]
        before = np.where(lengths > 1, items[rows, np.maximum(lengths - 2, 0)], 0)
        stays = np.broadcast_to(successors[before % 2, last][:, None], (len(items), self.routes))
        moves = entrances[next_topic[:, last // self.topic_size].T, last[:, None]]
        return np.stack([stays, moves], axis=2)

    def _likelihood(self, candidates: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """Probability of the chosen item under each route, `[users, R]`."""
        hit = candidates == chosen[:, None, None]
        by_rule = hit[..., 0] * (1 - self.move) + hit[..., 1] * self.move
        likelihood: np.ndarray = self.noise / self.items + (1 - self.noise) * by_rule
        return likelihood

    def optimum(self, k: int = 10) -> float:
        """Expected NDCG@k, over what may come last, of ranking by the true probabilities; averaged over users."""
        items, lengths = self.sample()
        probabilities = self.next_item_probabilities(items, lengths - 1)
        return float(best_ndcg(probabilities, k).mean())


def synthetic(output: str = "synthetic.tsv", users: int = 3000, seed: int = 0, overwrite: bool = False) -> None:
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


class Sampled(Protocol):
    """A process that sequences come from."""

    def sample(self) -> tuple[np.ndarray, np.ndarray]:
        """Items (from 0) of all users, `[users, T]`, and the length of each sequence, `[users]`."""


def write_interactions(process: Sampled, path: Path) -> None:
    """Write the sequences of a process as raw interactions; the file appears whole or not at all."""
    items, lengths = process.sample()
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(["user_id", "item_id", "timestamp"])
    for user, (sequence, length) in enumerate(zip(items.tolist(), lengths.tolist(), strict=True)):
        writer.writerows((f"u{user}", f"i{item}", time) for time, item in enumerate(sequence[:length]))
    write_text(path, text.getvalue())
