"""Faults during training: non-finite numbers, signals, full disks. Nothing is lost, and the message states what happened."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from lares_pl import LaresError, SequenceDataset, load_stage, prepare
from lares_pl.stages.checkpoint import read_checkpoint
from lares_pl.stages.checkpoint_io import AtomicCheckpointIO
from tests.console import SMALL as SMALL_OPTIONS
from tests.console import Running, lares
from tests.training import FAST, SMALL, Poisoned, data, released_spt, trainer


def test_a_non_finite_gradient_stops_before_it_reaches_the_weights(toy_dataset: Path, tmp_path: Path) -> None:
    model = Poisoned(SMALL, optimizer=FAST)
    with pytest.raises(LaresError, match=r"gradient of update 3 \(epoch 0\).*ce [\d.]+.*training instances \d+, \d+"):
        trainer(tmp_path, max_steps=5).fit(model, data(toy_dataset, batch_size=32))
    assert all(bool(value.isfinite().all()) for value in model.backbone.state_dict().values())


def test_non_finite_updates_can_be_skipped_and_are_counted(toy_dataset: Path, tmp_path: Path) -> None:
    model = Poisoned(SMALL, optimizer=FAST, on_nonfinite="skip")
    fit = trainer(tmp_path, max_steps=5)
    fit.fit(model, data(toy_dataset, batch_size=32))
    assert model.skipped_updates == 1
    assert fit.callback_metrics["train/skipped_updates"] == 1
    assert all(bool(value.isfinite().all()) for value in model.backbone.state_dict().values())
    trainer(tmp_path, max_steps=1).fit(model, data(toy_dataset, batch_size=32))
    assert model.skipped_updates == 0
    with pytest.raises(LaresError, match="stop or skip"):
        released_spt(on_nonfinite="go on")


def test_a_failed_save_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "best.ckpt"
    AtomicCheckpointIO().save_checkpoint({"a": 1}, path)
    before = path.read_bytes()

    def full(content: Any, place: Path) -> None:
        Path(place).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(LaresError, match=r"best\.ckpt.*No space left on device.*an existing file was left unchanged"):
        AtomicCheckpointIO().save_checkpoint({"a": 2}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture(scope="module")
def work(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    (folder / "prepared").symlink_to(toy_dataset)
    (folder / "patient.yaml").write_text(yaml.safe_dump({"callbacks": {"early_stopping": None, "depth_sweep": None}}))
    return folder


def fit(*arguments: str) -> list[str]:
    """A training of many short epochs."""
    quiet = ["--trainer.logger", "false", "--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    budget = ["--trainer.max_epochs", "4000", "--test_after_fit", "false"]
    size = ["--data.batch_size", "16", "--data.max_length", "8"]
    return ["fit", "--config", "spt.yaml", "--config", "patient.yaml", *SMALL_OPTIONS, *quiet, *budget, *size, *arguments]


def wait_for_a_save(path: Path, running: Running) -> None:
    """Wait for a new checkpoint."""
    before, deadline = path.stat().st_mtime_ns if path.exists() else None, time.monotonic() + 240
    while not path.exists() or path.stat().st_mtime_ns == before:
        assert running.poll() is None, running.said
        assert time.monotonic() < deadline
        time.sleep(0.02)


def updates(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["global_step"])


@pytest.mark.slow
def test_sigterm_saves_a_checkpoint_and_exits_with_an_error(work: Path) -> None:
    last = work / "runs" / "term" / "spt" / "checkpoints" / "last.ckpt"
    running = Running(work, *fit("--run", "term"))
    wait_for_a_save(last, running)
    os.kill(running.pids[0], signal.SIGTERM)
    assert "resume with the same command and --ckpt_path last" in running.end(143).stderr
    reached = updates(last)
    lares(work, *fit("--run", "term", "--ckpt_path", "last", "--trainer.max_steps", str(reached + 2)))
    assert updates(last) >= reached


# ---------------------------------------------------------------- kill -9, and disks that are full

KILLS = int(os.environ.get("LARES_KILLS", "12"))  # over all of the tests below


def share(part: float) -> int:
    return max(1, round(KILLS * part))


def refusal(running: Running) -> str:
    """The message of a command that failed; checks that it is one paragraph."""
    said = running.end(2).said
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("lares: error: ")]
    return line


def undisturbed(folder: Path, *arguments: str) -> float:
    """Duration in seconds."""
    start = time.monotonic()
    Running(folder, *arguments).end()
    return time.monotonic() - start


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def sequences(folder: Path) -> list[Any]:
    """All contents of a prepared dataset."""
    data = SequenceDataset.load(folder)
    return [data.items.tolist(), data.offsets.tolist(), data.user_ids.to_pylist(), data.catalogue_fingerprint]


@pytest.mark.slow
@pytest.mark.parametrize(("often", "part"), [(False, 1 / 6), (True, 1 / 4)])
def test_a_kill_at_any_time_leaves_a_complete_last_checkpoint(work: Path, often: bool, part: float) -> None:
    """During training, and with a checkpoint after almost every update."""
    run = "often" if often else "kill"
    folder = work / "runs" / run / "spt" / "checkpoints"
    keeper = {"filename": "last", "every_n_train_steps": 1, "enable_version_counter": False, "save_on_train_epoch_end": False}
    callback = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": keeper}
    only = {"best_checkpoint": None, "last_checkpoint": None}
    (work / "often.yaml").write_text(
        yaml.safe_dump({"callbacks": only, "trainer": {"callbacks": [callback], "limit_val_batches": 0}})
    )
    draws, reached = random.Random(run), 0
    for _ in range(share(part)):
        resumed = ("--ckpt_path", "last") if (folder / "last.ckpt").exists() else ()
        running = Running(work, *fit("--run", run, *(("--config", "often.yaml") if often else ()), *resumed))
        wait_for_a_save(folder / "last.ckpt", running)
        running.kill(draws.uniform(0, 0.5))
        for path in folder.glob("*.ckpt"):
            read_checkpoint(path)
        load_stage(folder / "last.ckpt")
        assert updates(folder / "last.ckpt") > reached
        reached = updates(folder / "last.ckpt")


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two logs that take some time to prepare."""
    folder = tmp_path_factory.mktemp("logs")
    for name, seed in (("a", 1), ("b", 2)):
        users, items = np.random.default_rng(seed).integers(0, 3000, (2, 60_000))
        lines = [f"{user}\ti{item}\t{time}\n" for time, (user, item) in enumerate(zip(users, items, strict=True))]
        (folder / f"{name}.tsv").write_text("user_id\titem_id\ttimestamp\n" + "".join(lines))
        prepare(str(folder / f"{name}.tsv"), str(folder / name))
    return folder


