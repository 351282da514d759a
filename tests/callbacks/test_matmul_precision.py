"""The precision of matrix products: that of training while a batch is trained on, and that of the process elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback

from lares_pl import LaresError, MatmulPrecision
from tests.console import SMALL, lares
from tests.training import data, released_spt, trainer


class Seen(Callback):
    """What is set within updates, in validation and at the end."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.in_updates: set[str] = set()
        self.in_validation: set[str] = set()

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.in_updates.add(torch.get_float32_matmul_precision())
        if self.fails:
            raise RuntimeError("as a block of a user might")

    def on_validation_batch_start(self, *_: Any) -> None:
        self.in_validation.add(torch.get_float32_matmul_precision())


@pytest.fixture(autouse=True)
def process() -> Iterator[None]:
    """A process in which nobody has set anything."""
    assert torch.get_float32_matmul_precision() == "highest"
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_it_is_set_in_updates_alone(precision: Any, toy_dataset: Path, tmp_path: Path) -> None:
    seen = Seen()
    fit = trainer(tmp_path, callbacks=[seen, MatmulPrecision(precision)], max_epochs=1, num_sanity_val_steps=1)
    fit.fit(released_spt(), data(toy_dataset))
    assert seen.in_updates == {precision}
    assert seen.in_validation == {"highest"}
    assert torch.get_float32_matmul_precision() == "highest"


def test_two_of_them_leave_the_process_as_it_was(toy_dataset: Path, tmp_path: Path) -> None:
    both: list[Callback] = [MatmulPrecision("high"), MatmulPrecision("medium")]
    trainer(tmp_path, callbacks=both, max_epochs=1).fit(released_spt(), data(toy_dataset))
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_failed_run_leaves_the_process_as_it_was(toy_dataset: Path, tmp_path: Path) -> None:
    fit = trainer(tmp_path, callbacks=[Seen(fails=True), MatmulPrecision()], max_epochs=1)
    with pytest.raises(RuntimeError, match="as a block"):
        fit.fit(released_spt(), data(toy_dataset))
    assert torch.get_float32_matmul_precision() == "highest"


def test_another_word_is_an_error() -> None:
    with pytest.raises(LaresError, match="highest, high or medium, got tf32"):
        MatmulPrecision("tf32")  # type: ignore[arg-type]


def test_the_command_line_turns_it_on(toy_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "prepared").symlink_to(toy_dataset)
    options = ["--callbacks.matmul_precision", "MatmulPrecision", "--test_after_fit", "false", "--trainer.max_epochs", "1"]
    lares(tmp_path, "fit", "--config", "spt.yaml", *options, *SMALL)
    written = (tmp_path / "runs" / "default" / "spt" / "config.yaml").read_text()
    chosen = yaml.safe_load(written)["callbacks"]["matmul_precision"]
    assert chosen["class_path"].endswith("MatmulPrecision")
    assert chosen["init_args"] == {"precision": "high"}
