"""Tiled scoring against scoring with the full matrix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lares_pl import CosineSimilarity, DotSimilarity, Histories, LaresError, RecurrentBackbone
from lares_pl.data.loading.item_pairs import ItemPairs, items_read
from lares_pl.model import catalogue_head, target_softmax, tiles
from lares_pl.model.catalogue_head import CatalogueHead
from lares_pl.model.similarity import Similarity
from lares_pl.model.tiles import Repeats
from tests.released import released_backbone

SIMILARITIES = [DotSimilarity(), CosineSimilarity(0.2)]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles even for small matrices."""
    use_tiles(monkeypatch, 3, 5)
    monkeypatch.setattr(tiles, "CHUNK", 30)


def use_tiles(monkeypatch: pytest.MonkeyPatch, rows: int, classes: int) -> None:
    for module, name in ((catalogue_head, "ranking_tile_shape"), (target_softmax, "tile_shape")):
        monkeypatch.setattr(module, name, lambda states, count: (rows, classes))


def material(rows: int = 7, items: int = 12, size: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(rows, size, generator=generator)
    vectors = torch.randn(items + 1, size, generator=generator)
    return states, vectors, torch.randint(1, items + 1, (rows,), generator=generator)


@pytest.fixture(params=["by tiles", "at once"])
def softmax(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How a CPU computes a softmax, and how other devices do."""
    if request.param == "at once":
        monkeypatch.setattr(target_softmax, "_by_tiles", target_softmax._at_once)


@pytest.mark.usefixtures("softmax")
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("size", [1.0, 60.0])
def test_log_probs_losses_and_gradients_equal_those_of_log_softmax(similarity: Similarity, size: float) -> None:
    states, vectors, targets = material()
    states = states * size  # scores in the hundreds: nothing may overflow
    weights = torch.linspace(-1, 1, len(states))
    results = []
    for tiled in (True, False):
        s, v = states.clone().requires_grad_(), vectors.clone().requires_grad_()
        if tiled:
            # not linear, so that its gradient depends on the log-probabilities; of small numbers, so that rounding stays small
            value, log_probs = CatalogueHead(v, similarity).loss(
                s, targets, lambda p, rows: (weights[rows] * (p / size).sin()).sum()
            )
            assert not log_probs.requires_grad
            torch.testing.assert_close(CatalogueHead(v, similarity).log_prob(s, targets), log_probs)
        else:
            left, right = similarity.transform(s, v)
            log_probs = (left @ right.T).log_softmax(dim=1).gather(1, targets[:, None]).squeeze(1)
            value = (weights * (log_probs / size).sin()).sum()
        (3 * value).backward()
        results.append((value.detach(), log_probs.detach(), s.grad, v.grad))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4 if size > 1 else 1e-6)


# ---------------------------------------------------------------- items that were read


def material_of_repeats() -> tuple[Tensor, Tensor, Tensor, ItemPairs, Tensor]:
    states, vectors, targets = material()
    read = torch.rand(len(states), len(vectors), generator=torch.Generator().manual_seed(2)) < 0.3
    read[torch.arange(4), targets[:4]] = True  # some targets among them
    read[:, 0] = False
    return states, vectors, targets, ItemPairs(*read.nonzero(as_tuple=True)), read


@pytest.mark.usefixtures("softmax")
@pytest.mark.parametrize("selects", [True, False])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_the_repeat_bias_equals_a_dense_bias(similarity: Similarity, selects: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the pairs of a tile's rows are selected, as on a CPU, or all are there and some do not count."""
    if not selects:
        monkeypatch.setattr(ItemPairs, "within_rows", ItemPairs.counted_within_rows)
    states, vectors, targets, pairs, read = material_of_repeats()
    weights = torch.linspace(-1, 1, len(states))
    results = []
    for tiled in (True, False):
        s, v, bias = states.clone().requires_grad_(), vectors.clone().requires_grad_(), torch.tensor(-1.5, requires_grad=True)
        if tiled:
            head = CatalogueHead(v, similarity, Repeats(pairs, bias))
            value, log_probs = head.loss(s, targets, lambda p, rows: (weights[rows] * p.sin()).sum())
            torch.testing.assert_close(head.log_prob(s, targets), log_probs)
            dense = head.scores(s).detach()
        else:
            left, right = similarity.transform(s, v)
            scores = left @ right.T + bias * read
            log_probs, dense = scores.log_softmax(dim=1).gather(1, targets[:, None]).squeeze(1), scores.detach()
            value = (weights * log_probs.sin()).sum()
        (3 * value).backward()
        results.append((value.detach(), log_probs.detach(), dense, s.grad, v.grad, bias.grad))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)


def test_the_repeat_bias_changes_rankings() -> None:
    states, vectors, targets, pairs, read = material_of_repeats()
    head = CatalogueHead(vectors, DotSimilarity(), Repeats(pairs, torch.tensor(-3.0)))
    scores = states @ vectors.T - 3 * read
    own = scores.gather(1, targets[:, None])
    assert head.rank(states, targets).tolist() == (scores[:, 1:] >= own).sum(dim=1).tolist()
    values, items = head.top_k(states, 12)
    torch.testing.assert_close(values, scores[:, 1:].sort(dim=1, descending=True).values)
    torch.testing.assert_close(values, scores.gather(1, items))
    some = torch.tensor([True, False] * 3 + [True])
    assert torch.equal(head.select(some).rank(states[some], targets[some]), head.rank(states, targets)[some])
    twice = head.repeat(2, len(states)).rank(states.repeat(2, 1), targets.repeat(2))
    assert torch.equal(twice, head.rank(states, targets).repeat(2))
    chosen = torch.tensor([0, 2, 5, 9])
    local = torch.zeros(13, dtype=torch.int64).index_put_((chosen[1:],), torch.arange(1, 4))
    values, items = head.subset(chosen, local).top_k(states, 3)
    torch.testing.assert_close(values, scores.gather(1, chosen[items]))
    own_items = torch.tensor([[3, 5, 0]]).repeat(len(states), 1)
    expected = scores.gather(1, own_items)[:, :2].log_softmax(dim=1)
    torch.testing.assert_close(head.item_log_probs(states, own_items)[:, :2], expected)
    assert head.item_log_probs(states, own_items)[:, 2].isneginf().all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=6), min_size=1, max_size=5), st.data())
