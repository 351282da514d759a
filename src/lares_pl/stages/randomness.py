"""The randomness of training: a function of seed, rank, epoch and batch only.

A resumed run therefore continues exactly, on any number of processes, without stored generator states.
"""

from __future__ import annotations

import numpy as np
import torch

from lares_pl.model.recurrence import RandomNoise


class BatchRandomness:
    """The random generators of an update.

    Args:
        seed: the seed of the run, the same on all processes.
        rank: the rank of this process.
        device: the device on which initial states are drawn.

    Attributes:
        draws: for depths and step indices, the same on all processes.
        noise: for initial states, different on each process.
        of_noise: its generator.
    """

    def __init__(self, seed: int, rank: int, device: torch.device) -> None:
        self.seed = seed
        self.rank = rank
        self.device = device
        self.draws = torch.Generator()
        self.of_noise = torch.Generator(device)
        self.noise = RandomNoise(self.of_noise)

    def begin(self, epoch: int, batch: int) -> None:
        """Seed all generators for this batch, including PyTorch's global ones, which dropout uses."""
        self.draws.manual_seed(self._mixed(epoch, batch, 0))
        self.of_noise.manual_seed(self._mixed(epoch, batch, 1, self.rank))
        self._seed_default(self._mixed(epoch, batch, 2, self.rank))

    def _seed_default(self, seed: int) -> None:
        """Seed the generators that dropout may use; `torch.manual_seed` takes a millisecond for those of absent devices."""
        if self.device.type not in ("cpu", "cuda"):
            torch.manual_seed(seed)
            return
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _mixed(self, *numbers: int) -> int:
        (state,) = np.random.SeedSequence((self.seed, *numbers)).generate_state(1, np.uint64)
        return int(state) >> 1
