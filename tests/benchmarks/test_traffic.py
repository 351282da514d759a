"""What the counter of bytes counts, against numbers by hand."""

from __future__ import annotations

import torch

from traffic import Traffic


def test_bytes_of_a_few_operations() -> None:
    a, b = torch.empty(8, 4, device="meta"), torch.empty(4, 2, device="meta")
    index = torch.empty(3, dtype=torch.int64, device="meta")
    with Traffic() as traffic:
        c = a @ b  # reads 32 + 8 numbers, writes 16
        d = c.T[:1]  # a view
        d + 1  # reads 8, writes 8
        a.index_select(0, index)  # reads 3 indices and 12 numbers, writes 12
        torch.zeros(5, device="meta")  # writes 5
    assert traffic.total == 4
    assert traffic.bytes == 4 * (32 + 8 + 16 + 8 + 8 + 12 + 12 + 5) + 8 * 3
