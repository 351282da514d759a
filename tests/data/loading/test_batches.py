"""Batches against brute force, and every instance served exactly once over processes."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lares_pl import SPT, Histories, LaresError, SequenceDataModule, SequenceDataset
from lares_pl.data.loading.batches import cut_histories
from lares_pl.data.loading.instance_rng import InstanceDraws
from lares_pl.data.loading.loaders import InstanceLoader
from lares_pl.data.loading.partners import SameTargetPartners
from lares_pl.data.loading.sampler import EpochOrder, Permutation, Shard
from tests.training import trainer


def unpacked(histories: Histories) -> list[list[int]]:
    return [part.tolist() for part in histories.items.split(histories.lengths.tolist())]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), min_size=1, max_size=12), st.integers(1, 6))
def test_histories_are_the_items_before_the_target(spans: list[tuple[int, int]], max_length: int) -> None:
    items = np.arange(1, 31, dtype=np.int32)
    starts, ends = np.array([start for start, _ in spans]), np.array([start + length for start, length in spans])
    histories = cut_histories(items, starts, ends, max_length)
    assert unpacked(histories) == [items[s:e][-max_length:].tolist() for s, e in zip(starts, ends, strict=True)]
    assert histories.longest == max(histories.lengths.tolist())


def test_packed_and_padded_forms_agree() -> None:
    padded = torch.tensor([[3, 4, 0], [5, 0, 0], [1, 2, 6]])
    histories = Histories.from_padded(padded)
    assert unpacked(histories) == [[3, 4], [5], [1, 2, 6]]
    same = Histories.from_lists([[3, 4], [5], [1, 2, 6]])
    assert torch.equal(histories.items, same.items)
    with pytest.raises(ValueError, match="left-aligned"):
        Histories.from_padded(torch.tensor([[0, 3]]))
    with pytest.raises(ValueError, match="at least one item"):
        Histories.from_lists([[1], []])


@pytest.mark.parametrize("item", [0, -1, 1.5, "1", None, 2**63, 2**70])
def test_a_history_with_what_is_no_item_is_named(item: Any) -> None:
    with pytest.raises(LaresError, match=rf"an item of histories\[1\] must be a whole number from 1 on; got {item!r}"):
        Histories.from_lists([[2, 3], [item]])


def test_histories_may_be_lists_arrays_and_tensors() -> None:
    histories: list[Any] = [[3, 4], np.array([5], dtype=np.int32), torch.tensor([1, 2, 6])]
    assert unpacked(Histories.from_lists(histories)) == [[3, 4], [5], [1, 2, 6]]
    small: Any = np.array([7], dtype=np.uint8)
    assert unpacked(Histories.from_lists([small])) == [[7]]


def test_partners_are_other_instances_of_the_same_target_drawn_uniformly() -> None:
    # training targets in order: 4, 9 (of the first user), 4, 7, 4 (second), 9 (third, too short to hold anything out)
    items = np.array([1, 4, 9, 2, 3, 1, 4, 7, 4, 9, 4, 1, 9], dtype=np.int32)
    data = SequenceDataset.of_arrays(items, np.array([0, 5, 11, 13]), pa.array([1, 2, 3]), pa.array(range(1, 10)), "made up")
    instances, partners = data.training_instances, SameTargetPartners(data)
    spans = instances.all()
    assert data.targets(spans).tolist() == [4, 9, 4, 7, 4, 9]
    number_of = {int(end): number for number, end in enumerate(spans.ends)}
    numbers = np.arange(6)
    seen: dict[int, Counter[int]] = defaultdict(Counter)
    for epoch in range(3000):
        drawn = partners.draw(spans, InstanceDraws(0, epoch), numbers)
        assert drawn.starts.tolist() == data.offsets[drawn.users].tolist()
        for instance, end in enumerate(drawn.ends):
            seen[instance][number_of[int(end)]] += 1
    assert seen[3] == {3: 3000}  # alone with its target
    assert set(seen[0]) == {2, 4}
    assert set(seen[2]) == {0, 4}
    assert set(seen[4]) == {0, 2}
    assert set(seen[1]) == {5}
    assert abs(seen[0][2] - 1500) < 5 * np.sqrt(750)
    draws = InstanceDraws(0, 1)
    some = np.array([4, 0])  # whatever else is in the batch
    assert (
        partners.draw(instances.take(some), draws, some).ends.tolist()
        == partners.draw(spans, draws, numbers).ends[some].tolist()
    )


@given(st.integers(1, 3000), st.integers(0, 2**62), st.integers(0, 5))
def test_a_permutation_gives_every_value_once(count: int, seed: int, epoch: int) -> None:
    permutation = Permutation(count, (seed, epoch))
    values = permutation(np.arange(count))
    assert sorted(values.tolist()) == list(range(count))
    some = np.arange(count)[count // 3 :]
    assert permutation(some).tolist() == values[count // 3 :].tolist()


def test_permutations_are_uniform() -> None:
    tests = 6000
    orders = Counter(tuple(Permutation(4, (seed,))(np.arange(4)).tolist()) for seed in range(tests))
    assert len(orders) == 24
    assert sum((n - tests / 24) ** 2 / (tests / 24) for n in orders.values()) < 56  # chi-square, 23 degrees, p about 1e-4
    # in a long one no trace of the places is left: neither of a value in the next nor of its place in it
    values = Permutation(100_000, (1, 2))(np.arange(100_000))
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.015
    assert abs(np.corrcoef(values, np.arange(100_000))[0, 1]) < 0.015
    halves = np.histogram2d(values, np.arange(100_000), bins=10)[0]
    assert ((halves - 1000) ** 2 / 1000).sum() < 150  # 81 degrees


def test_random_numbers_of_instances_are_uniform_and_independent() -> None:
    first, second = InstanceDraws(1, 0), InstanceDraws(1, 1)
    instances = np.arange(20_000)
    draws = [first.uniform(instances), first.uniform(instances, purpose=1), second.uniform(instances)]
    for uniform in draws:
        counts = np.histogram(uniform, bins=20, range=(0, 1))[0]
        assert ((counts - 1000) ** 2 / 1000).sum() < 50  # chi-square, 19 degrees of freedom, p about 1e-4
    assert np.abs(np.corrcoef([*draws, np.roll(draws[0], 1)]) - np.eye(4)).max() < 0.04


@given(st.integers(1, 50), st.integers(1, 5))
def test_evaluation_serves_every_instance_once(count: int, world_size: int) -> None:
    orders = [EpochOrder(count, False, 0, Shard(rank, world_size)) for rank in range(world_size)]
    shares = [order.indices() for order in orders]
    assert {len(share) for share in shares} == {len(orders[0])}
    served = np.concatenate(shares)
    assert sorted(served[served >= 0].tolist()) == list(range(count))


@given(st.integers(5, 50), st.integers(1, 5), st.integers(0, 3))
def test_training_shares_are_equal_and_disjoint(count: int, world_size: int, epoch: int) -> None:
    shares = []
    for rank in range(world_size):
        order = EpochOrder(count, True, 7, Shard(rank, world_size))
        order.set_epoch(epoch)
        shares.append(order.indices())
        assert len(shares[-1]) == len(order) == count // world_size
    served = np.concatenate(shares)
    assert len(set(served.tolist())) == len(served)
    assert served.min() >= 0


def test_an_epochs_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        made = EpochOrder(30, True, seed, Shard())
        made.set_epoch(epoch)
        return list(made.indices())

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)


def test_batches_are_complete(toy_dataset: Path) -> None:
    data = SequenceDataset.load(toy_dataset)
    instances = data.training_instances
    spans = instances.all()
    loader = InstanceLoader(data, instances, 16, 5, shuffle=True, partners=SameTargetPartners(data), with_seen=True)
    served = []
    for batch in loader:
        assert batch.partners is not None
        assert batch.seen_rows is not None
        assert batch.seen_items is not None
        for row, index in enumerate(batch.instances.tolist()):
            start, end = spans.starts[index], spans.ends[index]
            assert unpacked(batch.histories)[row] == data.items[max(start, end - 5) : end].tolist()
            assert batch.targets[row] == data.items[end]
            assert batch.seen_items[batch.seen_rows == row].tolist() == data.items[start:end].tolist()
        served += batch.instances.tolist()
    assert sorted(served) == list(range(len(instances)))
    assert len(loader) == -(-len(instances) // 16)
    first, second = (next(iter(loader)) for _ in range(2))
    assert first.partners is not None
    assert second.partners is not None
    assert torch.equal(first.partners.items, second.partners.items)  # the same epoch draws the same partners
    assert torch.equal(first.to("cpu").histories.items, first.histories.items)


@pytest.mark.parametrize("instances", ["prefix", "sequence"])
def test_a_batch_in_one_buffer_is_the_batch(toy_dataset: Path, instances: Any) -> None:
    """With every kind of tensor it can have, in sizes that do not fill whole words; and from there in another buffer."""
    stage = SPT(alpha=0.1)
    run = trainer(toy_dataset.parent, limit_train_batches=1, limit_val_batches=0)
    module = SequenceDataModule(str(toy_dataset), max_length=8, batch_size=7, instances=instances)
    run.fit(stage, module)
    for batch in [*module.train_dataloader(), *module.val_dataloader()]:
        packed = batch.in_one_buffer()
        assert packed.buffer is not None
        moved = packed.to("cpu").within(packed.buffer.clone())
        assert batch.shapes == packed.shapes == moved.shapes
        for own, first, second in zip(batch._tensors(), packed._tensors(), moved._tensors(), strict=True):
            assert own.dtype == first.dtype == second.dtype
            assert torch.equal(own, first)
            assert torch.equal(own, second)
            assert first.untyped_storage().data_ptr() == packed.buffer.untyped_storage().data_ptr()


def test_evaluation_batches_are_larger_on_a_gpu(toy_dataset: Path) -> None:
    module = SequenceDataModule(str(toy_dataset))
    for device, size in (("cpu", 1024), ("cuda", 8192)):
        module.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))  # type: ignore[assignment]
        assert module.eval_batch_size == size
    assert SequenceDataModule(str(toy_dataset), eval_batch_size=5).eval_batch_size == 5
