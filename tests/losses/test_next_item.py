"""The sampled softmax: closed forms, expectations by enumeration, and training."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lares_pl import SPT, CosineSimilarity, FullSoftmax, Histories, LaresError, RecurrentBackbone, SampledSoftmax, load_stage
from lares_pl.losses.next_item import Proposal, sampled_log_probs
from tests.released import released_backbone
from tests.training import data, released_spt, trainer

READ = Histories.from_lists([[1, 2], [3, 2, 3], [4], [4, 5, 6], [1, 2, 3], [7]])  # 4 and 1 are targets that were read
COUNTS = torch.tensor([0, 90, 30, 9, 3, 1, 0, 0])  # padding and seven items, two of them never seen


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_with_every_class_once_it_is_the_full_softmax() -> None:
    scores = torch.randn(5, 9, generator=generator()) * 20
    targets = torch.tensor([3, 0, 8, 3, 1])
    hits = torch.arange(9) == targets[:, None]
    own = scores.gather(1, targets[:, None]).squeeze(1)
    # K = N + 1 draws of q = 1 / (N + 1): each class is expected once
    expected = scores.log_softmax(dim=1).gather(1, targets[:, None]).squeeze(1)
    torch.testing.assert_close(sampled_log_probs(own, scores, torch.zeros(9), hits), expected)


@pytest.mark.parametrize("power", [0.0, 0.75, 1.0])
def test_the_normaliser_is_unbiased_only_with_the_correction(power: float) -> None:
    """All K-tuples of draws with their probabilities, for popular, rare and unseen targets."""
    scores = torch.randn(8, generator=generator(1), dtype=torch.float64)
    q = Proposal.of(COUNTS, power).log_q.double().exp()
    drawn = torch.tensor(list(product(range(8), repeat=3)))
    probability = q[drawn].prod(dim=1)
    uniform = torch.full((8,), 1 / 8, dtype=torch.float64)
    for target in (1, 4, 6):
        own = scores[target].expand(1)
        estimates = {}
        for name, assumed in (("corrected", q), ("as if uniform", uniform)):
            log_probs = [
                sampled_log_probs(own, scores[some][None], (3 * assumed[some]).log(), (some == target)[None]) for some in drawn
            ]
            estimates[name] = float((probability * (scores[target] - torch.cat(log_probs)).exp()).sum())
        truth = float(scores.exp().sum())
        assert estimates["corrected"] == pytest.approx(truth, rel=1e-6)
        if power > 0:
            assert abs(estimates["as if uniform"] / truth - 1) > 0.05


def backbone(items: int, **options: object) -> RecurrentBackbone:
    torch.manual_seed(0)
    return RecurrentBackbone(items, 5, released_backbone(hidden_size=8, initializer_range=0.7, **options))


def loss_and_gradients(loss: FullSoftmax | SampledSoftmax, model: RecurrentBackbone, counts: Tensor) -> list[Tensor]:
    states = torch.randn(6, 8, generator=generator(2)).requires_grad_()
    targets = torch.tensor([1, 2, 3, 4, 5, 1])
    model.zero_grad()
    head = model.head(READ) if model.config.repeat_bias else model.head()
    weights = torch.full((6,), 1 / 6)
    value = loss(head, states, targets, weights, loss.proposal(counts), generator(3))
    value.backward()
    assert model.item_vectors.grad is not None
    assert states.grad is not None
    gradients = [states.grad, model.item_vectors.grad]
    if model.config.repeat_bias:
        assert model.repeat_bias.grad is not None
        gradients.append(model.repeat_bias.grad)
    return [value.detach(), *gradients]


@pytest.mark.parametrize("power", [0.0, 0.75])
@pytest.mark.parametrize("options", [{}, {"similarity": CosineSimilarity(0.3)}, {"repeat_bias": True}], ids=str)
def test_it_approaches_the_full_softmax_as_negatives_grow(power: float, options: dict[str, object]) -> None:
    model = backbone(7, **options)
    if model.config.repeat_bias:
        torch.nn.init.constant_(model.repeat_bias, -0.1)
    full = loss_and_gradients(FullSoftmax(), model, COUNTS)
    errors = []
    for negatives in (100, 10_000, 1_000_000):
        sampled = loss_and_gradients(SampledSoftmax(negatives, power), model, COUNTS)
        errors.append([float((a - b).norm() / b.norm()) for a, b in zip(sampled, full, strict=True)])
    for few, more, many in zip(*errors, strict=True):
        assert many < 0.01
        assert many < few / 10
        assert more < few


def test_its_cost_is_independent_of_the_catalogue() -> None:
    counted = []
    for items in (20, 2000):
        with FlopCounterMode(display=False) as counter:
            loss_and_gradients(SampledSoftmax(50), backbone(items), torch.ones(items + 1))
        counted.append(counter.get_total_flops())
    assert counted[0] == counted[1] > 0


def test_negatives_are_drawn_from_the_proposal_and_from_the_generator_alone() -> None:
    proposal = Proposal.of(COUNTS, 0.5)
    drawn = proposal.draw(100_000, generator(5))
    q = ((COUNTS + 1.0) ** 0.5) / ((COUNTS + 1.0) ** 0.5).sum()
    torch.testing.assert_close(proposal.log_q, q.log())
    shares = torch.bincount(drawn, minlength=8) / len(drawn)
    assert float(((shares - q) / (q / len(drawn)).sqrt()).abs().max()) < 5  # standard deviations
    assert torch.equal(drawn, proposal.draw(100_000, generator(5)))
    assert not torch.equal(drawn, proposal.draw(100_000, generator(6)))


def test_invalid_sample_sizes_and_powers_are_refused() -> None:
    for options in ({"negatives": 0}, {"power": -0.1}, {"power": math.inf}, {"power": math.nan}):
        with pytest.raises(LaresError, match="SampledSoftmax"):
            SampledSoftmax(**options)


def test_only_training_targets_are_counted_and_the_loss_is_restored_from_a_checkpoint(
    toy_dataset: Path, tmp_path: Path
) -> None:
    L.seed_everything(0)
    model, module = released_spt(loss=SampledSoftmax(20, 1.0)), data(toy_dataset)
    fit = trainer(tmp_path, max_steps=2)
    fit.fit(model, module)
    targets = torch.zeros(41)
    for user in range(module.sequences.users):
        items = module.sequences.items[module.sequences.offsets[user] : module.sequences.offsets[user + 1]].tolist()
        for item in items[1 : len(items) - 2] if len(items) >= 3 else items[1:]:
            targets[item] += 1
    assert model._proposal is not None
    torch.testing.assert_close(model._proposal.log_q, ((targets + 1) / (targets + 1).sum()).log())
    fit.save_checkpoint(tmp_path / "sampled.ckpt")
    again = load_stage(tmp_path / "sampled.ckpt")
    assert isinstance(again, SPT)
    assert again.loss == SampledSoftmax(20, 1.0)


@pytest.mark.slow
def test_a_sample_trains_nearly_as_well_as_the_catalogue_and_better_than_popularity(toy_dataset: Path, tmp_path: Path) -> None:
    reached = {}
    for name, loss in (("full", FullSoftmax()), ("sampled", SampledSoftmax(8, 0.75))):
        L.seed_everything(0)
        model = released_spt(loss=loss)
        fit = trainer(tmp_path, max_epochs=15, check_val_every_n_epoch=15)
        fit.fit(model, data(toy_dataset))
        reached[name] = fit.callback_metrics["val/ndcg@10"].item()
    module = data(toy_dataset)
    sequences = module.sequences
    popular = torch.bincount(
        torch.from_numpy(sequences.targets(sequences.training_instances.all()).astype("int64")), minlength=41
    )
    held_out = torch.from_numpy(sequences.targets(sequences.held_out("validation").all()).astype("int64"))
    ranks = 1 + (popular[1:] > popular[held_out][:, None]).sum(dim=1)
    reached["popularity"] = float(torch.where(ranks <= 10, 1 / (ranks + 1.0).log2(), 0).mean())
    assert reached["sampled"] > 1.2 * reached["popularity"], reached
    assert reached["sampled"] > 0.8 * reached["full"], reached
