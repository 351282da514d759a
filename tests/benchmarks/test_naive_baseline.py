"""The benchmark's naive baseline computes the same as the package: losses and gradients, on random shapes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import bench
from lares_pl import BackboneConfig, Histories, RecallReward, RecurrentBackbone
from lares_pl.losses.alignment import Alignment, alignment_losses
from lares_pl.stages.group_loss import GroupObjective, group_loss
from naive_baseline import NaiveBaseline

ITEMS, LENGTH = 15, 7
histories = st.lists(st.lists(st.integers(1, ITEMS), min_size=1, max_size=LENGTH), min_size=2, max_size=5)


def padded_rows(lists: list[list[int]]) -> tuple[Tensor, Tensor]:
    rows = torch.tensor([[*items, *[0] * (LENGTH - len(items))] for items in lists])
    return rows, torch.tensor([len(items) for items in lists])


def backbone(seed: int) -> RecurrentBackbone:
    torch.manual_seed(seed)
    config = BackboneConfig(hidden_size=8, pre_layers=1, core_layers=2, dropout=0.0, initializer_range=0.3)
    return RecurrentBackbone(ITEMS, LENGTH, config).double()


def gradients(model: RecurrentBackbone, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(model: RecurrentBackbone, slow: Tensor, fast: Tensor) -> None:
    torch.testing.assert_close(fast, slow, rtol=1e-6, atol=1e-7, check_dtype=False)
    ours, theirs = gradients(model, fast), gradients(model, slow)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def noise(rows: Tensor, lengths: Tensor, count: int) -> tuple[list[Tensor], list[Tensor]]:
    """z_0 for both sides: padded, and the same packed."""
    real = torch.arange(LENGTH) < lengths[:, None]
    drawn = [torch.randn(*rows.shape, 8, dtype=torch.float64) for _ in range(count)]
    return drawn, [z[real] for z in drawn]


@settings(max_examples=20, deadline=None)
@given(histories, st.integers(1, 4), st.integers(1, 4), st.data())
def test_spt(lists: list[list[int]], depth: int, pair: int, data: st.DataObject) -> None:
    model = backbone(len(lists)).train()
    step = data.draw(st.integers(0, pair - 1))
    partners = [data.draw(st.sampled_from(lists)) for _ in lists]
    targets = torch.tensor([data.draw(st.integers(1, ITEMS)) for _ in lists])
    rows, lengths = padded_rows(lists)
    partner_rows, partner_lengths = padded_rows(partners)
    own, own_packed = noise(rows, lengths, 2)
    other, other_packed = noise(partner_rows, partner_lengths, 1)
    batch = {
        "history": rows, "length": lengths, "target": targets, "partner": partner_rows, "partner_length": partner_lengths
    }  # fmt: skip
    slow = NaiveBaseline(model).spt_loss(batch, depth, pair, step, [*own, *other])
    mine = Histories.from_lists(lists)
    prediction, a, b = model.rollout(
        [mine, mine, Histories.from_lists(partners)], [depth, pair, pair], initial_states=[*own_packed, *other_packed]
    )
    trajectory, step_level = alignment_losses(Alignment(), a, b, step, targets)
    fast = model.head().cross_entropy(prediction[-1], targets) + 0.1 * trajectory + 0.5 * step_level
    assert_same(model, slow, fast)


@settings(max_examples=20, deadline=None)
@given(histories, st.lists(st.integers(1, 4), min_size=2, max_size=4), st.data())
def test_rpt(lists: list[list[int]], depths: list[int], data: st.DataObject) -> None:
    model, frozen = backbone(1).train(), backbone(2).eval()
    targets = torch.tensor([data.draw(st.integers(1, ITEMS)) for _ in lists])
    rows, lengths = padded_rows(lists)
    starts, starts_packed = noise(rows, lengths, 2 * len(depths))
    batch = {"history": rows, "length": lengths, "target": targets}
    slow = NaiveBaseline(model).rpt_loss(NaiveBaseline(frozen).eval(), batch, depths, starts, k=5)
    count = len(depths)
    fast = group_loss(
        model, frozen, Histories.from_lists(lists), targets, depths, GroupObjective(RecallReward(5)),
        initial_states=(starts_packed[:count], starts_packed[count:]),
    ).loss  # fmt: skip
    assert_same(model, slow, fast)


def test_ranks() -> None:
    model = backbone(0).eval()
    lists = [[1, 2, 3], [4], [5, 6, 7, 8]]
    rows, lengths = padded_rows(lists)
    starts, starts_packed = noise(rows, lengths, 1)
    targets = torch.tensor([3, 9, 1])
    states = NaiveBaseline(model)(rows, lengths, 3, starts[0])
    (ours,) = model.rollout(Histories.from_lists(lists), [3], initial_states=starts_packed)
    torch.testing.assert_close(ours.transpose(0, 1), states)
    scores = states[:, -1] @ model.item_vectors.T
    expected = (scores[:, 1:] >= scores.gather(1, targets[:, None])).sum(1)
    assert model.head().rank(ours[-1], targets).tolist() == expected.tolist()


@pytest.mark.slow
def test_the_benchmark_runs(
    toy_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["bench.py", str(toy_dataset), "--case", "data_module", "--json", str(tmp_path / "x.json")]
    )
    bench.main()
    assert "| 16 training batches" in capsys.readouterr().out
    (result,) = json.loads((tmp_path / "x.json").read_text())["results"]
    assert result["ratio"] == pytest.approx(result["slow_s"] / result["fast_s"], rel=0.9)
    assert result["slow_mib"] >= 0
