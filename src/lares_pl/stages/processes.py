"""What makes a loss independent of how many processes share a batch; without processes it does nothing.

DDP averages the gradients of all processes. A mean over the rows of all of them comes out if each process weights its own mean
with its share of the rows; a loss that compares rows with each other (TLA, SLA) needs the rows of all.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.nn.functional import all_gather


def _alone() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1


def share_of_rows(rows: int, device: torch.device) -> Tensor | float:
    """`world * rows / (rows of all processes)`: the weight of this process's mean.

    Args:
        rows: number of rows here.
        device: where the processes exchange numbers.
    """
    if _alone():
        return 1.0
    total = torch.tensor(float(rows), device=device)
    dist.all_reduce(total)
    return dist.get_world_size() * rows / total


def rows_of_all(x: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks; gradients flow back to the process they came from.

    Args:
        x: `[R, d]`; processes may have different R.
    """
    if _alone():
        return x
    counts = [torch.zeros((), dtype=torch.int64, device=x.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor(len(x), device=x.device))
    sizes = [int(count) for count in counts]
    padded = F.pad(x, (0, 0, 0, max(sizes) - len(x)))
    return torch.cat([part[:size] for part, size in zip(all_gather(padded), sizes, strict=True)])
