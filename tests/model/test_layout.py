"""Attention over packed tokens: for any grouping, a token attends only to its own history up to itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lares_pl import Histories
from lares_pl.model.attention import attention
from lares_pl.model.dropout import dropout
from lares_pl.model.packed_layout import PackedLayout, packed
from lares_pl.model.packed_rows import shared_rows
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


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=9), st.integers(1, 3), st.data())
def test_attention_in_rows_of_one_width(lengths: list[int], heads: int, data: st.DataObject) -> None:
    """As on a card: of parts of wider states, and of the first histories once the indices of all are known."""
    some = data.draw(st.integers(1, len(lengths)))
    size, tokens = 4 * heads, sum(lengths[:some])
    layout = packed(Histories.from_lists([[1] * length for length in lengths]))
    generator = torch.Generator().manual_seed(len(lengths))
    joined = torch.randn(sum(lengths), 3 * size, generator=generator)
    apart = torch.randn(sum(lengths), size, generator=generator)
    _, k, v = joined.chunk(3, dim=1)
    first = layout._one_width.causal_attention(apart, k, v, heads, 0.0)
    torch.testing.assert_close(first, by_hand(apart, k, v, lengths, heads), rtol=1e-4, atol=1e-5)

    prefix = layout.prefix(some, tokens)
    assert isinstance(prefix, PackedLayout)
    own, q = joined[:tokens].clone().requires_grad_(), apart[:tokens].clone().requires_grad_()
    _, k, v = own.chunk(3, dim=1)
    expected = by_hand(q, k, v, lengths[:some], heads)
    wanted = torch.autograd.grad(expected.pow(2).sum(), (q, own), retain_graph=True)
    for p in (0.0, 1e-9):
        out = prefix._one_width.causal_attention(q, k, v, heads, p)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
        found = torch.autograd.grad(out.pow(2).sum(), (q, own), retain_graph=True)
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_attention_with_dropout_are_those_of_its_formula(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(3, 2, 5, 4, generator=generator, dtype=dtype, requires_grad=True) for _ in range(3))
    mask = torch.full((5, 5), -torch.inf).triu(1)
    torch.manual_seed(2)
    out = attention(q, k, v, 0.4)
    torch.manual_seed(2)
    scores = (q.float() @ k.float().transpose(2, 3)) / 2 + mask
    expected = dropout(scores.softmax(dim=-1).flatten(0, 1), 0.4).view(scores.shape) @ v.float()
    rtol, atol = (1e-5, 1e-6) if dtype == torch.float32 else (5e-2, 5e-2)
    torch.testing.assert_close(out.float(), expected, rtol=rtol, atol=atol)
    ours, theirs = (torch.autograd.grad(x.float().pow(2).sum(), (q, k, v)) for x in (out, expected))
    for mine, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=rtol, atol=atol)


@pytest.mark.parametrize("span", [(1, 200), (1, 20), (21, 25), (25, 39)])
def test_packed_rows_contain_little_padding(span: tuple[int, int]) -> None:
    lengths = torch.arange(span[0], span[1] + 1).repeat(20)
    placed = shared_rows(lengths)
    assert len(placed.groups) < 20
    assert len(placed.token) < 1.2 * int(lengths.sum())
    tokens = torch.arange(int(lengths.sum()))
    assert torch.equal(placed.token[placed.token < len(tokens)].sort().values, tokens)