def test_items_of_histories_against_a_naive_loop(lists: list[list[int]], data: st.DataObject) -> None:
    histories = Histories.from_lists(lists)
    places = [(row, end) for row, items in enumerate(lists) for end in range(len(items))]
    some = sorted(data.draw(st.sets(st.sampled_from(range(len(places))), min_size=1)))
    for tokens, asked in (
        (None, [(row, len(items) - 1) for row, items in enumerate(lists)]),
        (some, [places[i] for i in some]),
    ):
        pairs = items_read(histories, None if tokens is None else torch.tensor(tokens))
        found = list(zip(pairs.rows.tolist(), pairs.items.tolist(), strict=True))
        expected = [(number, item) for number, (row, end) in enumerate(asked) for item in dict.fromkeys(lists[row][: end + 1])]
        assert found == expected


def test_a_model_with_a_repeat_bias_requires_the_histories() -> None:
    model = RecurrentBackbone(5, 4, released_backbone(hidden_size=4, repeat_bias=True))
    with pytest.raises(ValueError, match="give the histories"):
        model.head()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_in_float32(dtype: torch.dtype) -> None:
    states, vectors, targets = (x.to(dtype) if x.is_floating_point() else x for x in material())
    s, v = states.clone().requires_grad_(), vectors.clone().requires_grad_()
    value, log_probs = CatalogueHead(v, DotSimilarity()).loss(s, targets, lambda p, _: p.sum())
    value.backward()
    assert log_probs.dtype == value.dtype == torch.float32
    wide, wide_v = states.float().requires_grad_(), vectors.float().requires_grad_()
    plain = (wide @ wide_v.T).log_softmax(dim=1).gather(1, targets[:, None]).sum()
    plain.backward()
    torch.testing.assert_close(value, plain, rtol=2e-2, atol=2e-2)
    assert s.grad is not None
    assert v.grad is not None
    torch.testing.assert_close(s.grad.float(), wide.grad, rtol=5e-2, atol=5e-2)
    torch.testing.assert_close(v.grad.float(), wide_v.grad, rtol=5e-2, atol=5e-2)


