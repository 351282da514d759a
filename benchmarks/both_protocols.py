"""Validation under both protocols against validation under one: CPU time of one thread, in turns, in one process.

    python benchmarks/both_protocols.py [--repeats 20]

Random items and histories of the shapes of real data, the recipe's model at its initial weights; the least of the
repeats, which other processes disturb least.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from lares_pl import BackboneConfig, RecurrentBackbone
from lares_pl.data.loading.histories import Histories
from lares_pl.data.loading.item_pairs import ItemPairs, items_read

ROWS, LENGTH, DEPTH = 1024, 20, 4
SHAPES = {"Beauty": (12_101, 9), "ML-100K": (1_349, 104), "ML-1M": (3_416, 165), "in between": (6_000, 165)}  # items, seen


def seconds(run: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    started = time.process_time()
    run()
    return time.process_time() - started


def least(repeats: int, *runs: Callable[[], object]) -> list[float]:
    """Milliseconds of each of several runs, made in turns: the least of the repeats."""
    times = [[seconds(run) for run in runs] for _ in range(repeats + 1)]
    return [1000 * min(of_run) for of_run in zip(*times, strict=True)]


@torch.no_grad()
def measure(items: int, seen: int, repeats: int) -> list[float]:
    """Milliseconds: ranks under one protocol and under both, and the same with the reasoning before them."""
    model = RecurrentBackbone(items, LENGTH, BackboneConfig()).eval()
    histories = Histories.from_padded(torch.randint(1, items + 1, (ROWS, min(seen, LENGTH))))
    read, targets = items_read(histories), torch.randint(1, items + 1, (ROWS,))
    pairs = ItemPairs(torch.arange(ROWS).repeat_interleave(seen), torch.randint(1, items + 1, (ROWS * seen,)))

    def states() -> Tensor:
        return model.rollout(histories, [DEPTH])[0][-1]

    def ranks(of: Tensor, left_out: ItemPairs | None) -> object:
        return model.head(histories, read=read).rank_both(of, targets, left_out)

    fixed = states()
    return least(
        repeats,
        lambda: ranks(fixed, None),
        lambda: ranks(fixed, pairs),
        lambda: ranks(states(), None),
        lambda: ranks(states(), pairs),
    )


def main() -> None:
    """Measure and print a table."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    print("| shape of | items | seen a user | ranks: one, ms | both, ms | ratio | validation: one, ms | both, ms | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, (items, seen) in SHAPES.items():
        one, both, whole, whole_of_both = measure(items, seen, options.repeats)
        parts = f"{one:.1f} | {both:.1f} | {both / one:.2f} | {whole:.0f} | {whole_of_both:.0f} | {whole_of_both / whole:.2f}"
        print(f"| {name} | {items:,} | {seen} | {parts} |")


if __name__ == "__main__":
    main()
