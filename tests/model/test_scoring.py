"""Scoring without the matrix against scoring with it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lares_pl import CosineSimilarity, DotSimilarity, LaresError
from lares_pl.model import scoring
from lares_pl.model.scoring import Excluded, Similarity

SIMILARITIES = [DotSimilarity(), CosineSimilarity(0.2)]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles even for small matrices."""
    monkeypatch.setattr(scoring, "CHUNK", 30)
    monkeypatch.setattr(scoring, "_tile", lambda states, classes: (3, 5))


def material(rows: int = 7, items: int = 12, size: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(rows, size, generator=generator)
    vectors = torch.randn(items + 1, size, generator=generator)
    return states, vectors, torch.randint(1, items + 1, (rows,), generator=generator)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("size", [1.0, 60.0])
def test_log_probs_losses_and_gradients_equal_log_softmax(similarity: Similarity, size: float) -> None:
    states, vectors, targets = material()
    states = states * size  # scores in the hundreds: nothing may overflow
    weights = torch.linspace(-1, 1, len(states))
    results = []
    for tiled in (True, False):
        s, v = states.clone().requires_grad_(), vectors.clone().requires_grad_()
        if tiled:
            # not linear, so that its gradient depends on the log-probabilities
            value, log_probs = scoring.target_loss(s, v, targets, similarity, lambda p, rows: (weights[rows] * p.sin()).sum())
            assert not log_probs.requires_grad
            torch.testing.assert_close(scoring.target_log_prob(s, v, targets, similarity), log_probs)
        else:
            left, right = similarity.transform(s, v)
            log_probs = (left @ right.T).log_softmax(dim=1).gather(1, targets[:, None]).squeeze(1)
            value = (weights * log_probs.sin()).sum()
        (3 * value).backward()
        results.append((value.detach(), log_probs.detach(), s.grad, v.grad))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4 if size > 1 else 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_in_float32(dtype: torch.dtype) -> None:
    states, vectors, targets = (x.to(dtype) if x.is_floating_point() else x for x in material())
    s, v = states.clone().requires_grad_(), vectors.clone().requires_grad_()
    value, log_probs = scoring.target_loss(s, v, targets, DotSimilarity(), lambda p, _: p.sum())
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


def test_without_gradient_nothing_is_kept_for_it() -> None:
    states, vectors, targets = material()

    def loss(log_probs: Tensor, rows: slice) -> Tensor:
        return -log_probs.sum()

    s = states.clone().requires_grad_()
    with_gradient, _ = scoring.target_loss(s, vectors, targets, DotSimilarity(), loss)  # the items are frozen
    with_gradient.backward()
    assert s.grad is not None
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            value, _ = scoring.target_loss(s, vectors, targets, DotSimilarity(), loss)
        assert not value.requires_grad
        torch.testing.assert_close(value, with_gradient.detach())


def test_a_second_derivative_is_refused() -> None:
    states, vectors, targets = material()
    s = states.requires_grad_()
    value, _ = scoring.target_loss(s, vectors, targets, DotSimilarity(), lambda p, _: p.sum())
    (first,) = torch.autograd.grad(value**2, s, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.pow(2).sum().backward()


def naive_rank(scores: Tensor, target: int, excluded: set[int]) -> int:
    """One plus the number of other items that score at least as high."""
    return 1 + sum(
        1 for item in range(1, len(scores)) if item != target and item not in excluded and not scores[item] < scores[target]
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(-2, 2), min_size=6, max_size=6), min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(0, 7), st.integers(1, 5)), max_size=12),
    st.data(),
)
def test_ranks_against_a_naive_count(rows: list[list[int]], seen: list[tuple[int, int]], data: st.DataObject) -> None:
    # the states are the scores themselves: item vectors are the identity, so ties are exact and frequent
    states, vectors = torch.tensor(rows).float(), torch.eye(6)
    targets = [data.draw(st.integers(1, 5)) for _ in rows]
    pairs = sorted((row, item) for row, item in seen if row < len(rows))
    excluded = Excluded(torch.tensor([r for r, _ in pairs]).long(), torch.tensor([i for _, i in pairs]).long())
    for chosen in (None, excluded):
        ranks = scoring.target_rank(states, vectors, torch.tensor(targets), DotSimilarity(), chosen)
        for row, target in enumerate(targets):
            left_out = {item for r, item in pairs if r == row} if chosen is not None else set()
            assert ranks[row] == naive_rank(states[row], target, left_out - {target})


def test_a_model_that_outputs_nan_ranks_last() -> None:
    ranks = scoring.target_rank(torch.full((2, 3), torch.nan), torch.randn(9, 3), torch.tensor([1, 2]), DotSimilarity())
    assert (ranks >= 8).all()


def test_top_k_never_gives_padding_or_excluded_items() -> None:
    states, vectors, _ = material()
    vectors[0] = 1e3 * states.sum(0)  # padding would win
    excluded = Excluded(torch.tensor([0, 0, 5]), torch.tensor([3, 4, 1]))
    values, items = scoring.top_k(states, vectors, 12, DotSimilarity(), excluded)
    for row in range(len(states)):
        left_out = {int(i) for r, i in zip(excluded.rows, excluded.items, strict=True) if r == row}
        expected = sorted(set(range(1, 13)) - left_out, key=lambda i: -float(states[row] @ vectors[i]))
        real = torch.isfinite(values[row])
        assert items[row][real].tolist() == expected
        assert int((~real).sum()) == len(left_out)


def test_temperature_must_be_positive() -> None:
    with pytest.raises(LaresError, match="above 0"):
        CosineSimilarity(0.0)


def test_a_copy_of_the_target_counts_against_it_whatever_tile_it_lies_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_tile", lambda states, classes: (256, 1024))
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(3000, 64, generator=generator)
    states = torch.randn(300, 64, generator=generator)
    targets = torch.randint(1, 1000, (300,), generator=generator)
    alone = scoring.target_rank(states, vectors, targets, DotSimilarity())
    twice = scoring.target_rank(states, torch.cat([vectors, vectors[targets.unique()]]), targets, DotSimilarity())
    scores = states @ vectors.T
    better = torch.stack([(scores[r, 1:] > scores[r, targets[r]]).sum() for r in range(300)])
    assert torch.equal(alone, better + 1)
    copies = states @ vectors[targets.unique()].T
    own = scores.gather(1, targets[:, None])
    expected = alone + (copies >= own - 1e-5).sum(dim=1)
    assert (twice - expected).abs().max() <= 1  # scores within round-off of the target's aside
    assert (twice > alone).all()
