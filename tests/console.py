"""The `lares` command as users run it: in another process and another folder, without any account."""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import start_processes

from lares_pl.cli.main import main

QUICK = [
    *("--trainer.accelerator", "cpu", "--trainer.devices", "1"),
    *("--trainer.limit_train_batches", "3", "--trainer.max_epochs", "1", "--trainer.log_every_n_steps", "1"),
]
SMALL = [
    *("--model.backbone.hidden_size", "16", "--model.backbone.pre_layers", "1", "--model.backbone.core_layers", "1"),
    *("--data.batch_size", "64", "--model.optimizer.lr", "0.005"),
]
OFFLINE = {"WANDB_MODE": "offline"}

# processes are forked from one that has imported everything: importing takes longer than all else that a test does
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        *("lares_pl.cli.lightning", "lares_pl.data.prepare.command", "lares_pl.data.dataset.prepared"),
        "wandb.sdk.launch.inputs.internal",  # wandb imports it when a run starts
    ]
)


def on_forked_processes(task: Callable[..., None], arguments: tuple[Any, ...], count: int) -> None:
    """Run `task(rank, *arguments)` in several processes, and raise an exception of any of them."""
    start_processes(task, arguments, nprocs=count, start_method=CONTEXT.get_start_method())


def cluster_of(count: int) -> dict[str, str]:
    """Variables with which so many processes of this machine find each other; each has its own LOCAL_RANK beside them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count), "NODE_RANK": "0"}


def clean_environment() -> dict[str, str]:
    """What a command sees of the environment of the tests; a module is compiled once, not by each process."""
    own = ("WANDB", "LARES", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "PL_", "PYTEST")
    return {**{key: value for key, value in os.environ.items() if not key.startswith(own)}, "OMP_NUM_THREADS": "1"}


def _command(folder: Path, said: Path, arguments: list[str], environment: dict[str, str], most_bytes: int | None) -> None:
    os.setsid()  # a process group of its own
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for place, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(said / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), place)
    torch.set_num_threads(1)
    atexit._clear()  # what the process forked from has to tidy up, such as folders that others use too
    if most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    sys.argv = ["lares", *arguments]
    try:
        main()
    finally:
        atexit._run_exitfuncs()  # of this command; multiprocessing leaves them out


class Running:
    """A running `lares` command.

    Args:
        folder: where it is called.
        arguments: what is typed behind `lares`. Where `--trainer.devices` asks for several processes they are started as a
            cluster does, each by itself.
        most_bytes: the largest file it may write.
        environment: variables beside those of `clean_environment`; W&B writes nothing unless told to (`OFFLINE`).
    """

    def __init__(
        self, folder: Path, *arguments: str, most_bytes: int | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        self._said = tempfile.TemporaryDirectory()
        place = Path(self._said.name)
        counts = [count for option, count in pairwise(arguments) if option == "--trainer.devices"]
        count = int(counts[-1]) if counts else 1
        shared = {**clean_environment(), "HOME": self._said.name, "WANDB_MODE": "disabled", **(environment or {})}
        if count > 1:
            shared |= cluster_of(count)
        self.processes = []
        for rank in range(count):
            own = shared if count == 1 else {**shared, "LOCAL_RANK": str(rank)}
            self.processes.append(CONTEXT.Process(target=_command, args=(folder, place, list(arguments), own, most_bytes)))
            self.processes[-1].start()

    @property
    def pids(self) -> list[int]:
        return [process.pid or 0 for process in self.processes]

    def poll(self) -> int | None:
        """Exit status of the first process; None while it is running."""
        return self.processes[0].exitcode

    @property
    def stdout(self) -> str:
        return (Path(self._said.name) / "stdout").read_text()

    @property
    def stderr(self) -> str:
        return (Path(self._said.name) / "stderr").read_text()

    @property
    def said(self) -> str:
        return self.stdout + self.stderr

    def kill(self, after: float = 0.0) -> None:
        """Kill it if it is still running."""
        self.processes[0].join(after)
        for process in self.processes:
            if process.is_alive():
                os.kill(process.pid or 0, signal.SIGKILL)
            process.join()

    def end(self, status: int = 0, timeout: float = 400) -> Running:
        """Wait for all processes, and check their exit status."""
        for process in self.processes:
            process.join(timeout)
            assert process.exitcode == status, f"{process.exitcode}\n{self.stdout[-3000:]}\n{self.stderr[-5000:]}"
        return self


def lares(folder: Path, *arguments: str, status: int = 0, environment: Mapping[str, str] | None = None) -> Running:
    """Run `lares` in a folder and check its exit status."""
    return Running(folder, *arguments, environment=environment).end(status)


def lares_of(python: Path, folder: Path, *commands: list[str]) -> subprocess.CompletedProcess[str]:
    """Run commands of another installation, one after the other in one process: importing takes most of the time."""
    code = "import json, sys; from lares_pl.cli.main import main\nfor sys.argv[1:] in json.loads(sys.argv[1]): main()"
    done = subprocess.run(
        [python, "-c", code, json.dumps(commands)],
        cwd=folder,
        env={**clean_environment(), "HOME": str(folder)},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, f"{commands}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return done


def error(folder: Path, *arguments: str) -> str:
    """The message of a refused command, run in this process; checks that it is one paragraph."""
    said, stderr = io.StringIO(), sys.stderr
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["lares", *arguments])
        patch.setattr(sys, "stderr", said)
        with pytest.raises(SystemExit) as stopped:
            main()
    assert stopped.value.code == 2, said.getvalue()
    assert sys.stderr is stderr
    assert "Traceback" not in said.getvalue()
    (line,) = [line for line in said.getvalue().splitlines() if line.startswith("lares: error: ")]
    return line