@pytest.mark.slow
def test_a_kill_during_prepare_leaves_a_complete_dataset_or_none(logs: Path, tmp_path: Path) -> None:
    a, b = sequences(logs / "a"), sequences(logs / "b")
    seconds = undisturbed(tmp_path, "prepare", str(logs / "a.tsv"), "--output", "other")
    draws = random.Random(0)
    for _ in range(share(1 / 6)):
        Running(tmp_path, "prepare", str(logs / "a.tsv"), "--output", "out").kill(draws.uniform(0, 1.1 * seconds))
        if (tmp_path / "out").exists():
            assert sequences(tmp_path / "out") == a
            shutil.rmtree(tmp_path / "out")
    Running(tmp_path, "prepare", str(logs / "a.tsv"), "--output", "out").end()
    now, then = a, b
    for _ in range(share(1 / 6)):
        source = logs / ("b.tsv" if now is a else "a.tsv")
        Running(tmp_path, "prepare", str(source), "--output", "out", "--overwrite", "true").kill(
            draws.uniform(0, 1.1 * seconds)
        )
        found = sequences(tmp_path / "out")
        assert found in (now, then)
        now, then = (then, now) if found == then else (now, then)
    Running(tmp_path, "prepare", str(logs / "b.tsv"), "--output", "out", "--overwrite", "true").end()
    assert sequences(tmp_path / "out") == b
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]  # all cleared away


@pytest.fixture(scope="module")
def trained(work: Path) -> Path:
    """A checkpoint, and rankings made with it: `five.parquet` and `seven.parquet`."""
    arguments = fit("--run", "trained", "--trainer.max_steps", "3")
    Running(work, *arguments).end()
    path = work / "runs" / "trained" / "spt" / "checkpoints" / "last.ckpt"
    for name, k in (("five", "5"), ("seven", "7")):
        Running(work, *predicting(path), "--k", k, "--output", f"{name}.parquet").end()
    return path


