"""Tables with a row an item: whole, or by rows over processes.

A sharded table is a `DTensor` whose rows lie with the processes of a mesh, `ceil((N + 1) / processes)` each. What looks rows up
or scores against them asks `rows_of` what this process holds of a table, whole or not, and says where processes must agree;
for a whole table that is nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lares_pl.errors import LaresError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class Rows:
    """The rows of a table that this process holds: all of them.

    Args:
        vectors: `[n, d]`.
    """

    vectors: Tensor

    #: whether these are the rows of all items
    complete = True

    @property
    def start(self) -> int:
        """Item of the first row held here."""
        return 0

    @property
    def most(self) -> int:
        """Rows of the process that holds the most: what decides tiles, which must be the same everywhere."""
        return len(self.vectors)

    def local_index(self, items: Tensor) -> Tensor:
        """Rows of `vectors` for items `[*]`; any row for items held elsewhere."""
        return items

    def mask_local(self, values: Tensor, items: Tensor) -> Tensor:
        """Values `[*items.shape]` or `[*items.shape, d]` of items held here, 0 for those held elsewhere."""
        return values

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """Sum over the processes that share the table; in place."""
        return values

    def all_reduce_max(self, values: Tensor) -> Tensor:
        """Maximum over the processes that share the table; in place."""
        return values

    def all_gather(self, values: Tensor) -> Tensor:
        """Values of all processes side by side, `[R, k]` -> `[R, processes * k]`."""
        return values

    def look_up(self, items: Tensor, padding_idx: int | None = None) -> Tensor:
        """Items `[*]` -> their rows `[*, d]`, the same on all processes; the row of `padding_idx` gets no gradient."""
        return F.embedding(items, self.vectors, padding_idx)


@dataclass(frozen=True)
class Slice(Rows):
    """Some rows of a table that several processes share.

    Args:
        vectors: those of this process, `[n, d]`.
        number: number of this process among those that share the table.
        size: rows of each process but the last ones, which may have fewer.
        group: the processes.
    """

    number: int
    size: int
    group: dist.ProcessGroup
    complete = False

    @property
    def start(self) -> int:
        return self.number * self.size

    @property
    def most(self) -> int:
        return self.size

    def _here(self, items: Tensor) -> Tensor:
        return (items >= self.start) & (items < self.start + len(self.vectors))

    def local_index(self, items: Tensor) -> Tensor:
        return torch.where(self._here(items), items - self.start, 0)

    def mask_local(self, values: Tensor, items: Tensor) -> Tensor:
        here = self._here(items)
        return torch.where(here if values.ndim == here.ndim else here[..., None], values, 0)

    def all_reduce_sum(self, values: Tensor) -> Tensor:
        dist.all_reduce(values, group=self.group)
        return values

    def all_reduce_max(self, values: Tensor) -> Tensor:
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self.group)
        return values

    def all_gather(self, values: Tensor) -> Tensor:
        parts = [torch.empty_like(values) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(parts, values.contiguous(), group=self.group)
        return torch.cat(parts, dim=-1)

    def look_up(self, items: Tensor, padding_idx: int | None = None) -> Tensor:
        padding_row = padding_idx if self.start == 0 else None
        mine = self.mask_local(F.embedding(self.local_index(items), self.vectors, padding_row), items)
        everywhere: Tensor = _TotalForAll.apply(mine, self)  # type: ignore[no-untyped-call]
        return everywhere


class _TotalForAll(torch.autograd.Function):
    """The sum of what each process has, used by all of them alike: its gradient is each one's gradient, unchanged."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, rows: Slice) -> Tensor:
        return rows.all_reduce_sum(mine.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def is_sharded(table: Tensor) -> bool:
    """Whether a tensor is a DTensor; asked without importing DTensor, which takes a second."""
    return hasattr(table, "to_local")


def local(table: Tensor) -> Tensor:
    """What this process holds of a tensor: all of a plain one; gradients flow through."""
    mine: Tensor = table.to_local() if is_sharded(table) else table  # type: ignore[attr-defined]
    return mine


def rows_of(table: Tensor) -> Rows:
    """What this process holds of a table `[N + 1, d]`, whole or sharded; gradients flow through."""
    if not is_sharded(table):
        return Rows(table)
    mesh: DeviceMesh = table.device_mesh  # type: ignore[attr-defined]
    return Slice(local(table), mesh.get_local_rank(), -(-len(table) // mesh.size()), mesh.get_group())


def sharded(table: Tensor, mesh: DeviceMesh) -> Tensor:
    """A whole table by rows over the processes of a mesh; its values are those of the first of all processes.

    Only this process's rows (and, for the moment, those of one other) go to its device.

    Args:
        table: `[N + 1, *]`, on any device; of the same shape everywhere.
        mesh: of one dimension.

    Returns:
        A DTensor; a parameter where the table is one.

    Raises:
        LaresError: if a process would be left without rows.
    """
    from torch.distributed.tensor import DTensor, Shard

    size = -(-len(table) // mesh.size())
    if (mesh.size() - 1) * size >= len(table):
        raise LaresError(
            f"a catalogue of {len(table) - 1:,} items can't be sharded over {mesh.size()} processes: one would hold no item. "
            "Lower trainer.strategy.tensor_parallel_size"
        )
    mine = table[:0]
    for number, rows in enumerate(table.detach().split(size)):
        rows = rows.to(mesh.device_type, copy=True)
        dist.broadcast(rows, src=0)
        if number == mesh.get_local_rank():
            mine = rows
    whole = DTensor.from_local(mine, mesh, [Shard(0)], run_check=False, shape=table.shape, stride=table.stride())
    return nn.Parameter(whole, table.requires_grad) if isinstance(table, nn.Parameter) else whole
