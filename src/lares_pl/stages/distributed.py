"""Collectives that make an update independent of the number of processes; in a single process they do nothing.

Processes that read different rows of a batch average their gradients (DDP does; `average_gradients` if the catalogue is
sharded). The result is the mean over all rows if each process weights its own mean by its share of the rows; a loss that
compares rows with each other (TLA, SLA) needs the rows of all processes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from lares_pl.losses.alignment import GatheredRows
from lares_pl.model.sharding import is_sharded, local

Group = dist.ProcessGroup | None  # the processes that read different rows; None: all


def alone(group: Group = None) -> bool:
    """Whether no other process reads rows of a batch."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1


def row_weight(rows: int, device: torch.device, group: Group = None) -> Tensor | float:
    """Return `processes * rows / (rows of all processes)`, the weight of this process's mean.

    Args:
        rows: number of rows of this process.
        device: device of the collective.
        group: the processes that read different rows.
    """
    if alone(group):
        return 1.0
    total = torch.full((), float(rows), device=device)
    dist.all_reduce(total, group=group)
    return dist.get_world_size(group) * rows / total


def sum_of_all(x: Tensor, group: Group = None) -> Tensor:
    """Add a tensor up over all processes, without gradient.

    Args:
        x: of the same shape on all processes.
        group: the processes that read different rows.
    """
    if alone(group):
        return x
    total = x.detach().clone()
    dist.all_reduce(total, group=group)
    return total


def all_gather_rows(x: Tensor, most: int, group: Group = None) -> GatheredRows:
    """Gather the rows of all processes, in order of rank; gradients flow back to the process of each row.

    No process asks how many rows the others have, for which it would wait: each pads its own to the same number.

    Args:
        x: `[R, d]`; processes may have different R.
        most: upper bound of R, the same on all processes.
        group: the processes that read different rows.

    Returns:
        `[processes * most, d]`, and which of these rows are not padding.
    """
    marked = F.pad(F.pad(x, (0, 1), value=1), (0, 0, 0, most - len(x)))  # the last column is 1, in padding 0
    of_all: Tensor = _OfAll.apply(marked, group)  # type: ignore[no-untyped-call]
    rows = of_all.flatten(0, 1)
    return GatheredRows(rows[:, :-1], rows[:, -1] > 0)


class _OfAll(torch.autograd.Function):
    """Stack `[*]` of each process: `[processes, *]`. (PyTorch's own fails in the backward pass in gloo subgroups.)"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        of_all = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(of_all, group=ctx.group)
        return of_all[dist.get_rank(ctx.group)], None


# ---------------------------------------------------------------- with a sharded catalogue


def share_values(module: nn.Module) -> None:
    """Broadcast parameters and buffers of the first process, except sharded ones, which are consistent already."""
    for value in (*module.parameters(), *module.buffers()):
        if not is_sharded(value):
            dist.broadcast(value.data, src=0)


def average_gradients(parameters: Iterable[Tensor], mesh: DeviceMesh) -> None:
    """Average gradients over the processes that hold the same parameter.

    Rows of a sharded table are averaged over the data-parallel processes. All other parameters are averaged over all processes:
    those that share a table have the same gradients up to rounding, and averaging keeps their weights equal.

    Args:
        parameters: of an optimiser; the same ones have a gradient on all processes.
        mesh: with dimensions `data_parallel` and `tensor_parallel`.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    replicas = mesh["data_parallel"]
    if replicas.size() > 1:
        for gradient in filter(is_sharded, gradients):
            dist.all_reduce(local(gradient), group=replicas.get_group())
            local(gradient).div_(replicas.size())
    plain = [gradient for gradient in gradients if not is_sharded(gradient)]
    if plain:
        flat = torch.cat([gradient.flatten() for gradient in plain])
        dist.all_reduce(flat)
        parts = flat.div_(mesh.size()).split([gradient.numel() for gradient in plain])
        for gradient, part in zip(plain, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def total_norm(gradients: Iterable[Tensor]) -> Tensor:
    """Return the norm of all gradients, including all rows of sharded tables; the same on all processes."""
    kinds: dict[bool, list[Tensor]] = {}
    for gradient in gradients:
        kinds.setdefault(is_sharded(gradient), []).append(gradient)
    norms = [get_total_norm(kind) for kind in kinds.values()]
    whole: list[Tensor] = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(whole))
    return norm


def clip(parameters: Iterable[Tensor], most: float, by_norm: bool) -> None:
    """Clip gradients in place, some of which may be sharded.

    Args:
        parameters: the parameters.
        most: maximum norm of all gradients together, or maximum absolute value.
        by_norm: whether `most` is the norm.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    mine = [local(gradient) for gradient in gradients]
    if not mine:
        return  # of an update that is left out
    if by_norm:
        torch._foreach_mul_(mine, (most / (total_norm(gradients) + 1e-6)).clamp(max=1))
    else:
        torch._foreach_clamp_min_(mine, -most)
        torch._foreach_clamp_max_(mine, most)
