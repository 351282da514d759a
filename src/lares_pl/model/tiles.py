"""Scores of states against the catalogue, one tile at a time: how large a tile is, and what stands in it.

A tile is never kept longer than it is needed, so that memory does not grow with rows times catalogue.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lares_pl.data.loading.item_pairs import ItemPairs
from lares_pl.model.device import without_autocast
from lares_pl.model.sharding import Rows

CHUNK = 1 << 22  # scores held at a time (float32: 16 MiB); on a CPU at least those of 64 rows
DEVICE_CHUNK = 1 << 26  # the same in losses on other devices (256 MiB), where few large operations are what is fast


def slices(count: int, step: int) -> Iterator[slice]:
    """`count` things in runs of `step`."""
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def tile_shape(states: Tensor, classes: int) -> tuple[int, int]:
    """Rows and classes of one tile of scores against so many classes.

    On a CPU a tile fits the second-level cache (at most 1 MiB of float32: the products run several times faster than into
    memory); elsewhere it is as large as memory allows, so that few kernels are launched.
    """
    if states.device.type == "cpu":
        return max(64, min(256, CHUNK // classes)), 1024
    return rows_of_all_classes(states, classes), classes


def ranking_tile_shape(states: Tensor, classes: int) -> tuple[int, int]:
    """As `tile_shape`, but one tile is all classes where 64 rows of them fit: excluded items are not sorted by tile then."""
    if states.device.type == "cpu" and classes <= 4096:
        return min(256, 64 * (4096 // classes)), classes
    return tile_shape(states, classes)


def rows_of_all_classes(states: Tensor, classes: int) -> int:
    """Rows of a tile of all classes."""
    return max(1, (CHUNK if states.device.type == "cpu" else DEVICE_CHUNK) // classes)


def upcast(x: Tensor) -> Tensor:
    """At least float32."""
    return x if x.dtype == torch.float64 else x.float()


@dataclass(frozen=True)
class Repeats:
    """The learned score change of items that a row has read already.

    Args:
        pairs: what each row has read.
        bias: the change, a scalar.
    """

    pairs: ItemPairs
    bias: Tensor

    def scaled(self, factor: float) -> Repeats:
        """For scores that are multiplied by `factor`."""
        return replace(self, bias=self.bias * factor)


def tile_of(states: Tensor, table: Rows, part: slice, repeats: Repeats | None) -> tuple[Tensor, ItemPairs | None]:
    """One tile of scores, at least float32, and its rows and classes that stand for items already read.

    Args:
        states: transformed states of the tile's rows, `[rows, d]`.
        table: transformed item vectors.
        part: which rows of `table.vectors`.
        repeats: of the tile's rows, which are counted from 0.
    """
    scores = upcast(states @ table.vectors[part].T)
    if repeats is None:
        return scores, None
    if table.complete and part == slice(0, len(table.vectors)):
        read = repeats.pairs  # a selection would ask the device how many there are
    else:
        read = repeats.pairs.within_classes(slice(table.start + part.start, table.start + part.stop))
    read.add_to(scores, repeats.bias.to(scores.dtype))
    return scores, read


def ranking_tile_of(states: Tensor, table: Rows, part: slice, repeats: Repeats | None) -> Tensor:
    """As `tile_of`, in float32 also in mixed precision: 16 bits would make ties of scores that differ."""
    with without_autocast(states.device):
        return tile_of(states, table, part, repeats)[0].float()


def repeats_of(repeats: Repeats | None, rows: slice, count: int) -> Repeats | None:
    """Those of a range of rows, which are counted from its start.

    Args:
        repeats: of all rows.
        rows: the range.
        count: number of all rows.
    """
    if repeats is None or rows == slice(0, count):
        return repeats
    pairs = repeats.pairs
    on_host = pairs.rows.device.type == "cpu"  # elsewhere a selection would wait for the device
    return replace(repeats, pairs=pairs.within_rows(rows) if on_host else pairs.counted_within_rows(rows))


def of_targets(states: Tensor, table: Rows, targets: Tensor, repeats: Repeats | None) -> Tensor:
    """Score of each row's target where this process holds it, else 0; `[rows]`."""
    own = _scores_of(states, table.vectors[table.local_index(targets)], targets, repeats)
    return table.mask_local(own, targets)


def least_of_targets(states: Tensor, table: Rows, targets: Tensor, repeats: Repeats | None) -> Tensor:
    """As `of_targets`, less what rounding can make of two equal items: a product's sum depends on its place among others.

    The margin is `eps sqrt(d) |state| |item|`, twice the largest difference that was seen, for d from 16 to 768.
    """
    items = table.vectors[table.local_index(targets)]
    own = _scores_of(states, items, targets, repeats)
    rounding = torch.finfo(torch.float32).eps * states.shape[1] ** 0.5
    return table.mask_local(torch.sub(own, states.norm(dim=1) * items.norm(dim=1), alpha=rounding), targets)


def _scores_of(states: Tensor, vectors: Tensor, items: Tensor, repeats: Repeats | None) -> Tensor:
    """Score of one item a row `[rows]`, whose vectors are `[rows, d]`."""
    return with_repeats(upcast((states * vectors).sum(dim=1)), items, repeats)


def with_repeats(scores: Tensor, items: Tensor, repeats: Repeats | None) -> Tensor:
    """Scores `[rows]` of one item a row `[rows]`, changed where the row has read it."""
    if repeats is None:
        return scores
    return torch.where(repeats.pairs.rows_of(items), scores + repeats.bias.to(scores.dtype), scores)
