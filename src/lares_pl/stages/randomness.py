"""The randomness of training: a function of seed, process, epoch and batch alone.

Nothing of it has to be stored for a resumed run to go on as if it had never stopped, on any number of processes.
"""

from __future__ import annotations

import numpy as np
import torch

from lares_pl.model.recurrence import RandomNoise


class BatchRandomness:
    """The generators that an update draws from.

    Args:
        seed: of the run, the same on all processes.
        rank: number of this process.
        device: where initial states are drawn.

    Attributes:
        draws: for depths and step indices, the same on all processes.
        noise: for initial states, of this process alone.
    """

    def __init__(self, seed: int, rank: int, device: torch.device) -> None:
        self.seed = seed
        self.rank = rank
        self.draws = torch.Generator()
        self._of_noise = torch.Generator(device)
        self.noise = RandomNoise(self._of_noise)

    def begin(self, epoch: int, batch: int) -> None:
        """Set all generators, dropout's among them (PyTorch's global ones), for this batch."""
        self.draws.manual_seed(self._mixed(epoch, batch, 0))
        self._of_noise.manual_seed(self._mixed(epoch, batch, 1, self.rank))
        torch.manual_seed(self._mixed(epoch, batch, 2, self.rank))

    def _mixed(self, *numbers: int) -> int:
        (state,) = np.random.SeedSequence((self.seed, *numbers)).generate_state(1, np.uint64)
        return int(state) >> 1
