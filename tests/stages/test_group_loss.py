"""What the reference policy computes for a group of trajectories."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lares_pl import BackboneConfig, NormalState, NormalZeroState, ZeroState
from lares_pl.data.loading.histories import Histories
from lares_pl.model.backbone import RecurrentBackbone
from lares_pl.model.layout import Layout
from lares_pl.model.recurrence import InitialState, RandomNoise
from lares_pl.stages.group_loss import reference_trajectories

HISTORIES = Histories.from_lists([[3, 1, 4], [1, 5, 9, 2, 6, 5, 3, 5], [8, 9, 7, 9, 3]])
DEPTHS = [2, 5, 1, 3]


class CountedBackbone(RecurrentBackbone):
    """Counts the histories of each step that it makes."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(10, 8, config)
        self.rows: list[int] = []

    def step(self, state: Tensor, context: Tensor, layout: Layout) -> Tensor:
        self.rows.append(layout.rows)
        return super().step(state, context, layout)

    def last_step(self, state: Tensor, context: Tensor, layout: Layout) -> Tensor:
        self.rows.append(layout.rows)
        return super().last_step(state, context, layout)


def trajectories(initial_state: InitialState, depths: list[int]) -> tuple[list[Tensor], list[Tensor], list[int]]:
    """The reference's trajectories, those of a rollout with the same noise, and the histories of each of their steps."""
    torch.manual_seed(0)
    reference = CountedBackbone(BackboneConfig(hidden_size=16, initial_state=initial_state, initializer_range=0.3)).eval()

    def noise() -> RandomNoise:
        return RandomNoise(torch.Generator().manual_seed(1))

    found = reference_trajectories(reference, HISTORIES, depths, noise(), None, None)
    rows = list(reference.rows)
    return found, reference.rollout(HISTORIES, depths, noise()), rows


@pytest.mark.parametrize("initial_state", [ZeroState(), NormalZeroState()])
def test_without_noise_the_reference_runs_once_for_a_group(initial_state: InitialState) -> None:
    found, each, rows = trajectories(initial_state, DEPTHS)
    assert rows == [3] * max(DEPTHS)
    for ours, separate in zip(found, each, strict=True):
        torch.testing.assert_close(ours, separate)


def test_with_noise_each_trajectory_is_its_own() -> None:
    found, each, rows = trajectories(NormalState(), DEPTHS)
    assert sum(rows) == 3 * sum(DEPTHS)
    assert all(torch.equal(ours, separate) for ours, separate in zip(found, each, strict=True))
    assert not torch.allclose(found[0], found[1][:2])


def test_depth_0_is_the_encoded_history() -> None:
    found, each, _ = trajectories(ZeroState(), [2, 0])
    assert [len(states) for states in found] == [2, 1]
    torch.testing.assert_close(found[1], each[1])