def predicting(path: Path) -> list[str]:
    device = ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    return ["predict", "--ckpt_path", str(path), *device, "--data.eval_batch_size", "1"]


@pytest.mark.slow
def test_a_kill_during_predict_leaves_the_previous_or_the_new_file(work: Path, trained: Path) -> None:
    (work / "rankings").mkdir()
    path = work / "rankings" / "r.parquet"
    rankings = {k: pq.read_table(work / f"{k}.parquet") for k in ("five", "seven")}
    command = [*predicting(trained), "--k", "7", "--output", str(path), "--overwrite", "true"]
    seconds = undisturbed(work, *command)
    draws = random.Random(1)
    for _ in range(share(1 / 4)):
        shutil.copy(work / "five.parquet", path)
        Running(work, *command).kill(draws.uniform(0, 1.1 * seconds))
        assert pq.read_table(path) in list(rankings.values())
    Running(work, *command).end()
    assert pq.read_table(path) == rankings["seven"]
    assert [file.name for file in path.parent.iterdir()] == ["r.parquet"]


@pytest.mark.slow
@pytest.mark.parametrize("most_bytes", [2_000, 60_000, 300_000, 1_000_000])
def test_prepare_without_disk_space(logs: Path, tmp_path: Path, most_bytes: int) -> None:
    shutil.copytree(logs / "a", tmp_path / "out")
    before = content(tmp_path / "out")
    for name, more in (("new", ()), ("out", ("--overwrite", "true"))):
        said = refusal(Running(tmp_path, "prepare", str(logs / "b.tsv"), "--output", name, *more, most_bytes=most_bytes))
        assert str(tmp_path / name) in said or str(tmp_path / f".{name}") in said
        assert content(tmp_path / "out") == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    yield place
    subprocess.run(["umount", place], check=True)


def fill(disk: Path, left: int) -> None:
    free = os.statvfs(disk)
    (disk / "full").write_bytes(b"x" * (free.f_bavail * free.f_bsize - left))


@pytest.mark.slow
@pytest.mark.parametrize("left", [0, 300_000, 1_000_000, 2_000_000])
def test_prepare_on_a_full_disk(logs: Path, disk: Path, left: int) -> None:
    fill(disk, left)
    assert "disk/" in refusal(Running(disk.parent, "prepare", str(logs / "b.tsv"), "--output", "disk/out"))
    assert [path.name for path in disk.iterdir()] == ["full"]


@pytest.mark.slow
def test_a_dataset_on_a_full_disk_is_read_into_memory(logs: Path, disk: Path) -> None:
    """The flat copies don't fit; a mapped page without disk space would kill the process."""
    shutil.copytree(logs / "a", disk / "a", ignore=shutil.ignore_patterns("flat"))
    fill(disk, 300_000)
    code = "import sys; from lares_pl import SequenceDataset; print(SequenceDataset.load(sys.argv[1]).items.sum())"
    done = subprocess.run([sys.executable, "-c", code, disk / "a"], capture_output=True, text=True, check=False)
    assert done.stdout == f"{SequenceDataset.load(logs / 'a').items.sum()}\n", done
    assert sorted(path.name for path in (disk / "a").iterdir()) == ["dataset.json", "items.parquet", "sequences.parquet"]


@pytest.mark.slow
def test_predict_without_disk_space(work: Path, trained: Path) -> None:
    before = (work / "five.parquet").read_bytes()
    command = [*predicting(trained), "--k", "7", "--output", "five.parquet", "--overwrite", "true"]
    said = refusal(Running(work, *command, most_bytes=1500))
    assert "five.parquet: could not be written" in said
    assert (work / "five.parquet").read_bytes() == before
    assert not list(work.glob(".five*"))


@pytest.mark.slow
def test_saving_a_checkpoint_without_disk_space(work: Path, trained: Path) -> None:
    before = content(trained.parent)
    resumed = ["--run", "trained", "--ckpt_path", "last", "--trainer.max_steps", "100"]
    said = refusal(Running(work, *fit(*resumed), most_bytes=len(trained.read_bytes()) // 2))
    assert "could not be written" in said
    assert "resume from the last one (--ckpt_path last)" in said
    assert content(trained.parent) == before
