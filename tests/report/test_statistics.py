"""Intervals and tests of reports, against closed forms and brute force."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lares_pl import DivergenceStop, Histories, Reasoning, RecurrentBackbone, ResidualStop
from lares_pl.model.recurrence import KeyedNoise
from lares_pl.report.distributions import movement, residuals
from lares_pl.report.statistics import (
    bootstrap_interval,
    bootstrap_means,
    holm,
    mean_and_spread,
    quantile_bands,
    seed_test,
    sign_flip_test,
)
from lares_pl.report.stopping import stopped_at
from tests.released import released_backbone


def test_the_bootstrap_interval_of_a_mean_agrees_with_normal_theory() -> None:
    values = np.random.default_rng(0).exponential(size=(4000, 2))
    low, high = bootstrap_interval(values, resamples=4000)
    half = 1.96 * values.std(axis=0) / np.sqrt(len(values))
    assert low == pytest.approx(values.mean(axis=0) - half, abs=0.1 * half.max())
    assert high == pytest.approx(values.mean(axis=0) + half, abs=0.1 * half.max())
    means = bootstrap_means(values, resamples=4000)
    assert means.std(axis=0) == pytest.approx(values.std(axis=0) / np.sqrt(len(values)), rel=0.05)


def test_columns_share_resamples_and_results_are_reproducible() -> None:
    values = np.random.default_rng(1).normal(size=(50, 1))
    shifted = np.hstack([values, values + 2])
    means = bootstrap_means(shifted, resamples=300)
    assert means[:, 1] - means[:, 0] == pytest.approx(np.full(300, 2.0))
    assert np.array_equal(means, bootstrap_means(shifted, resamples=300))
    assert all(np.isnan(end).all() for end in bootstrap_interval(np.zeros((0, 3)), 100))


def brute_force(differences: np.ndarray) -> float:
    """The share of all sign patterns whose sum is at least as far from 0."""
    sums = [abs(np.dot(signs, differences)) for signs in product((-1, 1), repeat=len(differences))]
    return float(np.mean([total >= abs(differences.sum()) - 1e-9 for total in sums]))


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
@settings(max_examples=60, deadline=None)
def test_the_sign_flip_test_is_exact_for_few_users(differences: list[int]) -> None:
    values = np.array(differences, dtype=float)
    assert sign_flip_test(values[:, None])[0] == pytest.approx(brute_force(values))


@given(st.lists(st.tuples(st.sampled_from([-1, 1]), st.integers(1, 10)), min_size=1, max_size=9))
@settings(max_examples=60, deadline=None)
def test_float32_rounding_does_not_lower_p_values(changes: list[tuple[int, int]]) -> None:
    """NDCG from or to 0, where many sign patterns have equal sums."""
    values = np.array([sign / np.log2(1 + rank) for sign, rank in changes])
    assert sign_flip_test(values.astype(np.float32)[:, None])[0] == pytest.approx(brute_force(values))


def test_random_signs_of_float32_find_equal_sums() -> None:
    values = np.array([1 / np.log2(1 + rank) for rank in (2, 3, 2, 3, 4, 2, 7, 3, 2, 4, 7, 2, 3, 2)])
    values[[0, 3, 5, 8]] *= -1
    drawn = sign_flip_test(values.astype(np.float32)[:, None], resamples=10_000)[0]
    exact = brute_force(values)
    assert drawn == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 10_000))


def test_random_signs_approximate_the_exact_test() -> None:
    values = np.random.default_rng(2).normal(0.35, 1, size=14)
    exact = brute_force(values)
    assert 0.01 < exact < 0.9
    drawn = sign_flip_test(values[:, None], resamples=10_000)[0]  # 2^14 patterns are more
    assert drawn == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 10_000))


def test_the_permutation_test_keeps_its_level() -> None:
    generator = np.random.default_rng(3)
    same = np.array([sign_flip_test(generator.normal(size=(30, 1)), 400, seed)[0] for seed in range(300)])
    assert 0.02 <= (same < 0.05).mean() <= 0.085  # 5 %, give or take what 300 tries leave open
    assert sign_flip_test(generator.normal(1, 1, size=(300, 1)), 999)[0] == pytest.approx(1 / 1000)
    assert sign_flip_test(np.zeros((10, 2))).tolist() == [1, 1]


def test_holm_by_hand() -> None:
    assert holm(np.array([0.04, 0.01, 0.03])).tolist() == pytest.approx([0.06, 0.03, 0.06])
    assert holm(np.array([0.5, 0.9])).tolist() == pytest.approx([1.0, 1.0])


def test_seeds_are_paired_where_they_are_the_same() -> None:
    first, second = {1: 0.1, 2: 0.2, 3: 0.35}, {1: 0.15, 2: 0.22, 3: 0.36}
    paired = seed_test(first, second)
    assert paired is not None
    assert paired.paired
    values = np.array([0.05, 0.02, 0.01])
    t = values.mean() / (values.std(ddof=1) / np.sqrt(3))
    assert paired.p_value == pytest.approx(2 * stats.t.sf(t, 2))
    welch = seed_test(first, {4: 0.15, 5: 0.22, 6: 0.36})
    assert welch is not None
    assert not welch.paired
    assert welch.p_value > paired.p_value
    assert seed_test({1: 0.1, 2: 0.2}, second) is None
    alike = seed_test(first, first)
    assert alike is not None
    assert np.isnan(alike.p_value)


@given(st.lists(st.integers(0, 60), min_size=1, max_size=80), st.integers(1, 7))
@settings(max_examples=100, deadline=None)
def test_bands_hold_the_users_within_their_limits(values: list[int], count: int) -> None:
    array = np.array(values)
    bands = quantile_bands(array, count)
    assert len(bands.labels) <= count
    assert bands.sizes.sum() == len(array)
    assert bands.sizes.min() > 0
    for value, band in zip(values, bands.of_user, strict=True):
        low, _, high = bands.labels[band].partition("–")
        assert int(low) <= value <= int(high or low)


def test_bands_are_of_equal_size_where_values_differ() -> None:
    bands = quantile_bands(np.arange(100), 5)
    assert bands.labels == ["0–19", "20–39", "40–59", "60–79", "80–99"]
    assert bands.sizes.tolist() == [20] * 5
    assert quantile_bands(np.array([3, 20, 20]), 2, capped=20).labels == ["3–20+"]
    assert quantile_bands(np.array([3, 3, 20, 20]), 2, capped=20).labels == ["3", "20+"]


def test_the_standard_deviation_needs_two_values() -> None:
    mean, spread = mean_and_spread([1.0, 3.0])
    assert (mean, spread) == pytest.approx((2, np.sqrt(2)))
    assert np.isnan(mean_and_spread([1.0])[1])


def test_stopping_in_the_report_equals_stopping_in_the_model() -> None:
    """The step derived from the changes of a whole rollout is the one at which `Reasoning` stops."""
    torch.manual_seed(0)
    config = released_backbone(hidden_size=8, pre_layers=1, core_layers=1, initializer_range=0.4)
    backbone = RecurrentBackbone(9, 6, config).eval()
    histories = Histories.from_lists([[3, 1, 4], [1], [5, 9, 2, 6, 5], [7, 7], [2, 8]])
    with torch.no_grad():
        (states,) = backbone.rollout(histories, [8], KeyedNoise(histories))
        residual = np.stack([part.numpy() for part in residuals(states)[0]], axis=1)
        kl = movement(states, backbone.head()).kl.numpy().T
        for change, rule in ((residual, ResidualStop), (kl, DivergenceStop)):
            middle = np.sort(change[:, 1:5].ravel())[7:9].mean()
            for threshold in (0.0, float(middle), 1e9):
                _, steps = Reasoning(8, rule(threshold))(backbone, histories)
                assert stopped_at(change, threshold).tolist() == steps.tolist()
            assert stopped_at(change, float(middle)).min() < stopped_at(change, float(middle)).max()
