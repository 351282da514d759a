"""Depth schedules against the reference's frequencies and their definitions."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

from lares_pl import BoundedPoisson, ConstantDepth, LaresError, Poisson, PoissonLogNormal, UniformDepth
from tests.conftest import GOLDEN

DRAWS = 20_000


def drawn(schedule: PoissonLogNormal | Poisson | BoundedPoisson | UniformDepth) -> Counter[int]:
    generator = torch.Generator().manual_seed(3)
    return Counter(schedule.sample(generator) for _ in range(DRAWS))


@pytest.mark.parametrize("mean", [2, 4, 8])
def test_poisson_lognormal_has_the_reference_distribution(mean: int) -> None:
    pmf = json.loads((GOLDEN / "depth_sampler_pmf.json").read_text())
    recorded = {int(depth): share for depth, share in pmf[str(mean)].items()}
    counts = drawn(PoissonLogNormal(mean))
    assert set(counts) <= set(range(1, 3 * mean + 1))
    observed = np.array([[counts[depth], round(recorded.get(depth, 0) * 60_000)] for depth in range(1, 3 * mean + 1)])
    result = stats.chi2_contingency(observed[observed.sum(axis=1) > 0].T)
    assert result.pvalue > 1e-3


def test_poisson_is_clamped_at_one() -> None:
    counts = drawn(Poisson(3))
    expected = [stats.poisson.cdf(1, 3), *(stats.poisson.pmf(t, 3) for t in range(2, 9))]
    observed = [counts[t] for t in range(1, 9)]
    rest = DRAWS - sum(observed)
    assert stats.chisquare([*observed, rest], np.array([*expected, 1 - sum(expected)]) * DRAWS).pvalue > 1e-3


def test_bounded_poisson_stays_within_twice_the_mean() -> None:
    counts = drawn(BoundedPoisson(2))
    assert set(counts) == {1, 2, 3, 4}
    assert counts[4] / DRAWS == pytest.approx(1 - stats.poisson.cdf(3, 2), abs=0.01)


def test_uniform_depth() -> None:
    counts = drawn(UniformDepth(2))
    assert set(counts) == {1, 2, 3, 4}
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_constant_depth_and_depth_of_evaluation() -> None:
    assert ConstantDepth(0).sample() == 0
    assert ConstantDepth(3).evaluation_depth == 3
    assert PoissonLogNormal(6).evaluation_depth == 6


def test_the_same_generator_state_draws_the_same_depths() -> None:
    schedule = PoissonLogNormal(4)
    first, second = (
        [schedule.sample(generator) for _ in range(50)] for generator in (torch.Generator().manual_seed(5) for _ in range(2))
    )
    assert first == second


def test_invalid_settings_are_refused() -> None:
    with pytest.raises(LaresError, match="mean depth"):
        PoissonLogNormal(0)
    with pytest.raises(LaresError, match="negative"):
        ConstantDepth(-1)
