"""Attention over packed tokens: for any grouping, a token attends only to its own history up to itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lares_pl import Histories
from lares_pl.model.attention import packed_rows
from lares_pl.model.packed_layout import packed
from lares_pl.model.padded_layout import padded


def by_hand(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], heads: int) -> Tensor:
    """One token after the other."""
    out, start, size = torch.zeros_like(q), 0, q.shape[1] // heads
    for length in lengths:
        for t in range(length):
            for h in range(heads):
                channels = slice(h * size, (h + 1) * size)
                keys, values = k[start : start + t + 1, channels], v[start : start + t + 1, channels]
                shares = (keys @ q[start + t, channels] / size**0.5).softmax(0)
                out[start + t, channels] = shares @ values
        start += length
    return out


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=9), st.integers(1, 2))
def test_attention_equals_a_token_by_token_computation(lengths: list[int], heads: int) -> None:
    histories = Histories.from_lists([[1] * length for length in lengths])
    layout = packed(histories)
    generator = torch.Generator().manual_seed(len(lengths))
    q, k, v = (torch.randn(sum(lengths), 4, generator=generator, requires_grad=True) for _ in range(3))
    expected = by_hand(q, k, v, lengths, heads)
    wanted = torch.autograd.grad(expected.pow(2).sum(), (q, k, v))
    last = torch.tensor(lengths).cumsum(0) - 1
    for training in (False, True):  # the two paths: fused, and with the weights at hand for dropout (here of almost nothing)
        out = layout.causal_attention(q, k, v, heads, 1e-9 if training else 0.0)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
        for ours, theirs in zip(torch.autograd.grad(out.pow(2).sum(), (q, k, v)), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layout.last_attention(q[last], k, v, heads, 0.0), expected[last], rtol=1e-4, atol=1e-5)
    wide = padded(histories, 61)
    real = wide.mask

    def spread(x: Tensor) -> Tensor:
        return torch.zeros(*real.shape, 4).masked_scatter(real[..., None].expand(-1, -1, 4), x.detach())

    rows_q, rows_k, rows_v = spread(q), spread(k), spread(v)
    out = wide.causal_attention(rows_q, rows_k, rows_v, heads, 0.0)
    torch.testing.assert_close(out[real], expected, rtol=1e-4, atol=1e-5)
    out = wide.last_attention(q[last], rows_k, rows_v, heads, 0.0)
    torch.testing.assert_close(out, expected[last], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("span", [(1, 200), (1, 20), (21, 25), (25, 39)])
def test_packed_rows_contain_little_padding(span: tuple[int, int]) -> None:
    lengths = torch.arange(span[0], span[1] + 1).repeat(20)
    placed = packed_rows(lengths)
    assert len(placed.groups) < 20
    assert len(placed.token) < 1.2 * int(lengths.sum())
    tokens = torch.arange(int(lengths.sum()))
    assert torch.equal(placed.token[placed.place], tokens)
    assert torch.equal(placed.token_or_none[placed.token_or_none < len(tokens)].sort().values, tokens)
