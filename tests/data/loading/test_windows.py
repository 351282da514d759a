"""Windows predict each training instance once, and their states equal those of prefix instances."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lares_pl import (
    FMLPBlock,
    Histories,
    LaresError,
    Pruning,
    RecurrentBackbone,
    SequenceDataModule,
    SequenceDataset,
    TransformerBlock,
)
from lares_pl.data.loading.instance_rng import InstanceDraws
from lares_pl.data.loading.loaders import InstanceLoader, WindowLoader
from lares_pl.data.loading.partners import SameTargetPartners
from lares_pl.data.loading.sampler import Shard
from lares_pl.data.loading.windows import training_windows
from lares_pl.model.layout import Layout
from lares_pl.stages.pruning import kept_instances
from tests.model.test_blocks import CAUSAL
from tests.released import released_backbone
from tests.training import SMALL, released_rpt, released_spt, trainer


def sequences(lengths: list[int], items: int = 9) -> SequenceDataset:
    """Users with this many items each."""
    drawn = np.random.default_rng(sum(lengths)).integers(1, items + 1, sum(lengths)).astype(np.int32)
    users, catalogue = pa.array(range(len(lengths))), pa.array(range(1, items + 1))
    return SequenceDataset.of_arrays(drawn, np.concatenate([[0], np.cumsum(lengths)]), users, catalogue, "made up")


many = st.lists(st.integers(1, 30), min_size=1, max_size=8).filter(lambda lengths: max(lengths) > 1)

# ---------------------------------------------------------------- windows


@given(many, st.integers(1, 9), st.data())
def test_each_instance_is_predicted_once_with_enough_history(lengths: list[int], longest: int, draw: st.DataObject) -> None:
    data = sequences(lengths)
    overlap = draw.draw(st.none() | st.integers(1, longest))
    windows, instances = training_windows(data, longest, overlap), data.training_instances.all()
    predicted = []
    for start, end, first, count in zip(windows.starts, windows.ends, windows.firsts, windows.counts, strict=True):
        assert 1 <= count <= end - start <= longest
        for k in range(count):
            instance, target = first + k, end - count + 1 + k
            predicted.append(instance)
            assert instances.ends[instance] == target
            assert start >= instances.starts[instance]
            context, prefix = target - start, min(target - instances.starts[instance], longest)
            wanted = -(-longest // 2) if overlap is None else overlap
            number = target - instances.starts[instance]  # 1 for a user's first target
            assert context == prefix if number <= longest or overlap == longest else context >= wanted
    assert sorted(predicted) == list(range(len(instances)))


@given(many, st.integers(1, 9), st.data())
def test_windows_end_at_their_last_kept_instance(lengths: list[int], longest: int, draw: st.DataObject) -> None:
    data = sequences(lengths)
    count = len(data.training_instances)
    kept = np.array(draw.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    windows = training_windows(data, longest).keeping(kept)
    spans = [range(first, first + n) for first, n in zip(windows.firsts, windows.counts, strict=True)]
    assert all(kept[span[-1]] for span in spans)
    assert sorted(i for span in spans for i in span if kept[i]) == np.flatnonzero(kept).tolist()
    assert np.array_equal(windows.ends, data.training_instances.all().ends[windows.firsts + windows.counts - 1])


def test_batches_of_windows_are_complete() -> None:
    data = sequences([2, 3, 30, 7, 12, 9], items=4)
    instances = data.training_instances.all()
    kept = np.arange(len(instances)) % 3 != 0
    partners = SameTargetPartners(data)
    loader = WindowLoader(data, training_windows(data, 5), 4, 5, kept, aligned=2, partners=partners, shuffle=True)
    served, aligned = [], 0
    for batch in loader:
        assert batch.target_positions is not None
        assert batch.aligned is not None
        assert batch.partners is not None
        rows = [row.tolist() for row in batch.histories.items.split(batch.histories.lengths.tolist())]
        row_of = torch.repeat_interleave(batch.histories.lengths)
        starts = batch.histories.lengths.cumsum(0) - batch.histories.lengths
        for place, index, target in zip(
            batch.target_positions.tolist(), batch.instances.tolist(), batch.targets.tolist(), strict=True
        ):
            row = int(row_of[place])
            read = rows[row][: place - int(starts[row]) + 1]
            end = instances.ends[index]
            assert read == data.items[end - len(read) : end].tolist()
            assert target == data.items[end]
        per_window = torch.bincount(row_of[batch.target_positions], minlength=len(rows)).clamp(max=2)
        assert len(batch.aligned) == len(batch.partners) == per_window.sum()
        aligned += len(batch.aligned)
        served += batch.instances.tolist()
        assert bool(batch.valid.all())
    assert sorted(served) == np.flatnonzero(kept).tolist()
    assert aligned > len(loader.windows)


def test_aligned_instances_are_drawn_uniformly() -> None:
    data = sequences([9])
    data.items[:] = range(1, 10)
    loader = WindowLoader(data, training_windows(data, 8), 1, 8, aligned=1)
    lengths: list[int] = []
    for epoch in range(3000):
        aligned = loader.cut(np.array([0]), InstanceDraws(0, epoch)).aligned
        assert aligned is not None
        lengths.append(int(aligned.lengths[0]))
        assert aligned.items.tolist() == list(range(1, lengths[-1] + 1))
    counts = np.bincount(lengths)[1:]
    assert len(counts) == 6
    assert abs(counts - 500).max() < 100


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_instance_is_served_once_over_all_processes(world_size: int) -> None:
    data = sequences([2, 3, 30, 7, 12, 9])
    served: list[int] = []
    for rank in range(world_size):
        for batch in WindowLoader(data, training_windows(data, 5), 2, 5, shard=Shard(rank, world_size)):
            served += batch.instances[batch.valid].tolist()
    assert sorted(served) == list(range(len(data.training_instances)))


# ---------------------------------------------------------------- states


class Running(nn.Module):
    """A causal block on padded histories: each position reads the mean of all positions up to itself."""

    causal = True

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        count = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]
        mixed: Tensor = x + self.linear(x.cumsum(dim=1) / count)
        return mixed


BLOCKS = [*CAUSAL, Running]


def causal(block: type[nn.Module], items: int, longest: int) -> RecurrentBackbone:
    torch.manual_seed(3)
    config = released_backbone(
        hidden_size=8, pre_block=block, core_block=block, pre_layers=1, core_layers=2, dropout=0.0, initializer_range=0.3
    )
    return RecurrentBackbone(items, longest, config)


@pytest.mark.parametrize("block", BLOCKS)
@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(4, 9), min_size=1, max_size=4), st.integers(0, 4))
def test_states_and_gradients_equal_those_of_prefix_instances(block: type[nn.Module], lengths: list[int], depth: int) -> None:
    data = sequences(lengths)
    model = causal(block, 9, 8).train().double()  # so that nothing but a mistake is a difference
    instances = data.training_instances
    (windows,) = WindowLoader(data, training_windows(data, 8), 99, 8)
    (prefixes,) = InstanceLoader(data, instances, 99, 8)
    assert windows.target_positions is not None
    assert windows.instances.tolist() == prefixes.instances.tolist()

    real = windows.histories.tokens
    z = torch.randn(real, 8, dtype=torch.float64)
    starts = windows.histories.lengths.cumsum(0) - windows.histories.lengths
    row = torch.repeat_interleave(windows.histories.lengths)
    of_prefixes = torch.cat([z[starts[row[place]] : place + 1] for place in windows.target_positions])

    def laid_out(histories: Histories, states: Tensor) -> list[Tensor]:
        layout = model._layout(histories)
        if not model.padded:
            return [states]
        return [states.new_zeros(*layout.shape, 8).masked_scatter(layout.mask[..., None], states)]

    (at_once,) = model.rollout(
        windows.histories, [depth], initial_states=laid_out(windows.histories, z), read=windows.target_positions
    )
    (one_by_one,) = model.rollout(prefixes.histories, [depth], initial_states=laid_out(prefixes.histories, of_prefixes))
    torch.testing.assert_close(at_once, one_by_one, rtol=1e-9, atol=1e-9)
    gradients = []
    for states, targets in ((at_once, windows.targets), (one_by_one, prefixes.targets)):
        model.zero_grad()
        (len(targets) * model.head().cross_entropy(states[-1], targets)).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient, rtol=1e-9, atol=1e-9, msg=name)


def test_trajectories_may_read_different_positions() -> None:
    model = causal(TransformerBlock, 9, 8).eval()
    one, other = Histories.from_lists([[1, 2, 3], [4, 5]]), Histories.from_lists([[6, 7], [8]])
    places, depths = torch.tensor([0, 2, 3]), [2, 3, 2, 0]
    z = [torch.randn(h.tokens, 8) for h in (one, other, one, one)]
    histories, read = [one, other, one, one], [places, None, None, places]
    together = model.rollout(histories, depths, initial_states=z, read=read)
    for r in range(4):
        (alone,) = model.rollout(histories[r], [depths[r]], initial_states=[z[r]], read=read[r])
        torch.testing.assert_close(together[r], alone, rtol=1e-5, atol=1e-6)


def test_pruning_reads_exactly_the_histories_of_the_instances() -> None:
    data = sequences([2, 3, 30, 7, 12, 9])
    torch.manual_seed(0)
    # with noise, and at depth 1 it shows: it is a function of the history up to the token, in a window as elsewhere
    model = RecurrentBackbone(9, 5, released_backbone(hidden_size=8, initializer_range=0.3)).eval()
    instances, rule = data.training_instances, Pruning(2, 2)
    prefixes = kept_instances(model, InstanceLoader(data, instances, 4, 5), len(instances), 1, rule)
    windows = training_windows(data, 5, overlap=5)
    at_once = kept_instances(model, WindowLoader(data, windows, 4, 5), len(instances), 1, rule)
    assert 0 < int(prefixes.sum()) < len(instances)
    assert torch.equal(prefixes, at_once)


# ---------------------------------------------------------------- training


def test_both_stages_train_on_sequences(toy_dataset: Path, tmp_path: Path) -> None:
    data = SequenceDataModule(str(toy_dataset), max_length=6, batch_size=8, instances="sequence", aligned_positions=2)
    fit = trainer(tmp_path, max_epochs=8)
    spt = released_spt()
    fit.fit(spt, data)
    assert {"train/ce", "train/tla", "train/sla"} <= fit.callback_metrics.keys()
    assert fit.callback_metrics["val/ndcg@10"] > 0.2  # 40 items: chance is about 0.11
    fit.save_checkpoint(tmp_path / "spt.ckpt")

    sequence = SequenceDataModule(str(toy_dataset), max_length=6, batch_size=8, instances="sequence")
    rpt = released_rpt(tmp_path / "spt.ckpt", pruning=Pruning(2, 5))
    before = spt.backbone.item_vectors.detach().clone()
    trained = trainer(tmp_path, max_epochs=1)
    trained.fit(rpt, sequence)
    assert trained.callback_metrics["train/reward"] > 0
    assert not torch.equal(before, rpt.backbone.item_vectors)
    loader = sequence.train_dataloader()
    kept = sum(len(batch) for batch in loader)
    assert 0 < kept < len(sequence.sequences.training_instances)
    assert rpt._kept is not None
    assert kept == int(rpt._kept.mask.sum())


def test_without_alignment_no_partners_are_drawn(toy_dataset: Path, tmp_path: Path) -> None:
    data = SequenceDataModule(str(toy_dataset), max_length=6, batch_size=8, instances="sequence")
    for alpha, gamma, aligned, partners in ((0.0, 0.0, False, False), (0.0, 0.5, True, False), (0.1, 0.0, True, True)):
        trainer(tmp_path, max_steps=1).fit(released_spt(alpha=alpha, gamma=gamma), data)
        batch = next(iter(data.train_dataloader()))
        assert (batch.aligned is not None) == aligned
        assert (batch.partners is not None) == partners


def test_a_model_that_is_not_causal_is_refused(toy_dataset: Path, tmp_path: Path) -> None:
    data = SequenceDataModule(str(toy_dataset), max_length=6, batch_size=8, instances="sequence")
    config = released_backbone(hidden_size=8, pre_block=partial(FMLPBlock), pre_layers=1, core_layers=1)
    with pytest.raises(LaresError, match=r"FMLPBlock lets a position see later ones.*data\.instances: prefix"):
        trainer(tmp_path).fit(released_spt(config), data)
    leaky = RecurrentBackbone(9, 5, config)
    with pytest.raises(LaresError, match="FMLPBlock"):
        leaky.rollout(Histories.from_lists([[1, 2]]), [1], read=torch.tensor([0]))


def test_options_without_effect_are_refused(toy_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(LaresError, match="aligned_positions"):
        SequenceDataModule(str(toy_dataset), instances="prefix", aligned_positions=2)
    padded_model = released_spt(replace(SMALL, pre_block=FMLPBlock))
    with pytest.raises(LaresError, match=r"aligned_positions: this model's instances are read by themselves"):
        trainer(tmp_path).fit(padded_model, SequenceDataModule(str(toy_dataset), max_length=6, aligned_positions=2))
    with pytest.raises(ValueError, match=r"within 1 … 5"):
        training_windows(sequences([9]), 5, overlap=6)
    aligning = SequenceDataModule(str(toy_dataset), max_length=6, instances="sequence", aligned_positions=2)
    with pytest.raises(LaresError, match="aligns nothing"):
        trainer(tmp_path).fit(released_spt(alpha=0.0, gamma=0.0), aligning)
    with pytest.raises(LaresError, match="auto, prefix or sequence"):
        SequenceDataModule(str(toy_dataset), instances="window")  # type: ignore[arg-type]
