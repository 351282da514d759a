"""Losses, rewards and metrics against hand numbers and naive computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lares_pl import NDCGReward, RecallReward
from lares_pl.evaluation.metrics import ranking_metrics
from lares_pl.objectives.alignment import alignment, info_nce
from lares_pl.objectives.policy import group_advantages, grpo, step_weights


def test_info_nce_by_hand() -> None:
    a, b = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[2.0, 1.0], [0.0, 1.0]])
    # a b^T / 0.5 = [[4, 0], [4, 4]]
    first, second = math.log(1 + math.exp(-4)), math.log(2)
    assert float(info_nce(a, b, 0.5)) == pytest.approx((first + second) / 2, rel=1e-6)
    # the other way round: [[4, 4], [0, 4]]
    assert float(info_nce(b, a, 0.5)) == pytest.approx((math.log(2) + first) / 2, rel=1e-6)
    assert float(alignment(a, b, 0.5)) == pytest.approx((first + second) / 2, rel=1e-6)


def test_group_advantages_by_hand() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    spread = math.sqrt(4 * 0.25 / 3)  # unbiased
    expected = 0.5 / (spread + 1e-4)
    advantages = group_advantages(rewards)
    assert advantages[0].tolist() == pytest.approx([expected, -expected, -expected, expected], rel=1e-6)
    assert advantages[1].tolist() == [0, 0, 0, 0]


def test_grpo_by_hand() -> None:
    # one instance, two trajectories of one and of two steps
    log_probs = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    reference, advantages = torch.tensor([-1.5, -2.0, -2.0]), torch.tensor([0.7, -0.7, -0.7])
    weights = step_weights([1, 2], instances=1)
    assert weights.tolist() == [0.5, 0.25, 0.25]
    terms = grpo(log_probs, reference, advantages, beta=0.5)
    k3 = [math.exp(-0.5) + 0.5 - 1, 0.0, math.exp(1) - 1 - 1]
    expected_kl = (k3[0] + (k3[1] + k3[2]) / 2) / 2
    assert float((weights * terms.kl).sum()) == pytest.approx(expected_kl, rel=1e-6)
    loss = (weights * terms.loss).sum()
    assert loss.item() == pytest.approx(0.5 * expected_kl - (0.7 - 0.7) / 2, rel=1e-6)
    loss.backward()
    # d loss / d log pi = -(A + beta * (exp(q) - 1)) / (T * G)
    assert log_probs.grad is not None
    expected = [-(0.7 + 0.5 * (math.exp(-0.5) - 1)) / 2, 0.7 / 4, (0.7 - 0.5 * (math.exp(1) - 1)) / 4]
    assert log_probs.grad.tolist() == pytest.approx(expected, rel=1e-5)


def test_step_weights() -> None:
    assert step_weights([2, 1, 0], instances=5).tolist() == pytest.approx([1 / 30, 1 / 30, 1 / 15, 1 / 15])


@given(st.lists(st.integers(1, 200), min_size=1, max_size=40))
def test_metrics_against_a_naive_computation(ranks: list[int]) -> None:
    metrics = ranking_metrics("val/", (5, 10))
    half = len(ranks) // 2
    for part in (ranks[:half], ranks[half:]):
        metrics.update(torch.tensor(part, dtype=torch.int64))
    computed = {name: float(value) for name, value in metrics.compute().items()}
    for k in (5, 10):
        assert computed[f"val/recall@{k}"] == pytest.approx(np.mean([rank <= k for rank in ranks]), rel=1e-6)
        gains = [1 / math.log2(1 + rank) if rank <= k else 0.0 for rank in ranks]
        assert computed[f"val/ndcg@{k}"] == pytest.approx(np.mean(gains), rel=1e-6)
    assert computed["val/mrr"] == pytest.approx(np.mean([1 / rank for rank in ranks]), rel=1e-6)


def test_rewards() -> None:
    ranks = torch.tensor([1, 3, 10, 11])
    assert RecallReward(10)(ranks).tolist() == [1, 1, 1, 0]
    assert NDCGReward(10)(ranks).tolist() == pytest.approx([1, 0.5, 1 / math.log2(11), 0])
