"""Files that appear whole or not at all."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lares_pl.errors import LaresError


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; it takes the place of `path` if the block ends well, else vanishes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def exchange(folder: Path, other: Path) -> None:
    """Swap two folders of one file system: at each moment both names are there, whole.

    Where the system can't (it is Linux's `renameat2`), a third name is used for a moment.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if hasattr(libc, "renameat2") and libc.renameat2(here, os.fsencode(folder), here, os.fsencode(other), swap) == 0:
        return
    aside = folder.with_name(folder.name + ".former")
    other.rename(aside)
    try:
        folder.rename(other)
    except OSError:
        aside.rename(other)
        raise
    aside.rename(folder)


def check_free(path: Path, overwrite: bool) -> None:
    """Raise where a file would be replaced that nobody said may be.

    Raises:
        LaresError: if `path` is a folder, or is there and may not be replaced.
    """
    if path.is_dir():
        raise LaresError(f"{path} is a folder; name a file with --output")
    if path.exists() and not overwrite:
        raise LaresError(f"{path} exists; --overwrite true replaces it, or name another --output")


def write_text(path: Path, text: str) -> None:
    """Write a text file."""
    with appearing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def move_aside(folder: Path) -> Path | None:
    """Rename a folder that is there and not empty to `NAME.1`, `NAME.2`, …

    Returns:
        Its new name; None where there was nothing to move.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return None
    number = 1
    while (former := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    folder.rename(former)
    return former
