"""Ranking under both protocols against ranking under one: CPU seconds of one thread, in turns, in one process.

    python benchmarks/both_protocols.py [--repeats 20]

Random states, items and histories of the shapes of real data; the least of the repeats, which other processes disturb least.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from lares_pl import DotSimilarity
from lares_pl.data.loading.item_pairs import ItemPairs
from lares_pl.model.catalogue_head import CatalogueHead

ROWS, SIZE = 1024, 64
SHAPES = {"Beauty": (12_101, 9), "ML-100K": (1_349, 104), "ML-1M": (3_416, 165), "in between": (6_000, 165)}  # items, seen


def seconds(run: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    started = time.process_time()
    run()
    return time.process_time() - started


def main() -> None:
    """Measure and print a table."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    print("| shape of | items | seen a user | one protocol, ms | both, ms | ratio |\n|---|---|---|---|---|---|")
    for name, (items, seen) in SHAPES.items():
        head = CatalogueHead(torch.randn(items + 1, SIZE), DotSimilarity())
        states, targets = torch.randn(ROWS, SIZE), torch.randint(1, items + 1, (ROWS,))
        pairs = ItemPairs(torch.arange(ROWS).repeat_interleave(seen), torch.randint(1, items + 1, (ROWS * seen,)))
        one, both = [], []
        for _ in range(options.repeats + 1):
            one.append(seconds(lambda: head.rank_both(states, targets, None)))  # noqa: B023
            both.append(seconds(lambda: head.rank_both(states, targets, pairs)))  # noqa: B023
        first, second = 1000 * min(one), 1000 * min(both)
        print(f"| {name} | {items:,} | {seen} | {first:.1f} | {second:.1f} | {second / first:.2f} |")


if __name__ == "__main__":
    main()
