"""Confidence intervals and significance tests: pure functions of values by user or by seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

_CHUNK = 1 << 23  # random numbers held at a time
_ROUNDING = 1e-6  # relative rounding error of float32 values; sums that differ by less are treated as equal


def _chunks(resamples: int, users: int) -> Iterator[int]:
    """Numbers of resamples to draw at a time."""
    size = max(1, _CHUNK // max(users, 1))
    for start in range(0, resamples, size):
        yield min(size, resamples - start)


def bootstrap_means(values: np.ndarray, resamples: int, seed: int = 0) -> np.ndarray:
    """Means of bootstrap samples: U users drawn with replacement from U (Efron 1979).

    All columns are means of the same samples, so differences between columns are paired.

    Args:
        values: values of each user, `[U, K]`.
        resamples: number of samples, R.
        seed: random seed.

    Returns:
        The means, `[R, K]`.
    """
    users = len(values)
    generator = np.random.default_rng(seed)
    means = []
    for count in _chunks(resamples, users):
        drawn = generator.integers(users, size=(count, users)) + np.arange(count)[:, None] * users
        times = np.bincount(drawn.reshape(-1), minlength=count * users).reshape(count, users)
        means.append(times.astype(values.dtype) @ values / users)
    return np.concatenate(means)


def bootstrap_interval(values: np.ndarray, resamples: int, level: float = 0.95, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of the mean over users.

    Args:
        values: values of each user, `[U, K]`.
        resamples: number of bootstrap samples.
        level: confidence level.
        seed: random seed.

    Returns:
        Lower and upper bounds, `[K]` each; NaN if there are no users.
    """
    if len(values) == 0:
        undefined = np.full(values.shape[1], np.nan)
        return undefined, undefined
    low, high = np.quantile(bootstrap_means(values, resamples, seed), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def sign_flip_test(differences: np.ndarray, resamples: int = 10_000, seed: int = 0) -> np.ndarray:
    """Two-sided paired permutation test of the mean difference (Fisher's sign-flip test).

    Under the null hypothesis each user's difference is as likely to be d as -d, independently of the other users. Users
    without a difference are left out. The test is exact if there are no more than `resamples` sign patterns. Otherwise it
    uses random patterns and counts the observed one, so that the p-value is never 0 and never too small (Phipson and Smyth
    2010).

    Args:
        differences: difference of each user, `[U, K]`.
        resamples: number of random sign patterns.
        seed: random seed.

    Returns:
        p-values, `[K]`; 1 where no user differs.
    """
    differences = differences[np.any(differences != 0, axis=1)].astype(np.float64)
    users = len(differences)
    if users == 0:
        return np.ones(differences.shape[1])
    observed = np.abs(differences.sum(axis=0)) - _ROUNDING * np.abs(differences).sum(axis=0)
    if 2**users <= resamples:
        patterns = (np.arange(2**users)[:, None] >> np.arange(users)) & 1
        exact: np.ndarray = (np.abs((2.0 * patterns - 1) @ differences) >= observed).mean(axis=0)
        return exact
    generator = np.random.default_rng(seed)
    as_extreme = np.zeros(differences.shape[1])
    for count in _chunks(resamples, users):
        signs = generator.integers(2, size=(count, users), dtype=np.int8).astype(np.float64) * 2 - 1
        as_extreme += (np.abs(signs @ differences) >= observed).sum(axis=0)
    return (as_extreme + 1) / (resamples + 1)


def holm(p_values: np.ndarray) -> np.ndarray:
    """p-values with Holm's correction, in the given order; it controls the family-wise error rate (Holm 1979)."""
    order = np.argsort(p_values)
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    corrected = np.empty_like(stepped)
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected


@dataclass(frozen=True)
class SeedTest:
    """Result of a t-test with the trained model (seed) as the unit.

    Args:
        p_value: two-sided p-value; NaN if there is no variance.
        paired: whether values were paired by seed.
    """

    p_value: float
    paired: bool


def seed_test(first: dict[int, float], second: dict[int, float]) -> SeedTest | None:
    """Test whether two configurations differ over training runs.

    The test is paired if both have the same seeds, otherwise Welch's. Both assume that values are normally distributed over
    seeds.

    Args:
        first, second: the value of each seed.

    Returns:
        The result; None if either has fewer than three seeds.
    """
    from scipy.stats import ttest_ind, ttest_rel

    if min(len(first), len(second)) < 3:
        return None
    paired = first.keys() == second.keys()
    with np.errstate(all="ignore"):
        if paired:
            one, two = [first[seed] for seed in first], [second[seed] for seed in first]
            constant = np.ptp(np.subtract(one, two)) == 0
            result = None if constant else ttest_rel(one, two)
        else:
            one, two = list(first.values()), list(second.values())
            constant = np.ptp(one) == 0 and np.ptp(two) == 0
            result = None if constant else ttest_ind(one, two, equal_var=False)
    return SeedTest(float("nan") if result is None else float(result.pvalue), paired)


@dataclass(frozen=True)
class Bands:
    """Users divided by an integer value into bands of about equal size.

    Args:
        labels: limits of each band, such as `3–7`.
        of_user: band of each user, `[U]`.
    """

    labels: list[str]
    of_user: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """Number of users in each band."""
        return np.bincount(self.of_user, minlength=len(self.labels))


def quantile_bands(values: np.ndarray, count: int = 5, capped: int | None = None) -> Bands:
    """Divide users at quantiles. Equal values share a band, so there may be fewer bands, of unequal sizes.

    Args:
        values: integer value of each user, `[U]`.
        count: number of bands to aim for.
        capped: the value at which larger ones were truncated; marked with a +.
    """
    uppers = np.unique(np.quantile(values, np.arange(1, count + 1) / count, method="inverted_cdf"))
    of_user = np.searchsorted(uppers, values)
    labels = []
    for band in range(len(uppers)):
        inside = values[of_user == band]
        low, high = int(inside.min()), int(inside.max())
        end = f"{high:,}" + ("+" if high == capped else "")
        labels.append(end if low == high else f"{low:,}–{end}")
    return Bands(labels, of_user)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1); the latter is NaN for a single value."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else float("nan")
