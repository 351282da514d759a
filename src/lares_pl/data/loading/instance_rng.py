"""Random numbers per instance, independent of the process and the batch that serve the instance."""

from __future__ import annotations

import numpy as np


class InstanceDraws:
    """Uniform numbers as a function of (seed, epoch, instance).

    Args:
        seed: of the run.
        epoch: number of the epoch.
    """

    def __init__(self, seed: int, epoch: int) -> None:
        self._key = np.random.SeedSequence((seed, epoch)).generate_state(2, np.uint64)

    def uniform(self, instances: np.ndarray, purpose: int = 0) -> np.ndarray:
        """Return one number in [0, 1) for each instance.

        Args:
            instances: indices, `[n]`.
            purpose: different purposes give independent numbers.
        """
        bits = mix(mix(instances.astype(np.uint64) + self._key[0]) + self._key[1] + np.uint64(purpose))
        return (bits >> np.uint64(11)) * 2.0**-53


def mix(x: np.ndarray) -> np.ndarray:
    """splitmix64 (Steele, Lea, Flood 2014) of `[n]` uint64."""
    x = x * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed
