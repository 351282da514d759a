"""The `lares` command as a person runs it: another process, another folder, no account of anything."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lares_pl.cli import main

QUICK = [
    *("--trainer.accelerator", "cpu", "--trainer.devices", "1"),
    *("--trainer.limit_train_batches", "3", "--trainer.max_epochs", "1", "--trainer.log_every_n_steps", "1"),
]
SMALL = [
    *("--model.backbone.hidden_size", "16", "--model.backbone.pre_layers", "1", "--model.backbone.core_layers", "1"),
    *("--data.batch_size", "64", "--model.optimizer.lr", "0.005"),
]


def lares(
    folder: Path, *arguments: str, status: int = 0, python: str = sys.executable, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `lares` in a folder and check its exit status."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "LARES", "PYTHONPATH"))}
    home = folder / ".home"
    home.mkdir(exist_ok=True)
    done = subprocess.run(
        [python, "-m", "lares_pl", *arguments],
        cwd=folder,
        env={**clean, "HOME": str(home), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=500,
        check=False,
    )
    assert done.returncode == status, f"{arguments}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return done


def error(folder: Path, *arguments: str) -> str:
    """The one paragraph that a refused command prints; run in this process, which saves importing everything again."""
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
