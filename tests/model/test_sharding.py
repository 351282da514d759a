"""A catalogue sharded by rows against an unsharded one: two and three real processes (gloo), random cases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from lares_pl import CosineSimilarity, DotSimilarity, LaresError, RecurrentBackbone, SampledSoftmax
from lares_pl.data.loading.item_pairs import ItemPairs
from lares_pl.model import catalogue_head, target_softmax, tiles
from lares_pl.model.catalogue_head import CatalogueHead
from lares_pl.model.embedding import ItemTable, ItemText
from lares_pl.model.sharding import local, rows_of, sharded
from lares_pl.model.similarity import Similarity
from lares_pl.model.tiles import Repeats
from tests.console import on_forked_processes
from tests.released import released_backbone

pytestmark = pytest.mark.slow

CASES = 12


def on_processes(task: Callable[[int, int], None], world: int, folder: Path) -> None:
    """Run `task(rank, world)` in several processes of one process group, and raise an exception of any of them."""
    on_forked_processes(_joined, (world, task, str(folder / "rendezvous")), world)


def _joined(rank: int, world: int, task: Callable[[int, int], None], rendezvous: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=world)
    try:
        task(rank, world)
    finally:
        dist.destroy_process_group()


def mesh_of(world: int) -> DeviceMesh:
    return init_device_mesh("cpu", (world,), mesh_dim_names=("tensor_parallel",))


def excluded_pairs(rows: int, items: int, generator: torch.Generator) -> ItemPairs:
    chosen = torch.rand(rows, items + 1, generator=generator) < 0.2
    return ItemPairs(*chosen.nonzero(as_tuple=True))


def whole_of(part: Tensor, world: int) -> Tensor:
    """Gather the rows of all processes, which may have different numbers of rows."""
    parts: list[Tensor | None] = [None] * world
    dist.all_gather_object(parts, part)
    return torch.cat([each for each in parts if each is not None])


# ---------------------------------------------------------------- scoring


def scoring_is_the_same(rank: int, world: int) -> None:
    mesh = mesh_of(world)
    for case in range(CASES):
        generator = torch.Generator().manual_seed(case)
        rows = int(torch.randint(1, 9, (), generator=generator))
        # on three processes ceil((N + 1) / 3) rows each must leave some for the last
        items = int(torch.randint(5, 24, (), generator=generator)) if case else 6
        tiles.CHUNK = 30 if case % 2 else 1 << 22
        for name, (module, own) in TILE_SHAPES.items():
            setattr(module, name, (lambda states, classes: (3, 4)) if case % 2 else own)
        similarity: Similarity = CosineSimilarity(0.2) if case % 3 == 0 else DotSimilarity()
        states = torch.randn(rows, 4, generator=generator) * (30 if case % 4 == 0 else 1)
        vectors = torch.randn(items + 1, 4, generator=generator)
        if case % 2:  # whole numbers: exact ties, within slices and across them
            states, vectors, similarity = states.round(), vectors.round(), DotSimilarity()
        targets = torch.randint(1, items + 1, (rows,), generator=generator)
        excluded = excluded_pairs(rows, items, generator)
        # the first process's values count
        table = sharded(nn.Parameter(vectors if rank == 0 else torch.full_like(vectors, torch.nan)), mesh)
        bias = torch.tensor(-2.0 if case % 2 else -1.7)
        repeats = Repeats(excluded_pairs(rows, items, generator), bias) if case % 4 < 2 else None
        losses_agree(states, vectors, table, targets, similarity, repeats, world)
        whole, shared = (CatalogueHead(catalogue, similarity, repeats) for catalogue in (vectors, table))
        for left_out in (None, excluded):
            assert torch.equal(shared.rank(states, targets, left_out), whole.rank(states, targets, left_out))
            for k in (1, 3, items):
                best_agree(states, whole, shared, k, left_out)
        torch.testing.assert_close(shared.scores(states), whole.scores(states))
    nan = torch.full((2, 4), torch.nan)
    assert (CatalogueHead(table, similarity).rank(nan, targets[:1].expand(2)) >= items).all()


TILE_SHAPES = {
    "tile_shape": (target_softmax, tiles.tile_shape),
    "ranking_tile_shape": (catalogue_head, tiles.ranking_tile_shape),
}


def losses_agree(
    states: Tensor,
    vectors: Tensor,
    table: Tensor,
    targets: Tensor,
    similarity: Similarity,
    repeats: Repeats | None,
    world: int,
) -> None:
    weights = torch.linspace(-1, 1, len(states), dtype=torch.float64)  # so that nothing but a mistake is a difference
    states, vectors, table = states.double(), vectors.double(), nn.Parameter(table.detach().double())
    results = []
    for catalogue in (vectors.requires_grad_(), table):
        s = states.clone().requires_grad_()
        bias = None if repeats is None else repeats.bias.double().requires_grad_()
        head = CatalogueHead(catalogue, similarity, None if repeats is None else Repeats(repeats.pairs, bias))  # type: ignore[arg-type]
        value, log_probs = head.loss(s, targets, lambda p, rows: (weights[rows] * p.sin()).sum())
        (3 * value).backward()
        again = head.log_prob(states, targets)
        assert catalogue.grad is not None
        gradient = catalogue.grad if catalogue is not table else whole_of(local(catalogue.grad), world)
        results.append((value.detach(), log_probs, again, s.grad, gradient, *([] if bias is None else [bias.grad])))
    for whole, shared in zip(*results, strict=True):
        torch.testing.assert_close(shared, whole, rtol=1e-9, atol=1e-9)


def best_agree(states: Tensor, whole: CatalogueHead, shared: CatalogueHead, k: int, excluded: ItemPairs | None) -> None:
    values, items = whole.top_k(states, k, excluded)
    shared_values, shared_items = shared.top_k(states, k, excluded)
    torch.testing.assert_close(values, shared_values)
    scores = whole.scores(states)
    real = torch.isfinite(values)
    # among equal scores either may come; each item comes once and has the score it is given
    torch.testing.assert_close(scores.gather(1, shared_items)[real], values[real])
    for row, (found, expected) in enumerate(zip(shared_items, items, strict=True)):
        kept = found[real[row]].tolist()
        assert len(set(kept)) == len(kept)
        if values[row][real[row]].unique().numel() == len(kept) and len(kept) < k:
            assert kept == expected[real[row]].tolist()


@pytest.mark.parametrize("world", [2, 3])
def test_scoring_a_sharded_catalogue_equals_scoring_the_whole(world: int, tmp_path: Path) -> None:
    on_processes(scoring_is_the_same, world, tmp_path)


# ---------------------------------------------------------------- looking up


def looking_up_is_the_same(rank: int, world: int) -> None:
    mesh = mesh_of(world)
    torch.manual_seed(rank)  # the first process's values count
    table = ItemTable(11, 4, padding_idx=0)
    text = ItemText(torch.randn(11, 3).half())
    first = [table.weight.detach().clone(), text.vectors.clone()]
    dist.broadcast_object_list(first, 0)
    whole = nn.Embedding.from_pretrained(first[0], freeze=False, padding_idx=0)
    for part in (table, text, text):  # twice does nothing
        part.shard(mesh)
    assert len(local(table.weight)) == rows_of(table.weight).most - (rank == world - 1) * (-11 % world)
    items = torch.tensor([[3, 0, 10, 7], [10, 10, 0, 6]])
    assert torch.equal(text(items), first[1][items])
    weights = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
    for embedding in (table, whole):
        ((embedding(items) ** 2) * weights).sum().backward()
    torch.testing.assert_close(table(items), whole(items), rtol=0, atol=0)
    assert whole.weight.grad is not None
    assert table.weight.grad is not None
    torch.testing.assert_close(whole_of(local(table.weight.grad), world), whole.weight.grad)
    assert int((whole.weight.grad[0] != 0).sum()) == 0  # padding gets none from lookups
    a_sampled_softmax_is_the_same(mesh)
    with pytest.raises(LaresError, match="can't be sharded over"):
        sharded(torch.zeros(4, 2), mesh)  # on three processes: 2, 2 and none


def a_sampled_softmax_is_the_same(mesh: DeviceMesh) -> None:
    loss, counts = SampledSoftmax(9, 0.75), torch.arange(12)
    torch.manual_seed(0)
    model = RecurrentBackbone(11, 5, released_backbone(hidden_size=8))
    results = []
    for shared in (False, True):
        if shared:
            model.zero_grad()
            model.shard(mesh)
        states = torch.randn(6, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        draws = torch.Generator().manual_seed(2)
        weights = torch.full((6,), 1 / 6)
        targets = torch.tensor([1, 2, 3, 11, 5, 1])
        value = loss(model.head(), states, targets, weights, loss.proposal(counts), draws)
        value.backward()
        gradient = model.item_vectors.grad
        assert gradient is not None
        results.append((value.detach(), states.grad, whole_of(local(gradient), mesh.size()) if shared else gradient.clone()))
    for whole, by_rows in zip(*results, strict=True):
        torch.testing.assert_close(by_rows, whole)


def test_lookup_in_a_sharded_table_equals_lookup_in_the_whole(tmp_path: Path) -> None:
    on_processes(looking_up_is_the_same, 3, tmp_path)
