"""Same-target partners: another training instance with the same target, for trajectory-level alignment."""

from __future__ import annotations

import numpy as np

from lares_pl.data.dataset.instances import HistorySpans
from lares_pl.data.dataset.prepared import SequenceDataset
from lares_pl.data.loading.instance_rng import InstanceDraws


class SameTargetPartners:
    """Draws, for a training instance, another one with the same target, uniformly; itself if there is no other.

    Args:
        dataset: the sequences.
    """

    def __init__(self, dataset: SequenceDataset) -> None:
        self._dataset = dataset

    def draw(self, spans: HistorySpans, draws: InstanceDraws, instances: np.ndarray) -> HistorySpans:
        """Draw a partner for each instance, `[B]`.

        Args:
            spans: the instances, `[B]`.
            draws: the random numbers.
            instances: their numbers, `[B]`.
        """
        flat = self._dataset.flat
        targets = flat.items[spans.ends]
        firsts = flat.of_item[targets]
        others = flat.of_item[targets + 1] - firsts - 1
        number = np.floor(draws.uniform(instances) * others).astype(np.int64)
        # the n-th of the others: positions ascend, so those from its own on are one further
        places = flat.by_target[firsts + number].astype(np.int64)
        further = flat.by_target[firsts + np.minimum(number + 1, others)].astype(np.int64)
        ends = np.where(others == 0, spans.ends, np.where(places < spans.ends, places, further))
        users = np.searchsorted(flat.offsets, ends, side="right") - 1
        return HistorySpans(users, flat.offsets[users], ends)
