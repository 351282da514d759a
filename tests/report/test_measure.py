"""Measurements of a report against `lares test`, states, closed forms and naive computations."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lares_pl import (
    CosineSimilarity,
    DotSimilarity,
    FMLPBlock,
    LaresError,
    SequenceDataset,
    TedRecEmbedder,
    load_stage,
)
from lares_pl.model.catalogue_head import CatalogueHead
from lares_pl.model.recurrence import KeyedNoise
from lares_pl.report import distributions, study
from lares_pl.report.distributions import movement, residuals
from lares_pl.report.latency import summarise
from lares_pl.report.measure import Measured, batches, measure
from lares_pl.report.study import GroupFindings, population, usual_depths
from tests.released import released_backbone
from tests.report.conftest import EVIL, train, with_text
from tests.training import data, released_spt, trainer


def test_a_split_that_does_not_exist_is_refused(runs: Path, toy_dataset: Path) -> None:
    stage = load_stage(runs / "seed2" / "spt" / "checkpoints" / "best.ckpt")
    with pytest.raises(LaresError, match="split must be test or val, got 'tst'"):
        measure(stage, str(toy_dataset), "tst", 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["spt", "rpt", "exclude_seen", "sasrec", "fmlp", "tedrec"])
def test_metrics_equal_those_of_lares_test(kind: str, runs: Path, toy_dataset: Path, tmp_path: Path) -> None:
    dataset = with_text(tmp_path) if kind == "tedrec" else toy_dataset
    if kind in ("fmlp", "tedrec"):
        shape = {"hidden_size": 16, "pre_layers": 1, "core_layers": 1}
        config = (
            released_backbone(**shape, pre_block=FMLPBlock, core_block=FMLPBlock)
            if kind == "fmlp"
            else released_backbone(**shape, embedder=TedRecEmbedder())
        )
        place = train(tmp_path / kind, released_spt(config), dataset, 1, max_steps=2)
    else:
        place = runs / {"rpt": "seed1/rpt", "sasrec": f"{EVIL}/sasrec"}.get(kind, "seed2/spt")
    stage = load_stage(place / "checkpoints" / "best.ckpt")
    stage.exclude_seen = kind == "exclude_seen"
    for split in ("test", "val"):
        own = stage.evaluation_depth
        measured = measure(stage, str(dataset), split, 2 * own)
        assert list(measured.depths) == list(range(1, 2 * own + 1)) if own else list(measured.depths) == [0]
        for depth in [own, 1, 2 * own] if own else [0]:
            stage.evaluation_depth = depth
            run = trainer(tmp_path).test if split == "test" else trainer(tmp_path).validate
            expected = run(stage, data(dataset, eval_batch_size=1024), verbose=False)[0]
            found = {f"{split}/{name}": value for name, value in measured.metrics(depth).items()}
            assert found == (expected if depth == own else pytest.approx(expected, abs=1e-3))
        stage.evaluation_depth = own


def test_measures_of_steps_equal_those_of_the_states(runs: Path, toy_dataset: Path) -> None:
    stage = load_stage(runs / "seed1" / "spt" / "checkpoints" / "best.ckpt")
    measured = measure(stage, str(toy_dataset), "test", 6, batch_size=1024)
    (batch,) = batches(stage, str(toy_dataset), "test", 1024)
    with torch.no_grad():
        (states,) = stage.backbone.rollout(batch.histories, [6], KeyedNoise(batch.histories))
    distance = (states[3] - states[2]).norm(dim=-1) / states[3].norm(dim=-1)
    assert measured.residual[:, 3] == pytest.approx(distance.numpy(), rel=1e-3)
    assert np.isnan(measured.residual[:, 0]).all()
    logits = torch.stack([stage.backbone.head().scores(of_step) for of_step in states])
    ranks = (logits[..., 1:] >= logits.gather(2, batch.targets.expand(6, -1)[..., None])).sum(-1)
    assert (np.abs(measured.ranks - ranks.T.numpy()) <= 1).all()
    by_parts = measure(stage, str(toy_dataset), "test", 6, batch_size=7)
    assert by_parts.kl == pytest.approx(measured.kl, rel=1e-2, abs=1e-9, nan_ok=True)
    assert (np.abs(by_parts.ranks - measured.ranks) <= 1).all()


@pytest.mark.parametrize("similarity", [DotSimilarity(), CosineSimilarity(0.2)])
def test_entropy_and_kl_equal_those_of_the_softmax(similarity: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    states, items = torch.randn(4, 9, 8), torch.randn(31, 8)
    monkeypatch.setattr(distributions, "CHUNK", 256)  # two users at a time
    found = movement(states, CatalogueHead(items, similarity))
    left, right = similarity.transform(states.double(), items.double())
    log_p = (left @ right.T).log_softmax(-1)
    torch.testing.assert_close(found.entropy.double(), -(log_p.exp() * log_p).sum(-1), rtol=1e-5, atol=1e-6)
    kl = (log_p[1:].exp() * (log_p[1:] - log_p[:-1])).sum(-1)
    torch.testing.assert_close(found.kl[1:].double(), kl, rtol=1e-4, atol=1e-6)
    assert found.kl[0].isnan().all()


def test_a_small_kl_is_not_lost_in_rounding() -> None:
    torch.manual_seed(0)
    first, items = torch.randn(5, 8), 3 * torch.randn(500, 8)
    states = torch.stack([first, first + 1e-4 * torch.randn(5, 8)])
    log_p = (states.double() @ items.double().T).log_softmax(-1)
    kl = (log_p[1].exp() * (log_p[1] - log_p[0])).sum(-1)
    assert kl.max() < 1e-6  # what log-probabilities in float32 are good to
    found = movement(states, CatalogueHead(items, DotSimilarity())).kl[1].double()
    torch.testing.assert_close(found, kl, rtol=0.02, atol=1e-12)


def test_memory_does_not_grow_with_users_times_catalogue_times_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    states, items = torch.randn(16, 300, 4), torch.randn(2001, 4)
    monkeypatch.setattr(distributions, "CHUNK", 1 << 15)
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.size = max(self.size, out.numel())
            return out

    with Largest() as largest:  # type: ignore[no-untyped-call]
        movement(states, CatalogueHead(items, DotSimilarity()))
    assert largest.size <= 1 << 15


def test_residuals_by_hand() -> None:
    states = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]], [[0.0, 2.0]]])
    distance, cosine = residuals(states)
    assert distance[1:, 0].tolist() == pytest.approx([5**0.5 / 2, 0])
    assert cosine[1:, 0].tolist() == pytest.approx([0, 1])
    assert distance[0].isnan().all()


def test_popularity_counts_training_interactions(toy_dataset: Path) -> None:
    people = population(str(toy_dataset), "test")
    sequences = SequenceDataset.load(toy_dataset)
    counts = np.zeros(sequences.catalogue_size + 1, dtype=int)
    targets, lengths = [], []
    for start, end in zip(sequences.offsets, sequences.offsets[1:], strict=False):
        items = sequences.items[start:end]
        held = len(items) >= 3
        np.add.at(counts, items[: len(items) - 2 * held], 1)
        if held:
            targets.append(items[-1])
            lengths.append(len(items) - 1)
    assert people.popularity.tolist() == counts[targets].tolist()
    assert people.activity.tolist() == lengths


def test_models_with_another_length_or_catalogue_are_timed_separately(runs: Path) -> None:
    stage = load_stage(runs / "seed1" / "spt" / "checkpoints" / "best.ckpt")
    keys = [study._architecture(stage, [1, 2])]
    for name in ("max_length", "items"):
        backbone = SimpleNamespace(max_length=stage.backbone.max_length, items=stage.backbone.items)
        setattr(backbone, name, getattr(backbone, name) + 1)
        other: Any = SimpleNamespace(
            backbone=backbone,
            backbone_config=stage.backbone_config,
            exclude_seen=stage.exclude_seen,
            evaluation_depth=stage.evaluation_depth,
        )
        keys.append(study._architecture(other, [1, 2]))
    assert len(set(keys)) == 3


def test_percentiles_need_at_least_one_batch_beyond_them() -> None:
    few = summarise([0.002] * 30, depth=4, batch_size=8)
    assert (few.p50, few.p95, few.per_second) == pytest.approx((2, 2, 4000))
    assert np.isnan(few.p99)
    many = summarise([0.001] * 99 + [0.1], depth=4, batch_size=1)
    assert many.p50 == pytest.approx(1)
    assert many.p99 > many.p95


def test_depths_reach_four_times_the_depth_of_evaluation() -> None:
    assert usual_depths(0) == [0]
    assert usual_depths(2) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert usual_depths(4) == [1, 2, 4, 8, 16]
    assert usual_depths(6) == [1, 2, 4, 6, 8, 12, 16, 24]


@pytest.mark.parametrize("seeds", [3, 5, 6, 7])
def test_equal_values_have_equal_means_for_any_number_of_seeds(seeds: int) -> None:
    ranks = np.arange(1, 101, dtype=np.int32)[:, None]
    nothing = np.zeros((100, 1))
    measured = Measured(np.zeros(1, dtype=np.int64), ranks, nothing, nothing, nothing, nothing, ranks, False)
    finding: Any = SimpleNamespace(measured=measured)
    one, several = (GroupFindings("a", [finding] * number, 0, [0], 8, False, 1, []) for number in (1, seeds))
    for metric in ("ndcg@10", "mrr"):
        assert np.array_equal(one.by_user(metric, [0]), several.by_user(metric, [0]))
