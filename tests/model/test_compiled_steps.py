"""Compiled steps: the same numbers, one program whatever batch and depth, and a way back where a block can not be compiled."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lares_pl import (
    BackboneConfig,
    BSARecBlock,
    ConvTransformerBlock,
    FMLPBlock,
    LRUBlock,
    RotaryBlock,
    SequenceDataModule,
    TransformerBlock,
    ZeroState,
)
from lares_pl.data.loading.histories import Histories
from lares_pl.model.backbone import RecurrentBackbone
from lares_pl.model.layout import Layout
from tests.training import released_spt, trainer

ITEMS, LENGTH = 30, 9
LENGTHS = ([3, 9, 7, 1], [5, 5, 2, 9], [1, 1, 1, 2])


class Counting(nn.Module):
    """Reads a value, which no program can."""

    padding_matters = False
    causal = True

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        y: Tensor = self.linear(x)
        return y if float(x.detach().abs().sum()) >= 0 else x


def pair(block: Callable[..., nn.Module], layers: int = 1, device: str = "cpu") -> tuple[RecurrentBackbone, RecurrentBackbone]:
    """A backbone, and one of the same weights whose steps are compiled."""
    torch.manual_seed(3)
    blocks: dict[str, Any] = {"pre_block": block, "core_block": block, "core_layers": layers, "pre_layers": 1}
    config = BackboneConfig(hidden_size=16, dropout=0.0, initial_state=ZeroState(), **blocks)
    eager, compiled = (RecurrentBackbone(ITEMS, LENGTH, config).train().to(device) for _ in range(2))
    compiled.load_state_dict(eager.state_dict())
    compiled.compile_steps(torch.device(device))
    return eager, compiled


def losses(model: RecurrentBackbone, lengths: list[int], depths: list[int]) -> Tensor:
    """A scalar of the states of one trajectory at the last tokens, or of two, the first at every token of a causal model."""
    generator = torch.Generator().manual_seed(sum(lengths))
    histories = Histories.from_lists([torch.randint(1, ITEMS, (n,), generator=generator).tolist() for n in lengths])
    histories = histories.to(model.item_vectors.device)
    everywhere = torch.arange(histories.tokens, device=histories.items.device) if model.causal else None
    states = model.rollout(histories, depths, read=[everywhere, None][-len(depths) :])
    weights = torch.linspace(1, 2, model.config.hidden_size, device=histories.items.device)
    return torch.stack([(x.square() * weights).mean() for x in states]).sum()


def compare(eager: RecurrentBackbone, compiled: RecurrentBackbone, *depths_of_batches: list[int]) -> None:
    """Loss and gradients of a few batches."""
    for lengths, depths in zip(LENGTHS, depths_of_batches, strict=False):
        values = []
        for model in (eager, compiled):
            model.zero_grad()
            values.append(losses(model, lengths, depths))
            values[-1].backward()
        torch.testing.assert_close(values[1], values[0], rtol=1e-5, atol=1e-6)
        for (name, own), other in zip(eager.named_parameters(), compiled.parameters(), strict=True):
            if own.grad is not None:
                torch.testing.assert_close(other.grad, own.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("block", [ConvTransformerBlock, TransformerBlock, RotaryBlock, LRUBlock, BSARecBlock, FMLPBlock])
def test_every_block_is_traced_as_a_whole(block: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the compiler is given, which is run as it is."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    eager, compiled = pair(block)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="compile_core")
        compare(eager, compiled, [3, 2], [2, 3], [1, 1])


@pytest.mark.slow
def test_compiled_steps_are_the_steps_and_made_once() -> None:
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="compile_core")
        eager, compiled = pair(ConvTransformerBlock)
        compare(eager, compiled, [3], [5], [1])
    assert counters["stats"]["unique_graphs"] == 2  # a step, and one at the last positions
    assert not counters["graph_break"]


def test_a_block_that_can_not_be_compiled_runs_as_it_is() -> None:
    torch._dynamo.reset()
    eager, compiled = pair(Counting)
    with pytest.warns(UserWarning, match="compile_core: the reasoning step can't be compiled and runs as it is") as caught:
        compare(eager, compiled, [2, 2], [1, 1])
    assert sum("compile_core" in str(warning.message) for warning in caught) == 1


def test_evaluation_is_not_compiled() -> None:
    _, compiled = pair(TransformerBlock)
    assert compiled.steps is not compiled
    assert compiled.eval().steps is compiled
    assert not any("_orig_mod" in name for name in compiled.state_dict())


def test_programs_are_made_once_for_all_batches_of_a_run(
    toy_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where batches hold different numbers of aligned histories, and the last one of an epoch fewer."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    sequences = SequenceDataModule(str(toy_dataset), max_length=6, batch_size=40, instances="sequence", aligned_positions=2)
    model = released_spt(compile_core=True)
    trainer(tmp_path, max_epochs=2, limit_val_batches=2).fit(model, sequences)
    assert 0 < counters["stats"]["unique_graphs"] <= 12
    assert not any("_orig_mod" in name for name in model.state_dict())
