"""The demonstration data: its optimum is the truth, and nobody beats it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lares_pl import LaresError
from lares_pl.data.synthetic import Process, synthetic

SMALL = Process(users=400, stations=12, kinds=3, min_length=3, max_length=12, noise=0.1, most_hops=3)


def ride(process: Process, history: list[int]) -> tuple[int, int] | None:
    """Where the rules as written lead after a history, and in how many hops; None where they decide nothing."""
    following, kind = process.network()
    if len(history) < process.kinds + 2:
        return None
    line_of_kind = [ticket - process.stations - kind * process.lines for kind, ticket in enumerate(history[: process.kinds])]
    at, wanted = history[-1], kind[history[-2]]
    for hop in range(1, process.most_hops + 1):
        at = following[line_of_kind[kind[at]]][at]
        if kind[at] == wanted:
            return int(at), hop
    return None


def brute_force(process: Process, history: list[int]) -> np.ndarray:
    """Probability of the next item by the rules as written."""
    out = np.zeros(process.items)
    if len(history) < process.kinds:
        first = process.stations + len(history) * process.lines
        out[first : first + process.lines] = 1 / process.lines
        return out
    found = ride(process, history)
    out[: process.stations] = (1.0 if found is None else process.noise) / process.stations
    if found is not None:
        out[found[0]] += 1 - process.noise
    return out


def test_next_item_probabilities_and_hops_against_brute_force() -> None:
    items, lengths = SMALL.sample()
    probabilities = SMALL.next_item_probabilities(items, lengths - 1)
    hops = SMALL.ride(items, lengths - 1)[1]
    seen = set()
    for user in range(400):
        history = items[user, : lengths[user] - 1].tolist()
        np.testing.assert_allclose(probabilities[user], brute_force(SMALL, history), rtol=1e-9)
        found = ride(SMALL, history)
        assert hops[user] == (0 if found is None else found[1])
        seen.add(hops[user])
    assert seen == {0, 1, 2, 3}
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)


def test_sequences_follow_the_rules_but_for_the_noise() -> None:
    items, _ = SMALL.sample()
    assert ((items[:, :3] - SMALL.stations) // SMALL.lines == np.arange(3)).all()
    assert (items[:, 3:] < SMALL.stations).all()
    decided, kept = 0, 0
    for row in items.tolist():
        for t in range(5, SMALL.max_length):
            found = ride(SMALL, row[:t])
            decided += found is not None
            kept += found is not None and found[0] == row[t]
    expected = 1 - SMALL.noise + SMALL.noise / SMALL.stations
    assert kept / decided == pytest.approx(expected, abs=0.02)


def test_the_optimum_is_what_the_true_ranking_realises_and_others_do_not() -> None:
    process = Process(users=4000)
    items, lengths = process.sample()
    rows = np.arange(len(items))
    target = items[rows, lengths - 1]

    def realised(history: np.ndarray) -> float:
        scores = process.next_item_probabilities(history, lengths - 1)
        rank = (scores >= scores[rows, target][:, None]).sum(axis=1)
        return float(np.where(rank <= 10, 1 / np.log2(1 + rank), 0).mean())

    assert realised(items) == pytest.approx(process.optimum(), abs=0.02)
    # without the tickets, or without the station before the last, there is clearly less to be had
    forgetful = items.copy()
    forgetful[:, : process.kinds] = process.stations
    assert realised(forgetful) < process.optimum() - 0.2
    forgetful = items.copy()
    forgetful[rows, lengths - 3] = 0
    assert realised(forgetful) < process.optimum() - 0.2


def test_targets_are_one_to_many_hops_away() -> None:
    process = Process(users=4000)
    items, lengths = process.sample()
    share = np.bincount(process.ride(items, lengths - 1)[1], minlength=9) / len(items)
    assert share[1] + share[2] > 0.3
    assert share[5:].sum() > 0.15
    assert share[0] < 0.15


def test_same_seed_same_file_and_never_over_an_old_one(tmp_path: Path) -> None:
    first, second = tmp_path / "a.tsv", tmp_path / "b.tsv"
    synthetic(str(first), users=50)
    synthetic(str(second), users=50)
    assert first.read_bytes() == second.read_bytes()
    synthetic(str(second), users=50, seed=1, overwrite=True)
    assert first.read_bytes() != second.read_bytes()
    with pytest.raises(LaresError, match="--overwrite true"):
        synthetic(str(first))
