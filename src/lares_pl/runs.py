"""The folder of a stage of a run: its files, its lock, and the record of a finished training."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from lares_pl.atomic_io import move_aside, write_json
from lares_pl.errors import LaresError

RUNS = Path("runs")
BEST = Path("checkpoints") / "best.ckpt"
LAST = Path("checkpoints") / "last.ckpt"


def trained() -> list[Path]:
    """Return the best checkpoints of all runs in the current folder."""
    return sorted(RUNS.glob(f"*/*/{BEST}"))


def stage_folder(run: str, stage: str) -> StageFolder:
    """Return the folder of a stage of a run.

    Raises:
        LaresError: if a name is empty or leads elsewhere.
    """
    for option, name in (("--run", run), ("--stage", stage)):
        if not name or name != Path(name).name:
            raise LaresError(f"{option} {name!r}: must be the name of one folder, without / or .., such as beauty")
    return StageFolder(RUNS / run / stage)


@dataclass(frozen=True)
class StageFolder:
    """`runs/RUN/STAGE`.

    Args:
        path: the folder.
    """

    path: Path

    @property
    def last(self) -> Path:
        """The checkpoint to resume from."""
        return self.path / LAST

    def contains(self, file: str) -> bool:
        """Whether a file lies in this folder, by whatever path it is named."""
        return self.path.resolve() in Path(file).resolve().parents

    def hold(self) -> TextIO:
        """Lock the folder for this process, until it ends or the returned file is closed.

        The lock is the operating system's, on a file beside the folder (which may be moved), so it is released however the
        process ends. It works across the machines of a cluster if the shared file system supports locks: NFS does, unless
        mounted with `nolock` or `local_lock`; Lustre does if mounted with `flock`. If it is not supported, a warning is shown.
        (The `filelock` package would fall back to a lock that a killed process leaves behind, and does not record the holder.)

        Raises:
            LaresError: if another process holds it.
        """
        place = self.path.with_name(f".{self.path.name}.lock")
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = place.open("a+", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            lock.close()
            raise LaresError(
                f"{self.path} is already being trained, by {holder}: two runs in one folder would mix their checkpoints. "
                "Wait for it, stop it, or choose another --run or --stage"
            ) from error
        except OSError as error:
            warnings.warn(
                f"{place}: this file system does not support locks ({error}); make sure not to start a run twice", stacklevel=2
            )
            return lock
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        lock.flush()
        return lock

    def move_aside(self) -> Path | None:
        """Move an earlier run aside; return its new path, if there was one."""
        return move_aside(self.path)

    # ------------------------------------------------------------ the W&B run

    @property
    def _tracked(self) -> Path:
        return self.path / "wandb-run.json"

    def track(self, run: str) -> None:
        """Store the id of the W&B run, so that a resumed run continues it."""
        write_json(self._tracked, {"id": run})

    def tracked(self) -> str | None:
        """Return the id that `track` stored."""
        return str(json.loads(self._tracked.read_text(encoding="utf-8"))["id"]) if self._tracked.is_file() else None

    # ------------------------------------------------------------ the record of a finished training

    @property
    def _record(self) -> Path:
        return self.path / "finished.json"

    def finished(self) -> dict[str, Any] | None:
        """Return what `finish` recorded; None if training has not finished."""
        if not self._record.is_file():
            return None
        outcome: dict[str, Any] = json.loads(self._record.read_text(encoding="utf-8"))
        outcome["best"] = str(self.path.absolute() / outcome["best"]) if outcome["best"] else ""
        return outcome

    def finish(self, epochs: int, updates: int, best: str, tested: bool, flops: float | None = None) -> None:
        """Record that training has finished (its budget is spent, or it was stopped early).

        Args:
            epochs, updates: how many were made.
            best: path of the best checkpoint; empty if there is none. Stored relative to this folder, which may be moved.
            tested: whether it has been tested.
            flops: FLOPs of the training, if they were counted.
        """
        here, there = self.path.absolute(), Path(best).absolute()
        best = str(there.relative_to(here)) if best and there.is_relative_to(here) else best
        record = {"epochs": epochs, "updates": updates, "best": best, "tested": tested, "flops": flops}
        write_json(self._record, record)

    def reopen(self) -> None:
        """Delete the record: training continues."""
        self._record.unlink(missing_ok=True)
