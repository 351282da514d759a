"""Unattended runs on a cluster: several processes, signals, and the same command run repeatedly."""

from __future__ import annotations

import csv
import gc
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from lares_pl import LaresError, SequenceDataset
from lares_pl.callbacks.graceful_shutdown import GracefulShutdown
from lares_pl.cli.main import main
from lares_pl.cli.shipped_configs import shipped_configs
from lares_pl.runs import StageFolder
from tests.console import Running, clean_environment, error, lares

TWO = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.logger", "false"]
CLUSTER = ["--config", "cluster.yaml", *TWO]


@pytest.fixture(scope="module")
def work(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the toy dataset and small stages: `spt.yaml` and `rpt.yaml` there win over the shipped ones."""
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "prepared").symlink_to(toy_dataset)
    budget = {"trainer": {"max_epochs": 3, "logger": False, "accelerator": "cpu"}}
    size, prefix = {"hidden_size": 16, "pre_layers": 1, "core_layers": 1}, {"instances": "prefix"}
    of_stage: dict[str, dict[str, Any]] = {
        "spt.yaml": {"model": {"init_args": {"backbone": size}}, "data": {**prefix, "batch_size": 16, "max_length": 8}},
        "rpt.yaml": {
            "model": {"init_args": {"group_size": 2, "pruning": {"passes": 1, "top": 20}}},
            "data": {**prefix, "batch_size": 8},
        },
    }
    for name, own in of_stage.items():
        config = yaml.safe_load(shipped_configs()[name].read_text())
        for part in (budget, own):
            merge(config, part)
        (folder / name).write_text(yaml.safe_dump(config))
    return folder


def merge(into: dict[str, Any], values: dict[str, Any]) -> None:
    for key, value in values.items():
        former = into.get(key)
        if isinstance(former, dict) and isinstance(value, dict):
            merge(former, value)
        else:
            into[key] = value


def checkpoint(folder: Path, run: str, stage: str = "spt", name: str = "last") -> Path:
    return folder / "runs" / run / stage / "checkpoints" / f"{name}.ckpt"


def updates(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["global_step"])


def assert_equal_runs(left: Path, right: Path) -> None:
    """The same weights, optimiser and schedules, bit for bit."""
    a, b = (torch.load(path, weights_only=True) for path in (left, right))
    assert a["global_step"] == b["global_step"]
    for name, value in a["state_dict"].items():
        assert torch.equal(value, b["state_dict"][name]), name
    assert a["lr_schedulers"] == b["lr_schedulers"]
    for mine, theirs in zip(
        a["optimizer_states"][0]["state"].values(), b["optimizer_states"][0]["state"].values(), strict=True
    ):
        for name, value in mine.items():
            assert torch.equal(value, theirs[name]), name


def launched(folder: Path, *arguments: str, command: tuple[str, ...] = ("-m", "lares_pl")) -> subprocess.Popen[str]:
    """A run whose processes Lightning or torchrun starts."""
    return subprocess.Popen(
        [sys.executable, *command, *arguments],
        cwd=folder,
        env=clean_environment(),
        stdout=subprocess.DEVNULL,
        stderr=(folder / "stderr.txt").open("w"),
        text=True,
        start_new_session=True,  # a process group of its own, which may be signalled as a whole
    )


def wait_for(path: Path, process: subprocess.Popen[str] | subprocess.Popen[bytes] | Running) -> None:
    deadline = time.monotonic() + 240
    while not path.exists():
        assert process.poll() is None, process
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children(process: subprocess.Popen[str]) -> list[int]:
    """Processes that this one started with its own command line: the other ranks."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in found if b"lares_pl" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().split(") ")[1].startswith("Z")  # ended, and nobody asked how


# ---------------------------------------------------------------- one at a time, the same line again


