"""The recurrent-depth backbone: iterations against the unrolled stack, packed against padded, joint against separate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lares_pl import (
    AddInjection,
    ConcatInjection,
    ConstantDepth,
    FMLPBlock,
    Histories,
    LaresError,
    LinearInjection,
    LRUBlock,
    NormalState,
    NormalZeroState,
    RecurrentBackbone,
    TransformerBlock,
    ZeroState,
)
from lares_pl.model.packed_layout import packed
from lares_pl.model.padded_layout import padded
from lares_pl.model.recurrence import Injection, KeyedNoise, RandomNoise
from tests.released import released_backbone

HISTORIES = Histories.from_lists([[3, 1, 4], [1], [5, 9, 2, 6, 5], [7, 7]])


def made(**settings: Any) -> RecurrentBackbone:
    torch.manual_seed(0)
    settings = {"hidden_size": 8, "pre_layers": 1, "core_layers": 2, "dropout": 0.0, "initializer_range": 0.5} | settings
    return RecurrentBackbone(9, 6, released_backbone(**settings))


@pytest.mark.parametrize("injection", [AddInjection(), ConcatInjection(), LinearInjection()])
def test_t_iterations_equal_the_unrolled_stack(injection: Injection) -> None:
    backbone = made(injection=injection).eval()
    start = torch.randn(HISTORIES.tokens, 8)
    (states,) = backbone.rollout(HISTORIES, [3], initial_states=[start])
    h, layout = backbone.encode(HISTORIES)
    z = start
    for t in range(3):
        if isinstance(injection, AddInjection):
            joined = (z + h) / 2
        elif isinstance(injection, ConcatInjection):
            joined = backbone.injection.linear(torch.cat([z, h], dim=1))  # type: ignore[operator]
        else:
            share = torch.sigmoid(backbone.injection.gate)  # type: ignore[arg-type]
            joined = share * z + (1 - share) * h
        z = backbone.core_norm(joined)
        for block in backbone.core_blocks:
            z = block(z, layout)
        torch.testing.assert_close(states[t], z[HISTORIES.lengths.cumsum(0) - 1])


def test_depth_zero_is_the_pre_block() -> None:
    backbone = made().eval()
    (states,) = backbone.rollout(HISTORIES, [0])
    h, layout = backbone.encode(HISTORIES)
    torch.testing.assert_close(states, layout.last(h)[None])


def test_a_model_without_core_has_depth_zero_only() -> None:
    backbone = made(core_layers=0, depth=ConstantDepth(0))
    backbone.rollout(HISTORIES, [0])
    with pytest.raises(LaresError, match="without core-block"):
        backbone.rollout(HISTORIES, [2])


class PaddedTransformer(TransformerBlock):
    """The same layer, asking for the padded form."""

    padding_matters = True


@pytest.mark.parametrize("block", [TransformerBlock, PaddedTransformer, LRUBlock, FMLPBlock])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("depths", [[1, 4, 2], [3, 3, 3], [0, 3, 1], [2, 0, 2], [0, 0, 0]])
def test_joint_trajectories_equal_separate_trajectories(block: type[nn.Module], training: bool, depths: list[int]) -> None:
    backbone = made(pre_block=block, core_block=block).train(training)
    other = Histories.from_lists([[2, 2], [8], [6], [1, 2, 3, 4, 5, 6]])
    parts = [HISTORIES, other, HISTORIES]
    starts = []
    for part in parts:
        shape = (len(part), 6) if backbone.padded else (part.tokens,)
        starts.append(torch.randn(*shape, 8))
    together = backbone.rollout(parts, depths, initial_states=starts)
    for part, depth, start, states in zip(parts, depths, starts, together, strict=True):
        (alone,) = backbone.rollout(part, [depth], initial_states=[start])
        assert len(states) == max(depth, 1)
        torch.testing.assert_close(states, alone, rtol=1e-5, atol=1e-5)


def test_a_shared_context_is_encoded_once_and_gives_equal_states() -> None:
    backbone = made().eval()
    calls = []
    backbone.pre_blocks[0].register_forward_hook(lambda *_: calls.append(1))
    starts = [torch.randn(HISTORIES.tokens, 8) for _ in range(3)]
    shared = backbone.rollout(HISTORIES, [2, 0, 3], initial_states=starts)
    assert len(calls) == 1
    separate = backbone.rollout([HISTORIES] * 3, [2, 0, 3], initial_states=starts)
    for one, two in zip(shared, separate, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


def test_a_history_longer_than_max_length_is_refused() -> None:
    with pytest.raises(LaresError, match="at most 6"):
        made().encode(Histories.from_lists([[1] * 7]))


@pytest.mark.parametrize("depths", [[], [1, -1], ["2"], [2.5], 3])
def test_depths_that_are_no_numbers_of_steps_are_refused(depths: Any) -> None:
    with pytest.raises(LaresError, match=r"^depths must be a list of the number of steps of each trajectory, .*; got "):
        made().rollout(HISTORIES, depths)


@pytest.mark.parametrize("histories", [[[1, 2]], [], [HISTORIES, HISTORIES]])
def test_histories_that_are_no_histories_are_refused(histories: Any) -> None:
    with pytest.raises(LaresError, match=r"histories must be one Histories for all trajectories, or one for each of 1; "):
        made().rollout(histories, [1])


def test_a_history_with_an_item_beyond_the_catalogue_is_named() -> None:
    given = Histories.from_lists([[1, 2], [3, 12, 4]])
    for histories, depths in ((given, [1]), ([HISTORIES, given.to("cpu")], [1, 2])):
        with pytest.raises(LaresError, match=r"item 12 in the history \[3, 12, 4\]; this model knows items 1 to 9"):
            made().rollout(histories, depths)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    backbone = RecurrentBackbone(500, 20, released_backbone())
    for name, parameter in backbone.named_parameters():
        if name.endswith("norm.weight"):
            assert (parameter == 1).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
    assert backbone.item_vectors[0].abs().max() > 0  # padding is a class of the training softmax


# ---------------------------------------------------------------- initial states and noise


def test_normal_state_is_a_truncated_normal() -> None:
    histories = Histories.from_lists([[1] * 20] * 200)
    z = NormalState(std=0.5, scale=2.0).draw(packed(histories), 16, RandomNoise(torch.Generator().manual_seed(0)), True)
    assert z.abs().max() <= 2.0 * 0.5 * 3 + 1e-4
    assert z.std().item() == pytest.approx(2.0 * 0.5 * 0.9866, rel=0.01)  # std of N(0, 1) cut at 3
    assert z.mean().item() == pytest.approx(0, abs=0.02)


def test_variants_of_the_initial_state() -> None:
    layout = packed(HISTORIES)
    assert (ZeroState().draw(layout, 4, RandomNoise(), True) == 0).all()
    assert (NormalZeroState().draw(layout, 4, RandomNoise(), False) == 0).all()
    assert NormalZeroState().draw(layout, 4, RandomNoise(), True).abs().max() > 0


def test_keyed_noise_is_a_function_of_history_position_and_channel() -> None:
    histories = Histories.from_lists([[1] * 5, [2] * 3, [4, 3, 2, 1], [1, 2, 3, 4]])
    whole = KeyedNoise(histories).uniform(packed(histories), 8)
    one = Histories.from_lists([[4, 3, 2, 1]])
    assert torch.equal(whole[8:12], KeyedNoise(one).uniform(packed(one), 8))  # the batch does not matter
    in_padded = KeyedNoise(histories).uniform(padded(histories, 7), 8)
    assert torch.equal(in_padded[0, :5], whole[:5])
    assert not torch.equal(whole, KeyedNoise(histories, seed=1).uniform(packed(histories), 8))
    assert not torch.equal(whole[8:12], whole[12:])  # the order of items does
    longer = Histories.from_lists([[4, 3, 2, 1, 1, 2]])
    assert torch.equal(whole[8:12], KeyedNoise(longer).uniform(packed(longer), 8)[:4])  # what follows does not


def test_keyed_noise_is_uniform() -> None:
    histories = Histories.from_lists([[user, *[1] * 19] for user in range(1, 501)])
    draws = KeyedNoise(histories).uniform(packed(histories), 16).flatten()
    counts = torch.histc(draws, bins=20, min=0, max=1)
    expected = len(draws) / 20
    assert ((counts - expected) ** 2 / expected).sum() < 50  # chi-square, 19 degrees of freedom, p about 1e-4
    assert draws.min() > 0
    assert draws.max() < 1
    by_row = draws.view(500, -1)
    assert torch.corrcoef(by_row[:50]).fill_diagonal_(0).abs().max() < 0.3
