"""An update asks the device for nothing: it runs on the meta device, whose tensors have no values to ask for.

A `.item()`, a boolean selection or a result whose size depends on values raises there. So this stands for a GPU, on which each
of them would stop the host until the device has caught up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from lares_pl import (
    RPT,
    SPT,
    BackboneConfig,
    BatchAdvantage,
    ConstantDepth,
    EveryStep,
    LastAndRandomStep,
    LogProbReward,
    SequenceDataModule,
    WholeCatalogue,
)
from lares_pl.data.loading.batches import Batch
from lares_pl.data.loading.loaders import InstanceLoader, WindowLoader
from lares_pl.data.loading.partners import SameTargetPartners
from lares_pl.data.loading.windows import training_windows
from lares_pl.model import tiles
from lares_pl.model.backbone import RecurrentBackbone
from lares_pl.model.recurrence import RandomNoise
from lares_pl.stages import group_loss
from lares_pl.stages.base import BaseStage
from lares_pl.stages.randomness import BatchRandomness
from tests.released import released_backbone
from tests.training import released_rpt, released_spt

LENGTH = 8
RECURRENT = BackboneConfig(depth=ConstantDepth(3))
STAGES: dict[str, tuple[Callable[[], BaseStage], str]] = {
    "recipe": (lambda: SPT(), "sequence"),
    "recipe, every step": (lambda: SPT(supervision=EveryStep(0.9)), "sequence"),
    "recipe, two steps": (lambda: SPT(supervision=LastAndRandomStep()), "sequence"),
    "recipe, alignment": (lambda: SPT(alpha=0.1, gamma=0.1), "sequence"),
    "released": (lambda: released_spt(released_backbone()), "prefix"),
    "recipe, RPT": (lambda: RPT(backbone=RECURRENT), "sequence"),
    "RPT, other choices": (
        lambda: RPT(backbone=RECURRENT, reward=LogProbReward(), advantage=BatchAdvantage(), actions=WholeCatalogue()),
        "sequence",
    ),
    "released RPT": (lambda: released_rpt(backbone=released_backbone()), "prefix"),
}


def batch_for(stage: BaseStage, toy_dataset: Path, instances: str) -> Batch:
    """A batch of training, as the data module serves it."""
    return batches_for(stage, toy_dataset, instances)[0]


def batches_for(stage: BaseStage, toy_dataset: Path, instances: str) -> list[Batch]:
    """The whole batches of an epoch of training, as the data module serves them."""
    sequences = SequenceDataModule(str(toy_dataset)).sequences
    options: dict[str, Any] = {"shuffle": True, "seed": 1, "with_read": stage.needs_read}
    partners = SameTargetPartners(sequences) if stage.needs_partners else None
    if instances == "sequence":
        windows = training_windows(sequences, LENGTH)
        aligned = int(stage.needs_aligned)
        return list(WindowLoader(sequences, windows, 16, LENGTH, None, aligned, partners, **options))[:-1]
    return list(InstanceLoader(sequences, sequences.training_instances, 64, LENGTH, partners, **options))[:-1]


def on_meta(stage: BaseStage, items: int, config: BackboneConfig) -> BaseStage:
    """A stage whose network is on the meta device, outside a trainer."""
    stage.backbone = RecurrentBackbone(items, LENGTH, config).train()
    if isinstance(stage, RPT):
        stage.reference = RecurrentBackbone(items, LENGTH, config).eval()
    stage.to("meta")
    stage.randomness = BatchRandomness(1, 0, torch.device("cpu"))
    stage.randomness.begin(0, 0)
    stage.randomness.noise = RandomNoise()  # no generator is of the meta device
    return stage


class NoCopies(TorchDispatchMode):
    """Refuses copies from the host, for which it would wait; those that it does not wait for are made by `on_device`."""

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], arguments: Sequence[Any] = (), options: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*arguments, **(options or {}))
        from_host = any(isinstance(x, Tensor) and x.device.type == "cpu" for x in arguments)
        assert not (from_host and isinstance(result, Tensor) and result.device.type == "meta"), function
        return result


@pytest.mark.parametrize("name", STAGES)
def test_an_update_asks_the_device_for_nothing(name: str, toy_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(name, toy_dataset, monkeypatch)


@pytest.mark.parametrize("name", STAGES)
def test_nor_does_one_of_a_catalogue_of_many_tiles(name: str, toy_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "DEVICE_CHUNK", 1000)
    check(name, toy_dataset, monkeypatch)


def check(name: str, toy_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run an update on the meta device."""
    make, instances = STAGES[name]
    stage = make()
    items = SequenceDataModule(str(toy_dataset)).sequences.catalogue_size
    on_meta(stage, items, stage.backbone_config)
    monkeypatch.setattr(stage, "log_training", lambda values, batch: None)
    monkeypatch.setattr(group_loss, "on_device", lambda values, device: torch.empty(values.shape, device=device))
    batch = batch_for(stage, toy_dataset, instances).to("meta")
    stage._trainer = SimpleNamespace(datamodule=SimpleNamespace(most_aligned=64))  # type: ignore[assignment]
    with NoCopies():  # type: ignore[no-untyped-call]
        loss = stage.training_step(batch)
        loss.backward()
    assert loss.device.type == "meta"
    assert all(parameter.grad is not None for parameter in stage.backbone.parameters())


@pytest.mark.parametrize("name", ["recipe, alignment", "released", "RPT, other choices"])
def test_an_update_of_two_processes_asks_the_device_for_nothing_either(
    name: str, toy_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())  # its collectives do nothing, on any device
    try:
        check(name, toy_dataset, monkeypatch)
    finally:
        dist.destroy_process_group()


def test_what_is_logged_stays_on_the_device(toy_dataset: Path) -> None:
    """`log_training` reads no value of a tensor, until an error needs it."""
    stage = SPT()
    seen: dict[str, Any] = {}
    stage.log_dict = lambda values, **_: seen.update(values)  # type: ignore[method-assign]

    class Trainer:
        global_step, log_every_n_steps, distributed_sampler_kwargs = 0, 1, None
        optimizers = (torch.optim.SGD([torch.zeros(1)], lr=0.1),)
        fit_loop = SimpleNamespace(_should_accumulate=lambda: False)

    stage._trainer = Trainer()  # type: ignore[assignment]
    batch = batch_for(on_meta(stage, 10, stage.backbone_config), toy_dataset, "prefix")
    stage.log_training({"loss": torch.empty((), device="meta"), "depth": 4}, batch)
    assert seen["train/loss"].device.type == "meta"
    assert seen["train/depth"] == 4.0
    # a number would be copied to the device by Lightning, which waits for it
    assert {name: value.device.type for name, value in seen.items() if name != "train/loss"} == dict.fromkeys(
        ("train/depth", "train/lr", "train/instances_per_second"), "cpu"
    )
