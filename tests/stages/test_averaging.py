"""Averaged weights: the recursion, and their use in everything after training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from lares_pl import SPT, LaresError, TransformerBlock, load_stage
from lares_pl.model.layout import Layout
from lares_pl.stages.checkpoint import read_checkpoint
from tests.training import SMALL, data, released_rpt, released_spt, trainer

DECAY = 0.9


class Weights(Callback):
    """The trained weights after each update."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, SPT)
        self.seen.append(pl_module.learner.item_vectors.detach().clone())

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, SPT)
        if trainer.fit_loop.epoch_loop.global_step >= len(self.seen):
            self.seen.append(pl_module.learner.item_vectors.detach().clone())


def fitted(dataset: Path, folder: Path, **options: Any) -> tuple[SPT, L.Trainer, Weights]:
    L.seed_everything(0)
    model, weights = released_spt(ema=DECAY), Weights()
    fit = trainer(folder, callbacks=[weights], **options)
    fit.fit(model, data(dataset))
    return model, fit, weights


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_average_is_the_recursion_over_updates(toy_dataset: Path, tmp_path: Path, accumulate: int) -> None:
    model, fit, weights = fitted(toy_dataset, tmp_path, accumulate_grad_batches=accumulate)
    assert len(weights.seen) == fit.global_step + 1 > 2
    average = weights.seen[0]
    for update, after in enumerate(weights.seen[1:]):
        decay = min(DECAY, (1 + update) / (10 + update))
        average = decay * average + (1 - decay) * after
    torch.testing.assert_close(model.backbone.item_vectors, average)
    torch.testing.assert_close(model.learner.item_vectors, weights.seen[-1])
    assert not torch.allclose(average, weights.seen[-1], atol=1e-4)


class CountedBlock(TransformerBlock):
    """Has a buffer that training changes, as a batch norm has."""

    count: torch.Tensor

    def __init__(self, hidden_size: int, dropout: float | None = None) -> None:
        super().__init__(hidden_size, inner_size=16, dropout=dropout)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: torch.Tensor, layout: Layout) -> torch.Tensor:
        if self.training:
            self.count += 1
        return super().forward(x, layout)


def test_buffers_of_a_block_are_those_of_the_trained_weights(toy_dataset: Path, tmp_path: Path) -> None:
    model = released_spt(replace(SMALL, core_block=CountedBlock), ema=DECAY)
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(model, data(toy_dataset))
    kept, trained = (dict(network.named_buffers())["core_blocks.0.count"] for network in (model.backbone, model.learner))
    assert kept == trained > 0
    assert kept is not trained


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_an_average_in_16_bits_is_refused(precision: Any, toy_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(LaresError, match=rf"precision {precision} would keep the averaged weights \(model.ema 0.9\)"):
        trainer(tmp_path, precision=precision).fit(released_spt(ema=DECAY), data(toy_dataset))


def test_validation_checkpoint_test_and_next_stage_use_the_same_weights(toy_dataset: Path, tmp_path: Path) -> None:
    model, fit, _ = fitted(toy_dataset, tmp_path)
    validated = float(fit.callback_metrics["val/ndcg@10"])
    fit.save_checkpoint(tmp_path / "x.ckpt")
    saved = read_checkpoint(tmp_path / "x.ckpt").backbone_weights()
    loaded = load_stage(tmp_path / "x.ckpt")
    assert loaded.learner is loaded.backbone
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(saved[name], value)
        assert torch.equal(loaded.backbone.state_dict()[name], value)
    (again,) = trainer(tmp_path).validate(loaded, data(toy_dataset), verbose=False)
    assert again["val/ndcg@10"] == pytest.approx(validated, rel=1e-6)
    (by_path,) = trainer(tmp_path).validate(
        released_spt(ema=DECAY), data(toy_dataset), ckpt_path=tmp_path / "x.ckpt", verbose=False
    )
    assert by_path == again
    rpt = released_rpt(tmp_path / "x.ckpt", pruning=None, ema=DECAY)
    trainer(tmp_path, max_steps=1).fit(rpt, data(toy_dataset))
    assert torch.equal(rpt.reference.item_vectors, model.backbone.item_vectors)
    assert not torch.equal(rpt.learner.item_vectors, rpt.backbone.item_vectors)


def test_training_continues_from_averaged_weights_alone(toy_dataset: Path, tmp_path: Path) -> None:
    _, fit, _ = fitted(toy_dataset, tmp_path)
    fit.save_checkpoint(tmp_path / "x.ckpt")
    loaded = load_stage(tmp_path / "x.ckpt")
    before = loaded.backbone.item_vectors.detach().clone()
    trainer(tmp_path, max_steps=1).fit(loaded, data(toy_dataset))
    assert not torch.equal(loaded.learner.item_vectors, before)


@pytest.mark.parametrize("ema", [1.0, -0.1])
def test_a_decay_outside_its_range_is_refused(ema: float) -> None:
    with pytest.raises(LaresError, match=r"ema must be within \[0, 1\)"):
        released_spt(ema=ema)
