"""Instances: target positions in the flat array of all items; the history of one is the items of the same user before it.

They are numbered, and a batch computes the ones it needs: no process holds a list of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np

Split = Literal["validation", "test", "next"]


@dataclass(frozen=True)
class HistorySpans:
    """The spans of some instances' histories in the flat array of items; each target follows its span.

    Args:
        users: user index of each, `[B]`.
        starts: position of the user's first item, `[B]`.
        ends: position of the target; the history is `items[start:end]`, `[B]`.
    """

    users: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)


class Instances(ABC):
    """Instances 0 … n - 1 of a split.

    Attributes:
        has_target: False if the history is a user's whole sequence and nothing follows it.
    """

    has_target = True

    @abstractmethod
    def __len__(self) -> int:
        """Number of instances n."""

    @abstractmethod
    def take(self, numbers: np.ndarray) -> HistorySpans:
        """Some of them, `[B]`."""

    def all(self) -> HistorySpans:
        """All of them; for small data."""
        return self.take(np.arange(len(self)))


@dataclass(frozen=True)
class TrainingInstances(Instances):
    """Every training item of a user from the second on, with all items before it (docs/method.md, "Instances").

    Args:
        offsets: offset of each user's items, and the total, `[users + 1]`.
        ends: end of each user's training items, `[users]`.
        kept: numbers of the instances to use, ascending; None uses all.
    """

    offsets: np.ndarray
    ends: np.ndarray
    kept: np.ndarray | None = None

    @cached_property
    def firsts(self) -> np.ndarray:
        """Number of the first instance of each user, and the total, `[users + 1]`."""
        counts = np.maximum(self.ends - self.offsets[:-1] - 1, 0)
        return np.concatenate([[0], counts.cumsum()])

    def __len__(self) -> int:
        return int(self.firsts[-1]) if self.kept is None else len(self.kept)

    def take(self, numbers: np.ndarray) -> HistorySpans:
        """Some of them, `[B]`."""
        numbers = numbers if self.kept is None else self.kept[numbers].astype(np.int64)
        users = np.searchsorted(self.firsts, numbers, side="right") - 1
        starts = self.offsets[users]
        return HistorySpans(users, starts, starts + 1 + numbers - self.firsts[users])

    def keeping(self, kept: np.ndarray) -> TrainingInstances:
        """Return the instances selected by a mask over all of them."""
        numbers = np.flatnonzero(kept)
        return replace(self, kept=numbers.astype(np.uint32) if len(kept) < 1 << 32 else numbers)


@dataclass(frozen=True)
class HeldOut(Instances):
    """Targets in a part of each user's items, all that have an item before them or only the first item of the part.

    Args:
        offsets: offset of each user's items, and the total, `[users + 1]`.
        begins, ends: the part of each user, `[users]`.
        first_only: whether only the first item of the part is a target; there is none if it is the user's first item.
        has_target: False if the part lies after a user's items, so that nothing is known of the target.
        users: the users with a target, ascending, `[n]`; computed.
    """

    offsets: np.ndarray
    begins: np.ndarray
    ends: np.ndarray
    first_only: bool
    has_target: bool = True
    users: np.ndarray = field(init=False)
    _firsts: np.ndarray = field(init=False)  # number of the first target of each of these users, and the total

    def __post_init__(self) -> None:
        starts = self.offsets[:-1]
        counts = np.maximum(self.ends - np.maximum(self.begins, starts + 1), 0)
        if self.first_only:
            counts = np.minimum(counts, self.begins > starts)
        object.__setattr__(self, "users", np.flatnonzero(counts))
        object.__setattr__(self, "_firsts", np.concatenate([[0], counts[self.users].cumsum(dtype=np.int64)]))

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def take(self, numbers: np.ndarray) -> HistorySpans:
        """Some of them, `[B]`."""
        row = np.searchsorted(self._firsts, numbers, side="right") - 1
        users = self.users[row]
        starts = self.offsets[users]
        return HistorySpans(users, starts, np.maximum(self.begins[users], starts + 1) + numbers - self._firsts[row])


def ranges(starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Concatenate the ranges [start, end); also return their lengths."""
    lengths = ends - starts
    shift = starts - np.concatenate([[0], lengths.cumsum()])[:-1]
    return np.arange(lengths.sum()) + np.repeat(shift, lengths), lengths
