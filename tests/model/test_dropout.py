"""Dropout from random bits: drop rate, scale, gradient, and no effect in evaluation."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from lares_pl.model.dropout import Dropout, dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(1000, 64), (333, 7)])
def test_drop_rate_and_scale(p: float, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    y = dropout(torch.ones(shape), p)
    dropped = int((y == 0).sum())
    assert stats.binomtest(dropped, y.numel(), p).pvalue > 1e-4
    kept = y[y != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - p)), rtol=2e-4, atol=0)
    by_column = (y == 0).float().mean(dim=0)  # no place is favoured
    assert (by_column - p).abs().max() < 6 * (p * (1 - p) / shape[0]) ** 0.5


def test_nearly_all_can_be_dropped() -> None:
    torch.manual_seed(0)
    y = dropout(torch.ones(1_000_000), 1 - 1e-7)
    assert 0 < int((y != 0).sum()) < 60  # a 65,536th, the least share that the bits can give
    assert float(y.mean()) == pytest.approx(1, abs=1.5)


def test_neighbours_are_independent() -> None:
    torch.manual_seed(0)
    zero = (dropout(torch.ones(200_000), 0.5) == 0).float() - 0.5
    for lag in (1, 2, 3, 4, 8):
        assert (zero[:-lag] * zero[lag:]).mean().abs() < 5 * 0.25 / 200_000**0.5


def test_the_gradient_has_the_mask_of_the_output() -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 9, dtype=torch.float64, requires_grad=True)
    y = dropout(x, 0.3)
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad * x.detach(), y.detach())


def test_masks_follow_the_seed_and_evaluation_drops_nothing() -> None:
    layer, x = Dropout(0.5), torch.ones(100)
    torch.manual_seed(3)
    first = layer(x)
    assert not torch.equal(first, layer(x))
    torch.manual_seed(3)
    assert torch.equal(first, layer(x))
    assert layer.eval()(x) is x
    assert dropout(x, 0.0) is x
    half = dropout(torch.ones(1000, dtype=torch.bfloat16), 0.5)
    assert set(half.tolist()) == {0.0, 2.0}
