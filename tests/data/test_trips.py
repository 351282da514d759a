"""The data of the demonstration: its rules, its hops, and the best possible ranking."""

from __future__ import annotations

import numpy as np
import pytest

from lares_pl.data.trips import Trips

SMALL = Trips(users=300, stations=16, kinds=4, groups=2, min_visits=3, max_visits=6, most_hops=4, noise=0.1)


def by_hand(trips: Trips, history: list[int]) -> tuple[int | None, int]:
    """Destination and hops by the rules as written, one hop at a time."""
    following = trips.following()
    *_, before, at = history
    for hops in range(1, trips.most_hops + 1):
        ticket = next(
            item for item in history if (item - trips.stations) // trips.lines == at % trips.kinds and item >= trips.stations
        )
        at = int(following[(ticket - trips.stations) % trips.lines, at])
        if at % trips.groups == before % trips.groups:
            return at, hops
    return None, 0


def test_destinations_hops_and_probabilities_by_hand() -> None:
    items, lengths = SMALL.sample()
    destinations, hops = SMALL.travel(items, lengths - 1)
    probabilities = SMALL.next_item_probabilities(items, lengths - 1)
    for user in range(len(items)):
        destination, expected_hops = by_hand(SMALL, items[user, : lengths[user] - 1].tolist())
        assert hops[user] == expected_hops
        expected = np.full(SMALL.items, 0.0)
        expected[: SMALL.stations] = (1.0 if destination is None else SMALL.noise) / SMALL.stations
        if destination is not None:
            assert destinations[user] == destination
            expected[destination] += 1 - SMALL.noise
        np.testing.assert_allclose(probabilities[user], expected)
    assert set(hops) == {0, 1, 2, 3, 4}


def test_sequences_follow_the_rules_as_often_as_they_say() -> None:
    items, lengths = SMALL.sample()
    followed = decided = 0
    for user in range(len(items)):
        for end in range(SMALL.kinds + 2, lengths[user]):
            destination, _ = by_hand(SMALL, items[user, :end].tolist())
            decided += destination is not None
            followed += destination == items[user, end]
    assert followed / decided == pytest.approx(1 - SMALL.noise + SMALL.noise / SMALL.stations, abs=0.03)


def test_the_optimum_is_what_the_true_ranking_realises() -> None:
    trips = Trips(users=4000)
    items, lengths = trips.sample()
    rows = np.arange(len(items))
    target = items[rows, lengths - 1]
    truth = trips.next_item_probabilities(items, lengths - 1)
    generator = np.random.default_rng(0)
    scores = truth + generator.random(truth.shape) * 1e-6  # equal probabilities in any order
    rank = (scores >= scores[rows, target][:, None]).sum(axis=1)
    realised = np.where(rank <= 10, 1 / np.log2(1 + rank), 0).mean()
    assert trips.best_ndcg(items, lengths).mean() == pytest.approx(realised, abs=0.02)


def test_before_the_first_destination_nothing_is_decided() -> None:
    items, _ = SMALL.sample()
    for length in (1, SMALL.kinds, SMALL.kinds + 1):
        assert not SMALL.travel(items, np.full(len(items), length))[1].any()
