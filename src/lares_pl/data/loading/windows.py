"""Training on whole sequences: windows of a user's training items that are read once and predict an item at each position.

A causal model's state at a position is the user state of the history that ends there, so that one pass over a window serves
as many training instances as it has positions (docs/method.md, "Instances", without reading each prefix as a separate history).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lares_pl.data.dataset.prepared import SequenceDataset


@dataclass(frozen=True)
class Windows:
    """Windows of at most L training items; each training instance is predicted in exactly one of them.

    The instances of a window are consecutive, and the target of the last one directly follows the items that are read.

    Args:
        starts: start of each window in the flat array of items, `[w]`.
        ends: its end, the position of its last target, `[w]`.
        firsts: its first training instance, `[w]`.
        counts: number of instances it predicts, `[w]`.
    """

    starts: np.ndarray
    ends: np.ndarray
    firsts: np.ndarray
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def take(self, chosen: np.ndarray) -> Windows:
        """Select by mask or index."""
        return Windows(self.starts[chosen], self.ends[chosen], self.firsts[chosen], self.counts[chosen])

    def keeping(self, kept: np.ndarray) -> Windows:
        """The windows with a kept instance, each read up to its last kept one.

        Args:
            kept: mask over all training instances.
        """
        numbers = np.flatnonzero(kept)
        behind = np.searchsorted(numbers, self.firsts + self.counts)  # kept instances up to the end of each window
        some = behind > np.searchsorted(numbers, self.firsts)
        windows = self.take(some)
        surplus = windows.firsts + windows.counts - 1 - numbers[behind[some] - 1]
        return replace(windows, ends=windows.ends - surplus, counts=windows.counts - surplus)


def training_windows(data: SequenceDataset, max_length: int, overlap: int | None = None) -> Windows:
    """Split the training items of every user into windows of at most `max_length`.

    A user with at most `max_length + 1` training items has one window, whose positions see exactly the histories of the
    prefix instances. Later items are in further windows, in which a target is predicted only with at least `overlap` items
    before it.

    Args:
        data: the sequences.
        max_length: maximum history length L.
        overlap: minimum number of items that a target of a further window is predicted from, 1 … L. None: half of
            `max_length` (rounded up); with `max_length` each further window predicts one target, from exactly the history of
            its prefix instance.

    Raises:
        ValueError: if `overlap` is not within its range.
    """
    if overlap is not None and not 1 <= overlap <= max_length:
        raise ValueError(f"overlap must be within 1 … {max_length}, got {overlap}")
    firsts = data.training_instances.firsts
    counts = np.diff(firsts)
    users = np.flatnonzero(counts)
    firsts, counts = firsts[users], counts[users]
    starts = data.offsets[:-1][users]

    fresh = max_length - (-(-max_length // 2) if overlap is None else overlap) + 1  # targets of a further window
    further = -(-np.maximum(counts - max_length, 0) // fresh)
    user = np.repeat(np.arange(len(users)), 1 + further)
    number = np.arange(len(user)) - np.repeat(np.concatenate([[0], (1 + further).cumsum()])[:-1], 1 + further)
    done = np.minimum(counts[user], max_length + number * fresh)  # targets up to the end of each window
    before = np.where(number == 0, 0, np.minimum(counts[user], max_length + (number - 1) * fresh))
    ends = starts[user] + done
    return Windows(np.maximum(starts[user], ends - max_length), ends, firsts[user] + before, done - before)
