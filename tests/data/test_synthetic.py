"""The demonstration data: its optimum is the truth, and nobody beats it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lares_pl import LaresError
from lares_pl.data.synthetic import Process, synthetic

SMALL = Process(users=400, topics=3, topic_size=4, routes=2, min_length=3, max_length=6)


def brute_force(process: Process, history: list[int]) -> np.ndarray:
    """Probability of the next item by the rules as written, one route at a time."""
    successors, next_topic, entrances = process.tables()

    def step(route: int, past: list[int]) -> np.ndarray:
        out = np.full(process.items, process.noise / process.items)
        before = past[-2] if len(past) > 1 else 0
        out[successors[before % 2, past[-1]]] += (1 - process.noise) * (1 - process.move)
        out[entrances[next_topic[route, past[-1] // process.topic_size], past[-1]]] += (1 - process.noise) * process.move
        return out

    weights = np.array(
        [np.prod([step(route, history[:t])[history[t]] for t in range(1, len(history))]) for route in range(process.routes)]
    )
    mixture: np.ndarray = np.sum([w * step(route, history) for route, w in enumerate(weights / weights.sum())], axis=0)
    return mixture


def test_next_item_probabilities_against_brute_force() -> None:
    items, lengths = SMALL.sample()
    probabilities = SMALL.next_item_probabilities(items, lengths - 1)
    for user in range(60):
        expected = brute_force(SMALL, items[user, : lengths[user] - 1].tolist())
        np.testing.assert_allclose(probabilities[user], expected, rtol=1e-9)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)


def test_the_optimum_is_what_the_true_ranking_realises_and_others_do_not() -> None:
    process = Process(users=4000)
    items, lengths = process.sample()
    target = items[np.arange(len(items)), lengths - 1]

    def realised(scores: np.ndarray) -> float:
        rank = (scores >= scores[np.arange(len(items)), target][:, None]).sum(axis=1)
        return float(np.where(rank <= 10, 1 / np.log2(1 + rank), 0).mean())

    truth = process.next_item_probabilities(items, lengths - 1)
    assert realised(truth) == pytest.approx(process.optimum(), abs=0.02)
    # without the item before the last, or without the route, there is clearly less to be had
    forgetful = items.copy()
    rows = np.arange(len(items))
    forgetful[rows, np.maximum(lengths - 3, 0)] = 0
    assert realised(process.next_item_probabilities(forgetful, lengths - 1)) < process.optimum() - 0.05


def test_same_seed_same_file_and_never_over_an_old_one(tmp_path: Path) -> None:
    first, second = tmp_path / "a.tsv", tmp_path / "b.tsv"
    synthetic(str(first), users=50)
    synthetic(str(second), users=50)
    assert first.read_bytes() == second.read_bytes()
    synthetic(str(second), users=50, seed=1, overwrite=True)
    assert first.read_bytes() != second.read_bytes()
    with pytest.raises(LaresError, match="--overwrite true"):
        synthetic(str(first))
