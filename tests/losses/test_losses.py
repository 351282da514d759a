"""Losses, rewards and metrics against values computed by hand and naive computations."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from lares_pl import DotSimilarity, LaresError, NDCGReward, RecallReward
from lares_pl.losses.actions import TargetAmongBest, WholeCatalogue
from lares_pl.losses.advantages import BatchAdvantage, GroupAdvantage
from lares_pl.losses.alignment import Alignment, GatheredRows, alignment_losses, info_nce
from lares_pl.losses.grpo import grpo, step_weights
from lares_pl.losses.rewards import LogProbReward
from lares_pl.losses.supervision import EveryStep, LastAndRandomStep, LastStep
from lares_pl.model.catalogue_head import CatalogueHead


def test_info_nce_by_hand() -> None:
    a, b = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[2.0, 1.0], [0.0, 1.0]])
    # a b^T / 0.5 = [[4, 0], [4, 4]]
    first, second = math.log(1 + math.exp(-4)), math.log(2)
    assert float(info_nce(a, b, 0.5)) == pytest.approx((first + second) / 2, rel=1e-6)
    # the other way round: [[4, 4], [0, 4]]
    assert float(info_nce(b, a, 0.5)) == pytest.approx((math.log(2) + first) / 2, rel=1e-6)
    assert float(Alignment(cosine=False, tau=0.5)(a, b)) == pytest.approx((first + second) / 2, rel=1e-6)


def test_group_advantages_by_hand() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    spread = math.sqrt(4 * 0.25 / 3)  # unbiased
    expected = 0.5 / (spread + 1e-4)
    advantages = GroupAdvantage()(rewards)
    assert advantages[0].tolist() == pytest.approx([expected, -expected, -expected, expected], rel=1e-6)
    assert advantages[1].tolist() == [0, 0, 0, 0]
    assert not GroupAdvantage()(torch.tensor([[1 / math.log2(7)] * 7, [-9.6] * 7])).any()  # means that are not exact


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


def test_rewards() -> None:
    ranks = torch.tensor([1, 3, 10, 11])
    assert RecallReward(10)(ranks).tolist() == [1, 1, 1, 0]
    assert NDCGReward(10)(ranks).tolist() == pytest.approx([1, 0.5, 1 / math.log2(11), 0])


def test_alignment_masks_rows_with_the_same_target() -> None:
    a, b = torch.randn(3, 4), torch.randn(3, 4)
    masked = Alignment(cosine=True, tau=0.1, mask_same_target=True)
    logits = torch.nn.functional.normalize(a, dim=1) @ torch.nn.functional.normalize(b, dim=1).T / 0.1
    logits[0, 2] = logits[2, 0] = -torch.inf  # targets 5 and 5
    expected = -(logits.log_softmax(1).diagonal().mean() + logits.T.log_softmax(1).diagonal().mean()) / 2
    torch.testing.assert_close(masked(a, b, torch.tensor([5, 6, 5])), expected)
    plain = Alignment(cosine=True, tau=0.1, mask_same_target=False)
    torch.testing.assert_close(masked(a, b, torch.tensor([5, 6, 7])), plain(a, b))
    assert masked(a, b, torch.tensor([5, 6, 5])) < plain(a, b)


def test_alignment_losses_select_the_step_and_ignore_single_steps() -> None:
    a, b, targets = torch.randn(3, 5, 4), torch.randn(3, 5, 4), torch.arange(5)
    alignment = Alignment(cosine=False, tau=2.0, mask_same_target=False)
    trajectory, step = alignment_losses(alignment, a, b, 1, targets)
    torch.testing.assert_close(trajectory, alignment(a[2], b[2]))
    torch.testing.assert_close(step, alignment(a[2], a[1]))
    assert alignment_losses(alignment, a[:1], b[:1], 0, targets)[1] == 0


@pytest.mark.parametrize("mask_same_target", [False, True])
def test_padding_between_the_rows_of_processes_changes_nothing(mask_same_target: bool) -> None:
    """Three rows of one process and two of another, each padded to four."""
    alignment = Alignment(mask_same_target=mask_same_target)
    a, b = torch.randn(2, 5, 4, requires_grad=True), torch.randn(2, 5, 4, requires_grad=True)
    targets = torch.tensor([5, 6, 5, 7, 0])  # 0 is what padding holds
    real = torch.tensor([True, True, True, False, True, True, False, False])

    def padded(rows: torch.Tensor) -> GatheredRows:
        return GatheredRows(rows.new_zeros(8, rows.shape[1]).index_copy(0, real.nonzero().flatten(), rows), real)

    plain = alignment_losses(alignment, a, b, 0, targets)
    gathered = alignment_losses(alignment, a, b, 0, targets, padded)
    torch.testing.assert_close(gathered, plain)
    torch.testing.assert_close(*(torch.autograd.grad(torch.stack(losses).sum(), (a, b)) for losses in (gathered, plain)))


def test_alignment_refuses_a_temperature_of_zero() -> None:
    with pytest.raises(LaresError, match="tau must be above 0, got 0"):
        Alignment(tau=0.0)


# ---------------------------------------------------------------- supervision


def test_supervised_steps_and_weights_by_hand() -> None:
    trajectory = torch.arange(4.0)[:, None, None].expand(4, 3, 2)  # [T, R, d]; each state is its step
    last = LastStep()(trajectory)
    assert (last.states[:, 0, 0].tolist(), last.weights.tolist()) == ([3], [1])
    every = EveryStep(0.5)(trajectory)
    assert every.states[:, 0, 0].tolist() == [0, 1, 2, 3]
    assert every.weights.tolist() == pytest.approx([1 / 15, 2 / 15, 4 / 15, 8 / 15])
    generator = torch.Generator().manual_seed(0)
    drawn = [LastAndRandomStep(0.7)(trajectory, generator) for _ in range(60)]
    assert {tuple(one.states[:, 0, 0].tolist()) for one in drawn} == {(0, 3), (1, 3), (2, 3)}
    assert drawn[0].weights.tolist() == pytest.approx([0.3, 0.7])
    alone = LastAndRandomStep()(trajectory[:1], generator)
    assert (len(alone.states), alone.weights.tolist()) == (1, [1])


@pytest.mark.parametrize("make", [lambda: EveryStep(0.0), lambda: LastAndRandomStep(1.0), lambda: RecallReward(0)])
def test_invalid_choices_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(LaresError, match="must be"):
        make()


# ---------------------------------------------------------------- choices of RPT


def test_batch_advantages_by_hand() -> None:
    rewards = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    spread = math.sqrt(4 * 0.25 / 3)
    assert BatchAdvantage()(rewards).tolist() == [
        pytest.approx([0.5 / (spread + 1e-4)] * 2),
        pytest.approx([-0.5 / (spread + 1e-4)] * 2),
    ]
    # the other process has the second row: its sum is 0 of 2 numbers, its squared deviations from the common mean are 2 x 0.25
    of_other = iter([torch.tensor([0.0, 2.0]), torch.tensor(0.5)])
    of_two = BatchAdvantage()(rewards[:1], lambda mine: mine + next(of_other))
    torch.testing.assert_close(of_two, BatchAdvantage()(rewards)[:1])


def test_the_target_comes_first_among_the_best() -> None:
    states, vectors = torch.eye(3), torch.tensor([[9.0, 9, 9], [1, 0, 3], [2, 2, 2], [3, 1, 1]])
    items = TargetAmongBest(2).items(CatalogueHead(vectors, DotSimilarity()), states, torch.tensor([1, 2, 1]))
    assert items is not None
    # best two of each state: (3, 2), (2, 3), (1, 2); a target among them stands once
    assert items.tolist() == [[1, 3, 2], [2, 0, 3], [1, 0, 2]]
    assert WholeCatalogue().items(CatalogueHead(vectors, DotSimilarity()), states, torch.tensor([1, 2, 1])) is None


def test_a_reward_of_log_probabilities() -> None:
    assert LogProbReward()(torch.tensor([3]), torch.tensor([-0.5])).tolist() == [-0.5]
    with pytest.raises(ValueError, match="log_probs"):
        LogProbReward()(torch.tensor([3]))
