"""What goes wrong while training: numbers, signals, disks. Nothing is lost, and the message says what happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lares_pl import SPT, LaresError, load_stage
from lares_pl.shipped import shipped_configs
from lares_pl.stages.checkpoint import read_checkpoint
from lares_pl.stages.saving import AtomicCheckpointIO
from tests.console import SMALL as SMALL_OPTIONS
from tests.console import lares
from tests.test_stages import FAST, SMALL, data, trainer


class Poisoned(SPT):
    """Gives a loss that is not a number at its third batch."""

    def training_step(self, batch: Any) -> torch.Tensor:
        loss = super().training_step(batch)
        return loss * torch.nan if self.trainer.fit_loop.epoch_loop.total_batch_idx == 2 else loss


def test_a_gradient_that_is_not_finite_stops_before_it_reaches_the_weights(toy_dataset: Path, tmp_path: Path) -> None:
    model = Poisoned(SMALL, optimizer=FAST)
    with pytest.raises(LaresError, match=r"gradient of update 3 \(epoch 0\).*ce [\d.]+.*training instances \d+, \d+"):
        trainer(tmp_path, max_steps=5).fit(model, data(toy_dataset, batch_size=32))
    assert all(bool(value.isfinite().all()) for value in model.backbone.state_dict().values())


def test_such_updates_can_be_skipped_and_are_counted(toy_dataset: Path, tmp_path: Path) -> None:
    model = Poisoned(SMALL, optimizer=FAST, on_nonfinite="skip")
    fit = trainer(tmp_path, max_steps=5)
    fit.fit(model, data(toy_dataset, batch_size=32))
    assert model.skipped_updates == 1
    assert fit.callback_metrics["train/skipped_updates"] == 1
    assert all(bool(value.isfinite().all()) for value in model.backbone.state_dict().values())
    with pytest.raises(LaresError, match="stop or skip"):
        SPT(SMALL, on_nonfinite="go on")  # type: ignore[arg-type]


def test_a_save_that_fails_leaves_the_former_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "best.ckpt"
    AtomicCheckpointIO().save_checkpoint({"a": 1}, path)
    before = path.read_bytes()

    def full(content: Any, place: Path) -> None:
        Path(place).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(LaresError, match=r"best\.ckpt.*No space left on device.*a former one there is as it was"):
        AtomicCheckpointIO().save_checkpoint({"a": 2}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture(scope="module")
def work(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    (folder / "prepared").symlink_to(toy_dataset)
    callbacks = yaml.safe_load((shipped_configs() / "spt.yaml").read_text())["trainer"]["callbacks"]
    (folder / "patient.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks[:2]}}))  # never stops early
    return folder


def fit(*arguments: str) -> list[str]:
    """A training of many short epochs."""
    quiet = ["--trainer.logger", "false", "--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    budget = ["--trainer.max_epochs", "4000", "--test_after_fit", "false"]
    size = ["--data.batch_size", "16", "--data.max_length", "8"]
    return ["fit", "--config", "spt.yaml", "--config", "patient.yaml", *SMALL_OPTIONS, *quiet, *budget, *size, *arguments]


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "LARES", "PYTHONPATH"))}
    return subprocess.Popen(
        [sys.executable, "-m", "lares_pl", *fit(*arguments)],
        cwd=folder,
        env={**clean, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=(folder / "stderr.txt").open("w"),
        text=True,
    )


def wait_for_a_save(path: Path, process: subprocess.Popen[str]) -> None:
    """Until a checkpoint is there that was not before."""
    before, deadline = path.stat().st_mtime_ns if path.exists() else None, time.monotonic() + 240
    while not path.exists() or path.stat().st_mtime_ns == before:
        assert process.poll() is None, (Path(path).parents[4] / "stderr.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def updates(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["global_step"])


@pytest.mark.slow
def test_sigterm_saves_a_checkpoint_and_is_no_success(work: Path) -> None:
    last = work / "runs" / "term" / "spt" / "checkpoints" / "last.ckpt"
    process = started(work, "--run", "term")
    wait_for_a_save(last, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=240) == 143
    assert "resume with the same command and --ckpt_path last" in (work / "stderr.txt").read_text()
    reached = updates(last)
    lares(work, *fit("--run", "term", "--ckpt_path", "last", "--trainer.max_steps", str(reached + 2)))
    assert updates(last) >= reached


@pytest.mark.slow
def test_killed_at_random_moments_the_last_checkpoint_is_whole(work: Path) -> None:
    """A few kills by default; LARES_KILLS asks for more."""
    folder = work / "runs" / "kill" / "spt" / "checkpoints"
    randomness = torch.Generator().manual_seed(0)
    reached = 0
    for _ in range(int(os.environ.get("LARES_KILLS", "4"))):
        resumed = ("--ckpt_path", "last") if (folder / "last.ckpt").exists() else ()
        process = started(work, "--run", "kill", *resumed)
        wait_for_a_save(folder / "last.ckpt", process)
        time.sleep(float(torch.rand((), generator=randomness)) * 0.5)
        process.kill()
        process.wait()
        for path in folder.glob("*.ckpt"):
            read_checkpoint(path)
        load_stage(folder / "last.ckpt")
        assert updates(folder / "last.ckpt") > reached
        reached = updates(folder / "last.ckpt")
