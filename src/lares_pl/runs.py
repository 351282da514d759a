"""The folder of a stage of a run: what lies where in it, who is at work there, whether that work is done."""

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
    """The best checkpoints of all runs at hand."""
    return sorted(RUNS.glob(f"*/*/{BEST}"))


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

    def hold(self) -> TextIO:
        """Claim the folder for this process, until it ends or the file returned is closed.

        The claim is a lock of the operating system on a file beside the folder (which may be moved): it ends with the process,
        however that ends. It holds between the machines of a cluster as far as the shared file system locks: NFS does, unless
        mounted with `nolock` or `local_lock`; Lustre where mounted with `flock`. Where it can't lock, a warning says so.

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
                f"{self.path} is being trained already, by {holder}: two runs in one folder would mix their checkpoints. "
                "Wait for it, stop it, or choose another --run or --stage"
            ) from error
        except OSError as error:
            warnings.warn(f"{place}: no lock on this file system ({error}); take care not to start a run twice", stacklevel=2)
            return lock
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        lock.flush()
        return lock

    def move_aside(self) -> Path | None:
        """Make room for a new run; returns where the former one is now, if there was one."""
        return move_aside(self.path)

    # ------------------------------------------------------------ which run of W&B it is

    @property
    def _tracked(self) -> Path:
        return self.path / "wandb-run.json"

    def track(self, run: str) -> None:
        """Remember the id of the run in W&B, for those who resume."""
        write_json(self._tracked, {"id": run})

    def tracked(self) -> str | None:
        """What `track` remembered."""
        return str(json.loads(self._tracked.read_text(encoding="utf-8"))["id"]) if self._tracked.is_file() else None

    # ------------------------------------------------------------ whether the work is done

    @property
    def _record(self) -> Path:
        return self.path / "finished.json"

    def finished(self) -> dict[str, Any] | None:
        """What `finish` recorded; None while training is not over."""
        if not self._record.is_file():
            return None
        outcome: dict[str, Any] = json.loads(self._record.read_text(encoding="utf-8"))
        return outcome

    def finish(self, epochs: int, updates: int, best: str, tested: bool, flops: float | None = None) -> None:
        """Record that training came to its end (its budget, or early stopping).

        Args:
            epochs, updates: how many were made.
            best: path of the best checkpoint, empty where there is none.
            tested: whether it was tested too.
            flops: floating-point operations it cost, where they were counted.
        """
        record = {"epochs": epochs, "updates": updates, "best": best, "tested": tested, "flops": flops}
        write_json(self._record, record)

    def reopen(self) -> None:
        """Training goes on."""
        self._record.unlink(missing_ok=True)
