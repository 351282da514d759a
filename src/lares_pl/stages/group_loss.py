"""The loss of RPT: groups of trajectories, their rewards and advantages, and the policy-gradient terms of their steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lares_pl.data.loading.histories import Histories
from lares_pl.data.loading.item_pairs import ItemPairs, items_read
from lares_pl.errors import LaresError
from lares_pl.losses.actions import Actions, WholeCatalogue
from lares_pl.losses.advantages import Advantage, GroupAdvantage
from lares_pl.losses.grpo import grpo, step_weights
from lares_pl.losses.rewards import RecallReward, Reward
from lares_pl.model.backbone import RecurrentBackbone
from lares_pl.model.catalogue_head import CatalogueHead
from lares_pl.model.device import on_device
from lares_pl.model.recurrence import Noise
from lares_pl.model.rollout import step_residual


@dataclass(frozen=True)
class GroupObjective:
    """What RPT maximises.

    Args:
        reward: reward of a trajectory.
        advantage: what a reward is compared with.
        actions: what the policy chooses from at each step.
        beta: weight of the KL term to the frozen SPT model.
        anchor: weight of the cross-entropy of the target at the end of each trajectory; 0 leaves it out.
    """

    reward: Reward = field(default_factory=RecallReward)
    advantage: Advantage = field(default_factory=GroupAdvantage)
    actions: Actions = field(default_factory=WholeCatalogue)
    beta: float = 1.0
    anchor: float = 0.0

    def __post_init__(self) -> None:
        if self.beta < 0 or self.anchor < 0:
            raise LaresError(f"RPT: beta and anchor must not be negative, got {self.beta} and {self.anchor}")


def rounded_up(depths: Sequence[int], unit: int) -> tuple[int, ...]:
    """The depths to which the trajectories of a group are run, so that many groups run to the same ones.

    Args:
        depths: T_g of each trajectory, deepest first.
        unit: each is rounded up to a multiple of it; 0 counts as 1.
    """
    unit = max(1, unit)
    return tuple(-(-depth // unit) * unit for depth in depths)


class Counted(NamedTuple):
    """What counts of groups whose trajectories are run deeper than they are, with instances beside the real ones.

    Args:
        depths: T_g of each trajectory, `[G]`, at least 1, deepest first; further steps do not count.
        shares: share of each instance in a mean over those that count, `[B]`; 0 for those that do not.
    """

    depths: Tensor
    shares: Tensor

    def step_weights(self, run: Sequence[int]) -> Tensor:
        """`1 / (G T_g)` where a step counts, for all steps of each trajectory as deep as it is run, `[sum(run)]`."""
        within = torch.arange(max(run), device=self.depths.device) < self.depths[:, None]
        weights = within / (len(self.depths) * self.depths[:, None])
        return torch.cat([of_trajectory[:steps] for of_trajectory, steps in zip(weights, run, strict=True)])

    def ends(self, trajectories: Sequence[Tensor]) -> list[Tensor]:
        """The last state that counts of each trajectory, each `[B, d]`."""
        last = (self.depths - 1).split(1)
        return [states.index_select(0, place)[0] for states, place in zip(trajectories, last, strict=True)]

    def residual(self, deepest: Tensor) -> Tensor:
        """`step_residual` of the first trajectory; 0 if it has one step."""
        last_two = (self.depths[0] + torch.arange(-2, 0, device=deepest.device)).clamp(min=0)
        return step_residual(deepest.index_select(0, last_two), self.shares)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the instances that count, of `[B]`."""
        return (values * self.shares).sum()


class GroupOutcome(NamedTuple):
    """What a batch of groups gives."""

    loss: Tensor
    kl: Tensor
    cross_entropy: Tensor | None  # of the anchor
    rewards: Tensor  # [B, G]
    advantages: Tensor  # [B, G]
    residual: Tensor | None  # of the deepest trajectory, where it has two steps