def test_a_folder_is_locked_by_one_process(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "runs" / "a" / "spt")
    first = folder.hold()
    with pytest.raises(LaresError, match=rf"runs/a/spt is already being trained, by process {os.getpid()} on .*another --run"):
        folder.hold()
    StageFolder(tmp_path / "runs" / "a" / "rpt").hold().close()  # another stage is another folder
    first.close()
    folder.hold().close()


@pytest.mark.slow
def test_a_fit_releases_the_folder_when_it_ends(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when Python collects what the command left behind."""
    monkeypatch.chdir(work)
    line = ["lares", "fit", "--config", "spt.yaml", "--run", "one-process", "--test_after_fit", "false"]
    gc.disable()
    try:
        for options in (["1"], ["2", "--ckpt_path", "last"]):
            monkeypatch.setattr(sys, "argv", [*line, "--trainer.max_epochs", *options])
            main()
    finally:
        gc.enable()
    assert torch.load(checkpoint(work, "one-process"), weights_only=True)["epoch"] == 1


@pytest.mark.slow
def test_a_second_fit_of_a_run_is_refused_and_a_kill_releases_the_folder(work: Path) -> None:
    line = ["fit", "--config", "spt.yaml", "--run", "twice", "--ckpt_path", "auto", "--test_after_fit", "false"]
    running = Running(work, *line, "--trainer.max_epochs", "5000")
    wait_for(checkpoint(work, "twice"), running)
    for again in (line, line[:5]):
        assert f"by process {running.pids[0]} on" in error(work, *again)
    assert not (work / "runs" / "twice" / "spt.1").exists()
    running.kill()
    reached = updates(checkpoint(work, "twice"))
    done = lares(work, *line, "--trainer.max_steps", str(reached + 3), "--trainer.max_epochs", "-1")
    assert "resuming runs/twice/spt/checkpoints/last.ckpt" in done.said


@pytest.mark.slow
def test_the_same_command_starts_resumes_and_ends_at_once(work: Path) -> None:
    """The first start of RPT reads its weights from SPT, as without `auto`."""
    for stage in ("spt", "rpt"):
        folder = work / "runs" / "again" / stage
        line = ["fit", "--config", f"{stage}.yaml", "--run", "again", "--ckpt_path", "auto", "--trainer.max_epochs", "1"]
        first = lares(work, *line)
        assert "resuming" not in first.said
        record = yaml.safe_load((folder / "config.yaml").read_text())
        assert record["ckpt_path"] == "auto"
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        second = lares(work, *line)
        assert f"runs/again/{stage} is finished" in second.said
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
        # interrupted behind the last update: only the test is left to do
        report = (folder / "test.json").read_text()
        (folder / "test.json").unlink()
        (folder / "finished.json").write_text((folder / "finished.json").read_text().replace("true", "false"))
        weights = checkpoint(work, "again", stage).read_bytes()
        lares(work, *line)
        assert (folder / "test.json").read_text() == report
        assert checkpoint(work, "again", stage).read_bytes() == weights
        # a larger budget, asked for
        trained = updates(checkpoint(work, "again", stage))
        lares(work, *line[:6], "last", "--trainer.max_epochs", "2")
        assert updates(checkpoint(work, "again", stage)) > trained
        assert "max_epochs=0" in error(work, *line[:6], "last", "--trainer.max_epochs", "0")
        again = yaml.safe_load((folder / "config.yaml").read_text())
        assert again["model"]["init_args"]["init_from"] == record["model"]["init_args"]["init_from"]
        assert not (work / "runs" / "again" / f"{stage}.1").exists()


# ---------------------------------------------------------------- several processes


def test_processes_that_would_start_differently_are_refused() -> None:
    for mine, first in ((None, "last.ckpt"), ("last.ckpt", None)):
        strategy = SimpleNamespace(broadcast=lambda _, there=first: there, reduce_boolean_decision=lambda same, all: same)
        trainer: Any = SimpleNamespace(ckpt_path=mine, global_rank=1, strategy=strategy)
        with pytest.raises(LaresError, match=r"process 1 would start from .*must be the same for all processes"):
            GracefulShutdown().setup(trainer, Any, "fit")  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_process_that_waits_for_a_killed_one_ends(tmp_path: Path) -> None:
    call = "from lares_pl.callbacks.graceful_shutdown import end_with_parent; end_with_parent()"
    waits = f"import time; {call}; print(flush=True); time.sleep(99)"
    child = f"subprocess.Popen([sys.executable, '-c', {waits!r}])"
    starts = f"import subprocess, sys; print({child}.pid, flush=True); sys.stdin.read()"
    first = subprocess.Popen(
        [sys.executable, "-c", starts],
        env={**os.environ, "LOCAL_RANK": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout is not None
    second = int(first.stdout.readline())
    first.stdout.readline()  # it waits
    assert not gone(second)
    first.kill()
    first.wait()
    deadline = time.monotonic() + 20
    while not gone(second):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def terminated(run: str) -> list[str]:
    line = ["fit", "--config", "spt.yaml", *CLUSTER, "--run", run, "--ckpt_path", "auto", "--test_after_fit", "false"]
    return [*line, "--trainer.accumulate_grad_batches", "2", "--trainer.max_epochs"]


def assert_that_it_goes_on(work: Path, run: str) -> None:
    reached = updates(checkpoint(work, run))
    done = lares(work, *terminated(run), "-1", "--trainer.max_steps", str(reached + 2))
    assert "resuming" in done.said
    assert not (work / "runs" / run / "spt.1").exists()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_sigterm_to_one_of_two_processes_saves_once_and_ends_both(work: Path, rank: int) -> None:
    run = f"term-{rank}"
    running = Running(work, *terminated(run), "5000")
    wait_for(checkpoint(work, run), running)
    os.kill(running.pids[rank], signal.SIGTERM)
    assert running.end(143).stderr.count("terminated; a checkpoint was saved") == 1
    assert_that_it_goes_on(work, run)


@pytest.mark.slow
def test_sigterm_to_the_process_group_saves_once_and_ends_all(work: Path) -> None:
    process = launched(work, *terminated("term-group"), "5000")
    wait_for(checkpoint(work, "term-group"), process)
    (second,) = children(process)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=120) == 143
    assert (work / "stderr.txt").read_text().count("terminated; a checkpoint was saved") == 1
    deadline = time.monotonic() + 60
    while not gone(second):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert_that_it_goes_on(work, "term-group")


@pytest.mark.slow
def test_a_run_resumed_on_two_processes_equals_the_uninterrupted_run(work: Path) -> None:
    """Interrupted in the middle of an epoch, with accumulation, in bfloat16; both stages."""
    each: dict[str, Any] = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"}
    each |= {"init_args": {"filename": "{step}", "every_n_train_steps": 1, "save_top_k": -1, "auto_insert_metric_name": False}}
    config = yaml.safe_load(shipped_configs()["cluster.yaml"].read_text())
    config["trainer"]["callbacks"] = [each]
    (work / "each.yaml").write_text(yaml.safe_dump(config))
    for stage in ("spt", "rpt"):
        line = ["fit", "--config", f"{stage}.yaml", "--config", "each.yaml", *TWO, "--test_after_fit", "false"]
        line += ["--trainer.accumulate_grad_batches", "2", "--trainer.max_epochs", "2"]
        lares(work, *line, "--run", "whole")
        middle = checkpoint(work, "whole", stage, "2")
        state = torch.load(middle, weights_only=True)
        assert state["epoch"] == 0
        assert not state["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"]
        lares(work, *line, "--run", "resumed", "--ckpt_path", str(middle))
        assert_equal_runs(checkpoint(work, "whole", stage), checkpoint(work, "resumed", stage))


@pytest.mark.slow
def test_three_processes_count_and_predict_each_user_once(work: Path) -> None:
    assert SequenceDataset.load(work / "prepared").users % 3 == 1
    lares(work, "fit", "--config", "spt.yaml", "--run", "three", "--trainer.max_epochs", "1", "--test_after_fit", "false")
    best = str(checkpoint(work, "three", name="best"))
    small = ["--data.eval_batch_size", "8", "--trainer.accelerator", "cpu"]
    for name, devices in (("one", ["1"]), ("three", ["3", "--trainer.strategy", "ddp"])):
        options = ["--ckpt_path", best, *small, "--trainer.devices", *devices]
        lares(work, "test", *options, "--output", f"{name}.json")
        lares(work, "predict", *options, "--output", f"{name}.parquet")
    one, three = (json.loads((work / f"{name}.json").read_text())["metrics"] for name in ("one", "three"))
    assert three == pytest.approx(one, rel=1e-6)
    one, three = (pq.read_table(work / f"{name}.parquet").to_pydict() for name in ("one", "three"))
    assert one["user_id"] == three["user_id"]
    assert one["item_ids"] == three["item_ids"]


@pytest.mark.slow
def test_torchrun_starts_the_processes(work: Path) -> None:
    """With cluster.yaml (clipping), bfloat16 and accumulation."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "--", "lares_pl")
    line = ["fit", "--config", "spt.yaml", *CLUSTER, "--run", "torchrun", "--ckpt_path", "auto"]
    line += ["--trainer.accumulate_grad_batches", "2", "--trainer.log_every_n_steps", "1", "--trainer.precision", "bf16-mixed"]
    process = launched(work, *line, "--trainer.max_epochs", "1", command=torchrun)
    assert process.wait(timeout=240) == 0, (work / "stderr.txt").read_text()
    folder = work / "runs" / "torchrun" / "spt"
    with (folder / "metrics" / "version_0" / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert len(losses) == updates(checkpoint(work, "torchrun")) == 5  # 308 instances, 16 a process, 2 batches an update
    assert all(math.isfinite(loss) for loss in losses)
    finished = json.loads((folder / "finished.json").read_text())
    assert finished.pop("flops") > 0
    assert finished == {
        "epochs": 1,
        "updates": 5,
        "best": "checkpoints/best.ckpt",
        "tested": True,
    }
    config = yaml.safe_load((folder / "config.yaml").read_text())["trainer"]
    assert (config["precision"], config["gradient_clip_val"]) == ("bf16-mixed", 1.0)


# ---------------------------------------------------------------- SLURM, with stand-ins

SRUN = """#!/bin/bash
# Two tasks on this machine; SIGTERM of "SLURM" reaches the tasks through the file of their numbers; the highest status counts.
while [[ $1 == --* ]]; do shift; done
: > tasks.writing
for task in 0 1; do
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NODEID=0 "$@" &
    echo $! >> tasks.writing
done
mv tasks.writing tasks
status=0
for pid in $(cat tasks); do wait $pid; last=$?; (( last > status )) && status=$last; done
rm -f tasks
exit $status
"""

REAL = f'exec {sys.executable} -m lares_pl "$@"'


class SlurmJob:
    """`examples/slurm.sh` with stand-ins for the commands of SLURM.

    Args:
        folder: where it is submitted.
        state: what `squeue` says of the job.
        stand_in: what the command `lares` does; by default the real one.
    """

    def __init__(self, folder: Path, state: str, stand_in: str = REAL) -> None:
        self.folder, self.said, self.requeued = folder, folder / "slurm.log", folder / "scontrol.txt"
        self.number = str(10000 + os.getpid() % 9000)
        commands = {
            "srun": SRUN,
            "scontrol": '#!/bin/bash\necho "$*" >> scontrol.txt\n',
            "squeue": f"#!/bin/bash\necho {state}\n",
            "lares": f"#!/bin/bash\n{stand_in}\n",
        }
        for name, text in commands.items():
            (folder / "tools").mkdir(exist_ok=True)
            (folder / "tools" / name).write_text(text)
            (folder / "tools" / name).chmod(0o755)
        (folder / "slurm.sh").write_text(lares(folder, "config", "slurm.sh").stdout)

    def start(self, *options: str, **environment: str) -> subprocess.Popen[bytes]:
        job = {"SLURM_JOB_ID": self.number, "SLURM_JOB_NAME": "lares", "SLURM_JOB_NUM_NODES": "1", "SLURM_NNODES": "1"}
        job |= {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "PATH": f"{self.folder / 'tools'}:{os.environ['PATH']}"}
        return subprocess.Popen(
            ["bash", "slurm.sh", *options],
            cwd=self.folder,
            env={**clean_environment(), **job, **environment},
            stdout=self.said.open("a"),  # --open-mode=append
            stderr=subprocess.STDOUT,
        )

    def end_tasks(self) -> None:
        """SIGTERM to all processes, as at the end of the time."""
        for task in (self.folder / "tasks").read_text().split():
            os.kill(int(task), signal.SIGTERM)


@pytest.mark.slow
def test_the_slurm_script_requeues_itself_and_resumes(work: Path) -> None:
    """The time limit in SPT saves and requeues; the next start, with the same command, resumes."""
    job, last = SlurmJob(work, "RUNNING"), checkpoint(work, "friday")
    options = ("--run", "friday", "--test_after_fit", "false", "--trainer.max_epochs")
    first = job.start(*options, "5000")
    wait_for(last, first)
    job.end_tasks()
    assert first.wait(timeout=120) == 143, job.said.read_text()
    assert job.said.read_text().count("terminated; a checkpoint was saved") == 1
    assert job.requeued.read_text() == f"requeue {job.number}\n"
    state = torch.load(last, weights_only=True)

    # the real command once, in two tasks: what it is called with next time is run in processes that start sooner
    again = SlurmJob(work, "RUNNING", stand_in='echo "$*" >> called.txt')
    assert again.start(*options, str(state["epoch"] + 2), SLURM_RESTART_COUNT="1").wait(timeout=60) == 0
    called = [line.split() for line in (work / "called.txt").read_text().splitlines()]
    assert [line[2] for line in called] == ["spt.yaml"] * 2 + ["rpt.yaml"] * 2
    done = lares(work, *called[0], "--trainer.accelerator", "cpu")
    assert "resuming runs/friday/spt/checkpoints/last.ckpt" in done.said
    assert updates(last) > state["global_step"]
    assert {path.name for path in (work / "runs" / "friday").iterdir()} == {"spt", ".spt.lock"}
    assert len(job.requeued.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("state", "status", "restarts", "requeues"),
    [("RUNNING", 143, 0, True), ("RUNNING", 143, 100, False), ("COMPLETING", 143, 0, False), ("RUNNING", 1, 0, False)],
    ids=["out of time", "too often", "cancelled", "failed"],
)
def test_when_the_slurm_script_requeues(tmp_path: Path, state: str, status: int, restarts: int, requeues: bool) -> None:
    job = SlurmJob(tmp_path, state, stand_in=f'echo "$*" >> called.txt; exit {status}')
    assert job.start("--run", "friday", SLURM_RESTART_COUNT=str(restarts)).wait(timeout=60) == status
    assert job.requeued.exists() == requeues
    called = (tmp_path / "called.txt").read_text().splitlines()
    line = "fit --config spt.yaml --config cluster.yaml --ckpt_path auto --trainer.num_nodes 1 --trainer.devices 2 --run friday"
    assert called == [line] * 2  # two tasks; RPT is not started


def test_the_slurm_script_starts_rpt_after_spt(tmp_path: Path) -> None:
    assert SlurmJob(tmp_path, "RUNNING", stand_in='echo "$3" >> called.txt').start().wait(timeout=60) == 0
    assert (tmp_path / "called.txt").read_text().split() == ["spt.yaml"] * 2 + ["rpt.yaml"] * 2