def test_without_gradient_no_tensors_are_saved_for_backward() -> None:
    states, vectors, targets = material()

    def loss(log_probs: Tensor, rows: slice) -> Tensor:
        return -log_probs.sum()

    s = states.clone().requires_grad_()
    with_gradient, _ = CatalogueHead(vectors, DotSimilarity()).loss(s, targets, loss)  # the items are frozen
    with_gradient.backward()
    assert s.grad is not None
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            value, _ = CatalogueHead(vectors, DotSimilarity()).loss(s, targets, loss)
        assert not value.requires_grad
        torch.testing.assert_close(value, with_gradient.detach())


def test_a_second_derivative_is_refused() -> None:
    states, vectors, targets = material()
    s = states.requires_grad_()
    value, _ = CatalogueHead(vectors, DotSimilarity()).loss(s, targets, lambda p, _: p.sum())
    (first,) = torch.autograd.grad(value**2, s, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.pow(2).sum().backward()


def naive_rank(scores: Tensor, target: int, excluded: set[int]) -> int:
    """One plus the number of other items that score at least as high."""
    return 1 + sum(
        1 for item in range(1, len(scores)) if item != target and item not in excluded and not scores[item] < scores[target]
    )


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.just([torch.nan] * 6) | st.lists(st.integers(-2, 2), min_size=6, max_size=6), min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(0, 7), st.integers(1, 5)), max_size=12),
    st.sampled_from([(3, 2), (3, 5), (3, 6), (8, 6)]),
    st.data(),
)
def test_ranks_against_a_naive_count(
    rows: list[list[float]], seen: list[tuple[int, int]], shape: tuple[int, int], data: st.DataObject
) -> None:
    # item vectors are the identity, so ties are exact and frequent; the target, an item twice, or everything may be excluded
    scores = torch.tensor(rows).float()
    targets = [data.draw(st.integers(1, 5)) for _ in rows]
    pairs = sorted((row, item) for row, item in seen if row < len(rows))
    excluded = ItemPairs(torch.tensor([r for r, _ in pairs]).long(), torch.tensor([i for _, i in pairs]).long())
    head = CatalogueHead(torch.eye(6), DotSimilarity())
    with pytest.MonkeyPatch.context() as patch:
        use_tiles(patch, *shape)
        everything, unseen = head.rank_both(scores, torch.tensor(targets), excluded)
        assert torch.equal(head.rank(scores, torch.tensor(targets)), everything)
        assert torch.equal(head.rank(scores, torch.tensor(targets), excluded), unseen)
    for row, target in enumerate(targets):
        left_out = {item for r, item in pairs if r == row} - {target}
        padding = int(scores[row].isnan().any())  # below nothing then
        assert everything[row] == naive_rank(scores[row], target, set()) + padding
        assert unseen[row] == naive_rank(scores[row], target, left_out) + padding


def test_nan_scores_rank_last() -> None:
    ranks = CatalogueHead(torch.randn(9, 3), DotSimilarity()).rank(torch.full((2, 3), torch.nan), torch.tensor([1, 2]))
    assert (ranks >= 8).all()