def group_loss(
    policy: RecurrentBackbone,
    reference: RecurrentBackbone,
    histories: Histories,
    targets: Tensor,
    depths: Sequence[int],
    objective: GroupObjective,
    noise: Noise | None = None,
    initial_states: tuple[Sequence[Tensor], Sequence[Tensor]] | None = None,
    places: Tensor | None = None,
    read: ItemPairs | None = None,
    total: Callable[[Tensor], Tensor] | None = None,
    counted: Counted | None = None,
) -> GroupOutcome:
    """The GRPO loss of one batch: G trajectories of each instance, each with its own noise and depth.

    Args:
        policy: the model that is trained.
        reference: the frozen SPT model, in evaluation mode.
        histories: their histories.
        targets: `[B]`.
        depths: T_g of each trajectory, G of them, or, with `counted`, how deep it is run; the reference goes as deep.
        objective: what is maximised.
        noise: where initial states come from.
        initial_states: z_0 of the policy's and of the reference's trajectories instead.
        places: tokens at which the instances' histories end, `[B]`; the last of each history where None.
        read: what has been read at these tokens, where it is known.
        total: adds a tensor up over all processes.
        counted: which of it counts, where it is more than that; all does where None.
    """
    starts = (None, None) if initial_states is None else initial_states
    count, instances = len(depths), len(targets)
    trajectories = policy.rollout(histories, depths, noise, starts[0], places)
    references = reference_trajectories(reference, histories, depths, noise, starts[1], places)
    if read is None and policy.config.repeat_bias:
        read = items_read(histories, places)
    head, reference_head = (model.policy_head(read=read) for model in (policy, reference))

    last = [states[-1] for states in trajectories] if counted is None else counted.ends(trajectories)
    ends = torch.cat(last)  # [G * B, d]
    end_targets = targets.repeat(count)
    head_of_ends = head.repeat(count, instances)
    rewards = _rewards(head_of_ends, ends, end_targets, objective.reward).view(count, -1).T
    advantages = objective.advantage(rewards, total)
    items = objective.actions.items(head_of_ends, ends, end_targets)

    rows = _StepRows.of(trajectories, references, targets, advantages, items)
    if counted is None:
        of_steps = on_device(step_weights(depths, instances), ends.device)
        weights = of_steps.repeat_interleave(instances, output_size=len(of_steps) * instances)
    else:
        weights = (counted.step_weights(depths)[:, None] * counted.shares).flatten()
    steps = len(weights) // instances
    heads = head.repeat(steps, instances), reference_head.repeat(steps, instances)
    if rows.items is None:
        loss, kl = _over_the_catalogue(*heads, rows, weights, objective.beta)
    else:
        loss, kl = _over_items(*heads, rows, rows.items, weights, objective.beta)

    cross_entropy = None
    if objective.anchor:
        of_ends = None if counted is None else counted.shares.repeat(count) / count
        cross_entropy = replace(head_of_ends, similarity=policy.config.similarity).cross_entropy(ends, end_targets, of_ends)
        loss = loss + objective.anchor * cross_entropy
    deepest = max(trajectories, key=len)
    residual = None
    if len(deepest) > 1:
        residual = step_residual(deepest) if counted is None else counted.residual(deepest)
    return GroupOutcome(loss, kl, None if cross_entropy is None else cross_entropy.detach(), rewards, advantages, residual)


@torch.no_grad()
def reference_trajectories(
    reference: RecurrentBackbone,
    histories: Histories,
    depths: Sequence[int],
    noise: Noise | None,
    initial_states: Sequence[Tensor] | None,
    places: Tensor | None,
) -> list[Tensor]:
    """User states of the reference's trajectories; without noise all are the beginning of the deepest one, run once."""
    if initial_states is None and min(depths) > 0 and not reference.config.initial_state.random(reference.training):
        (deepest,) = reference.rollout(histories, [max(depths)], noise, read=places)
        return [deepest[:depth] for depth in depths]
    return reference.rollout(histories, depths, noise, initial_states, places)


@torch.no_grad()
def _rewards(head: CatalogueHead, ends: Tensor, targets: Tensor, reward: Reward) -> Tensor:
    """Rewards of the trajectories that end in these states, `[G * B]`."""
    return reward(head.rank(ends, targets), head.log_prob(ends, targets) if reward.reads_log_probs else None)


class _StepRows(NamedTuple):
    """All steps of all trajectories, one after the other: R = sum T_g * B rows."""

    states: Tensor  # [R, d]
    of_reference: Tensor  # [R, d]
    targets: Tensor  # [R]
    advantages: Tensor  # [R]
    items: Tensor | None  # [R, C]

    @staticmethod
    def of(
        trajectories: Sequence[Tensor],
        references: Sequence[Tensor],
        targets: Tensor,
        advantages: Tensor,
        items: Tensor | None,
    ) -> _StepRows:
        steps = [len(states) for states in trajectories]
        of_trajectory: Sequence[Tensor] = () if items is None else items.view(len(steps), len(targets), -1).unbind()
        return _StepRows(
            torch.cat(list(trajectories)).flatten(0, 1),
            torch.cat(list(references)).flatten(0, 1),
            targets.repeat(sum(steps)),
            torch.cat([a.repeat(count) for a, count in zip(advantages.T, steps, strict=True)]),
            None if items is None else torch.cat([i.repeat(n, 1) for i, n in zip(of_trajectory, steps, strict=True)]),
        )


def _over_the_catalogue(
    head: CatalogueHead, reference_head: CatalogueHead, rows: _StepRows, weights: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """Loss and KL of policies over all items."""
    reference_log_probs = reference_head.log_prob(rows.of_reference, rows.targets)

    def loss_of(log_probs: Tensor, some: slice) -> Tensor:
        terms = grpo(log_probs, reference_log_probs[some], rows.advantages[some], beta)
        return (weights[some] * terms.loss).sum()

    loss, log_probs = head.loss(rows.states, rows.targets, loss_of)
    return loss, (weights * grpo(log_probs, reference_log_probs, rows.advantages, beta).kl).sum()


def _over_items(
    head: CatalogueHead, reference_head: CatalogueHead, rows: _StepRows, items: Tensor, weights: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """Loss and KL of policies over each row's own items, of which the target is the first."""
    with torch.no_grad():
        reference_log_probs = reference_head.item_log_probs(rows.of_reference, items)[:, 0]
    log_probs = head.item_log_probs(rows.states, items)[:, 0]
    terms = grpo(log_probs, reference_log_probs, rows.advantages, beta)
    return (weights * terms.loss).sum(), (weights * terms.kl.detach()).sum()
