"""Compute at test time: fixed depth, stopping rules, averages over steps and trajectories."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lares_pl import (
    ConstantDepth,
    CosineSimilarity,
    DivergenceStop,
    DotSimilarity,
    FMLPBlock,
    Histories,
    LaresError,
    Reasoning,
    RecurrentBackbone,
    ResidualStop,
    TransformerBlock,
    ZeroState,
)
from lares_pl.model.catalogue_head import CatalogueHead
from lares_pl.model.layout import Layout
from lares_pl.model.packed_layout import packed
from lares_pl.model.padded_layout import padded
from lares_pl.model.reasoning import StopRule, mean_up_to_each
from lares_pl.model.recurrence import KeyedNoise
from tests.released import released_backbone

HISTORIES = Histories.from_lists([[3, 1, 4], [1], [5, 9, 2, 6, 5], [7, 7]])


def made(block: type = TransformerBlock, similarity: DotSimilarity | CosineSimilarity | None = None) -> RecurrentBackbone:
    torch.manual_seed(0)
    config = released_backbone(
        hidden_size=8,
        pre_layers=1,
        pre_block=block,
        core_block=block,
        core_layers=1,
        initializer_range=0.4,
        similarity=similarity or DotSimilarity(),
    )
    return RecurrentBackbone(9, 6, config).eval()


def path(backbone: RecurrentBackbone, depth: int, seed: int = 0) -> torch.Tensor:
    (states,) = backbone.rollout(HISTORIES, [depth], KeyedNoise(HISTORIES, seed))
    return states


def test_fixed_depth_gives_the_last_state_of_a_rollout() -> None:
    backbone = made()
    states, steps = Reasoning(3)(backbone, HISTORIES)
    assert torch.equal(states, path(backbone, 3)[-1])
    assert steps.tolist() == [3.0] * 4


@pytest.mark.parametrize("block", [TransformerBlock, FMLPBlock])
@pytest.mark.parametrize("rule", [ResidualStop, DivergenceStop])
@torch.no_grad()
def test_each_history_stops_at_its_own_step(block: type, rule: type[ResidualStop] | type[DivergenceStop]) -> None:
    backbone, depth, least = made(block), 8, 2
    states = path(backbone, depth)
    changes = torch.stack([rule().change(backbone.head(), a, b) for a, b in pairwise(states)])  # of step 2 …
    threshold = float(changes[1:5].flatten().sort().values[7:9].mean())  # some stop early, some later, none on the edge
    expected = [next((t for t in range(least, depth) if changes[t - 2, row] < threshold), depth) for row in range(4)]
    assert len(set(expected)) > 1
    ends, steps = Reasoning(depth, rule(threshold, least))(backbone, HISTORIES)
    assert steps.tolist() == expected
    torch.testing.assert_close(ends, torch.stack([states[t - 1, row] for row, t in enumerate(expected)]))


def test_stopping_never_and_always_give_the_full_depth_and_the_minimum() -> None:
    backbone = made()
    ends, steps = Reasoning(5, ResidualStop(0.0))(backbone, HISTORIES)
    torch.testing.assert_close(ends, path(backbone, 5)[-1])
    assert steps.tolist() == [5.0] * 4
    ends, steps = Reasoning(9, ResidualStop(1e9, least=3))(backbone, HISTORIES)
    torch.testing.assert_close(ends, path(backbone, 3)[-1])
    assert steps.tolist() == [3.0] * 4


@pytest.mark.parametrize("similarity", [DotSimilarity(), CosineSimilarity()])
@pytest.mark.parametrize("stop", [None, ResidualStop(0.0)])
@torch.no_grad()
def test_several_trajectories_rank_by_their_mean_score(
    similarity: DotSimilarity | CosineSimilarity, stop: StopRule | None
) -> None:
    backbone = made(similarity=similarity)
    paths = [path(backbone, 2, seed) for seed in range(3)]
    assert not torch.allclose(paths[0], paths[1])
    mean = torch.stack([backbone.head().scores(states[-1]) for states in paths]).mean(dim=0)[:, 1:]
    found = backbone.head().scores(Reasoning(2, stop, trajectories=3)(backbone, HISTORIES).states)[:, 1:]
    ratio = found / mean
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))  # the same up to a factor of the row …
    assert bool((ratio[:, 0] > 0).all())  # … that turns no order round
    if isinstance(similarity, DotSimilarity):
        torch.testing.assert_close(found, mean)


@pytest.mark.parametrize("similarity", [DotSimilarity(), CosineSimilarity()])
@pytest.mark.parametrize("stop", [None, ResidualStop(0.0)])
@pytest.mark.parametrize("trajectories", [1, 3])
@torch.no_grad()
def test_averaged_steps_rank_by_their_mean_score(
    similarity: DotSimilarity | CosineSimilarity, stop: StopRule | None, trajectories: int
) -> None:
    backbone = made(similarity=similarity)
    paths = [path(backbone, 4, seed) for seed in range(trajectories)]
    each = torch.stack([backbone.head().scores(states) for of_path in paths for states in of_path])
    found = backbone.head().scores(Reasoning(4, stop, trajectories, average_steps=True)(backbone, HISTORIES).states)[:, 1:]
    ratio = found / each.mean(dim=0)[:, 1:]
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
    assert bool((ratio[:, 0] > 0).all())
    if isinstance(similarity, DotSimilarity):
        torch.testing.assert_close(ratio, torch.ones_like(ratio))
    up_to_each = mean_up_to_each(backbone.config.similarity, paths[0])
    assert torch.equal(Reasoning(4, average_steps=True)(backbone, HISTORIES).states, paths_mean(backbone, paths[0]))
    torch.testing.assert_close(up_to_each[-1], paths_mean(backbone, paths[0]))
    torch.testing.assert_close(up_to_each[1], paths_mean(backbone, paths[0][:2]))


def paths_mean(backbone: RecurrentBackbone, states: torch.Tensor) -> torch.Tensor:
    return backbone.config.similarity.normalise(states).mean(dim=0)


@torch.no_grad()
def test_each_history_averages_the_steps_it_made() -> None:
    backbone = made()
    states = path(backbone, 6)
    changes = torch.stack([ResidualStop().change(backbone.head(), a, b) for a, b in pairwise(states)])[:4]
    rule = ResidualStop(float(changes.flatten().sort().values[7:9].mean()))
    ends, steps = Reasoning(6, rule, average_steps=True)(backbone, HISTORIES)
    assert len(set(steps.tolist())) > 1
    expected = [states[: int(made_steps), row].mean(dim=0) for row, made_steps in enumerate(steps.tolist())]
    torch.testing.assert_close(ends, torch.stack(expected))


def test_no_steps_are_averaged_at_depth_0() -> None:
    backbone = made()
    assert torch.equal(Reasoning(0, average_steps=True)(backbone, HISTORIES).states, path(backbone, 0)[0])


@pytest.mark.parametrize("options", [{"average_steps": True}, {"trajectories": 2}])
@pytest.mark.parametrize("stop", [None, ResidualStop()])
def test_cosines_with_a_bias_of_repeats_are_not_averaged(options: dict[str, Any], stop: StopRule | None) -> None:
    config = released_backbone(hidden_size=8, similarity=CosineSimilarity(), repeat_bias=True)
    backbone = RecurrentBackbone(9, 6, config).eval()
    with pytest.raises(LaresError, match="a model of cosines and repeat_bias can't average its scores"):
        Reasoning(2, stop, **options)(backbone, HISTORIES)


@torch.no_grad()
def test_divergence_equals_the_kl_of_the_two_distributions() -> None:
    backbone = made()
    a, b = torch.randn(5, 8), torch.randn(5, 8)
    p, q = (backbone.head().scores(x).double().softmax(dim=1) for x in (b, a))
    expected = (p * (p / q).log()).sum(dim=1).float()
    torch.testing.assert_close(DivergenceStop().change(backbone.head(), a, b), expected, rtol=1e-4, atol=1e-6)
    close = a + 1e-4 * torch.randn(5, 8)  # rounding errors of log-probabilities are larger than this divergence
    p, q = (backbone.head().scores(x).double().softmax(dim=1) for x in (close, a))
    found = DivergenceStop().change(backbone.head(), a, close)
    torch.testing.assert_close(found.double(), (p * (p / q).log()).sum(dim=1), rtol=0.05, atol=1e-12)
    assert bool((DivergenceStop().change(backbone.head(), a, a) == 0).all())


class Own(StopRule):
    """What a user writes."""

    def change(self, head: CatalogueHead, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        return (after - before).abs().amax(dim=1)


def test_a_custom_rule_defines_only_the_change() -> None:
    backbone = made().eval()
    histories = Histories.from_lists([[1, 2], [3]])
    assert Reasoning(6, Own(1e9))(backbone, histories).steps.tolist() == [2, 2]
    assert Reasoning(6, Own(1e9, least=4))(backbone, histories).steps.tolist() == [4, 4]
    with pytest.raises(LaresError, match="Own: threshold must not be negative"):
        Own(-1.0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.data(), st.booleans())
def test_a_layout_can_be_reduced_to_any_of_its_histories(lengths: list[int], data: st.DataObject, pad: bool) -> None:
    histories = Histories.from_lists([[row * 10 + i + 1 for i in range(n)] for row, n in enumerate(lengths)])
    layout: Layout = padded(histories, 6) if pad else packed(histories)
    stay = data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)).filter(any))
    kept, index = layout.keep(torch.tensor(stay))
    x = layout.arrange(histories.items)
    rest = Histories.from_lists([[row * 10 + i + 1 for i in range(n)] for row, n in enumerate(lengths) if stay[row]])
    expected = (padded(rest, 6) if pad else packed(rest)).arrange(rest.items)
    assert torch.equal(x[index], expected)
    ends = [row * 10 + n for row, n in enumerate(lengths) if stay[row]]
    assert kept.last(x[index][..., None])[:, 0].tolist() == ends
    assert torch.equal(kept.positions.flatten(), (padded(rest, 6) if pad else packed(rest)).positions.flatten())


def test_invalid_arguments_are_refused() -> None:
    with pytest.raises(LaresError, match="least must be at least 2"):
        ResidualStop(0.1, least=1)
    with pytest.raises(LaresError, match="threshold must not be negative"):
        DivergenceStop(float("nan"))
    with pytest.raises(LaresError, match="trajectories at least 1"):
        Reasoning(2, trajectories=0)
    alike = RecurrentBackbone(9, 6, released_backbone(hidden_size=8, initial_state=ZeroState())).eval()
    with pytest.raises(LaresError, match=r"trajectories: 4 asked of a model that starts all of them alike \(ZeroState\)"):
        Reasoning(2, trajectories=4)(alike, HISTORIES)
    flat = RecurrentBackbone(9, 6, released_backbone(hidden_size=8, core_layers=0, depth=ConstantDepth(0))).eval()
    for stop in (None, ResidualStop()):
        with pytest.raises(LaresError, match="without core-block"):
            Reasoning(2, stop)(flat, HISTORIES)
        assert Reasoning(0, stop)(flat, HISTORIES).steps.tolist() == [0.0] * 4