def test_top_k_gives_no_more_than_the_catalogue() -> None:
    states, vectors, _ = material()
    scores, items = CatalogueHead(vectors, DotSimilarity()).top_k(states, 50)
    assert scores.shape == items.shape == (len(states), 12)
    assert items.sort(dim=1).values.tolist() == [list(range(1, 13))] * len(states)


def test_top_k_never_returns_padding_or_excluded_items() -> None:
    states, vectors, _ = material()
    vectors[0] = 1e3 * states.sum(0)  # padding would win
    excluded = ItemPairs(torch.tensor([0, 0, 5]), torch.tensor([3, 4, 1]))
    values, items = CatalogueHead(vectors, DotSimilarity()).top_k(states, 12, excluded)
    for row in range(len(states)):
        left_out = {int(i) for r, i in zip(excluded.rows, excluded.items, strict=True) if r == row}
        expected = sorted(set(range(1, 13)) - left_out, key=lambda i: -float(states[row] @ vectors[i]))
        real = torch.isfinite(values[row])
        assert items[row][real].tolist() == expected
        assert int((~real).sum()) == len(left_out)


def test_temperature_must_be_positive() -> None:
    with pytest.raises(LaresError, match="above 0"):
        CosineSimilarity(0.0)


@pytest.mark.parametrize("similarity", [DotSimilarity(), CosineSimilarity(0.1)])
@pytest.mark.parametrize(("items", "size"), [(1000, 64), (4096, 64), (6000, 64), (2001, 128), (130, 300)])
def test_equal_items_are_ties_whatever_the_batch(
    items: int, size: int, similarity: Similarity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products of few rows and of the last columns are summed in another order, so that equal items differ by rounding."""
    monkeypatch.undo()  # tiles of the usual size
    generator = torch.Generator().manual_seed(0)
    head = CatalogueHead(torch.randn(1, size, generator=generator).repeat(items + 1, 1), similarity)
    for rows in (1, 2, 3, 65, 257):
        for _ in range(max(1, 60 // rows)):
            states = torch.randn(rows, size, generator=generator)
            ranks = head.rank(states, torch.randint(1, items + 1, (rows,), generator=generator))
            assert (ranks == items).all(), (rows, ranks)


@pytest.mark.parametrize("similarity", [DotSimilarity(), CosineSimilarity(0.1)])
def test_rankings_in_mixed_precision_are_those_of_float32(similarity: Similarity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    generator = torch.Generator().manual_seed(0)
    states, vectors = (torch.randn(count, 64, generator=generator) for count in (200, 3000))
    head, targets = CatalogueHead(vectors, similarity), torch.randint(1, 3000, (200,), generator=generator)
    ranks, (scores, items) = head.rank(states, targets), head.top_k(states, 20)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head.rank(states, targets), ranks)
        again = head.top_k(states, 20)
    assert torch.equal(again[0], scores)
    assert torch.equal(again[1], items)


def test_a_copy_of_the_target_counts_as_a_tie_in_every_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    use_tiles(monkeypatch, 256, 1024)
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(3000, 64, generator=generator)
    states = torch.randn(300, 64, generator=generator)
    targets = torch.randint(1, 1000, (300,), generator=generator)
    alone = CatalogueHead(vectors, DotSimilarity()).rank(states, targets)
    twice = CatalogueHead(torch.cat([vectors, vectors[targets.unique()]]), DotSimilarity()).rank(states, targets)
    scores = states @ vectors.T
    own = scores.gather(1, targets[:, None])
    better, not_worse = ((scores[:, 1:] > own + by).sum(dim=1) for by in (0, -1e-4))  # up to rounding: |state| |item| is 64
    assert ((alone > better) & (alone <= not_worse)).all()
    copies = states @ vectors[targets.unique()].T
    expected = alone + (copies >= own - 1e-5).sum(dim=1)
    assert (twice - expected).abs().max() <= 1  # scores within round-off of the target's aside
    assert (twice > alone).all()
