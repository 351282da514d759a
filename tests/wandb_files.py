"""An offline W&B run read back: the records of its `.wandb` file."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as protocol


def records(folder: Path) -> list[Any]:
    """The records of the one offline run below a stage's folder, in order, once its end is written.

    The process of W&B writes the file, and may do so a moment after the run has ended.
    """
    found: list[Any] = []
    deadline = time.monotonic() + 20
    while not ended(found) and time.monotonic() < deadline:
        time.sleep(0.1)
        if written := list((folder / "wandb").glob("offline-run-*/*.wandb")):
            (path,) = written
            found = records_of(path)
    return found


def ended(found: list[Any]) -> bool:
    """Whether records end as those of a run that has ended."""
    return bool(found) and found[-1].WhichOneof("record_type") == "exit"


def records_of(path: Path) -> list[Any]:
    found = []
    for raw in _pieces(path):
        record = protocol.Record()  # type: ignore[attr-defined]
        record.ParseFromString(raw)
        found.append(record)
    return found


def _pieces(path: Path) -> Iterator[bytes]:
    """LevelDB's log format: blocks of 32 KiB with pieces of checksum, length, kind and content, after a header of 7 bytes."""
    raw, position, whole = path.read_bytes(), 7, b""
    while position + 7 <= len(raw):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        length, kind = struct.unpack_from("<HB", raw, position + 4)
        whole += raw[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # complete, or its last piece
            yield whole
            whole = b""


def items(updates: Any) -> list[tuple[str, Any]]:
    """Keys (`a/b` for nested ones) and values of a list of items."""
    return [(item.key or "/".join(item.nested_key), json.loads(item.value_json)) for item in updates]


def config(found: list[Any]) -> list[tuple[str, Any]]:
    """Every key of the configuration each time it was logged."""
    return [pair for record in found for pair in items([*record.config.update, *record.run.config.update])]


def history(found: list[Any]) -> list[dict[str, Any]]:
    """Rows of the history."""
    return [dict(items(record.history.item)) for record in found if record.WhichOneof("record_type") == "history"]


def summary(found: list[Any]) -> dict[str, Any]:
    """What was put into the summary by hand."""
    return dict(pair for record in found for pair in items(record.summary.update))


def artifacts(found: list[Any]) -> list[Any]:
    """Artifacts logged, or used where `use_after_commit`."""
    return [record.artifact for record in found if record.WhichOneof("record_type") == "artifact"]
