"""Files that appear whole or not at all, and folders to make them in that nobody has to clear away by hand."""

from __future__ import annotations

import ctypes
import fcntl
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from lares_pl.errors import LaresError


@contextmanager
def atomic_write(path: Path, remedy: str = "Make room there, or name another place") -> Iterator[Path]:
    """A temporary name to write to; the file takes the place of `path` if the block ends well, else it vanishes.

    Args:
        path: the file.
        remedy: what to do where it can't be written.

    Raises:
        LaresError: if it can't be written (no space, no permission); what was there before still is.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(path.parent, path.name) as folder:
            temporary = folder / path.name
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except OSError as error:
        raise LaresError(f"{path}: could not be written ({error}); a former one there is as it was. {remedy}") from error


@contextmanager
def temporary_folder(place: Path, name: str) -> Iterator[Path]:
    """A hidden folder `.NAME.tmp.XXXXXXXX` in `place`, gone after the block unless it was renamed in it.

    A process that is killed can't clear its folder away; the next one with the same name does. Each holds a lock on its own
    (the kernel drops it with the process), so that the folder of a living process is never taken for one left behind.
    """
    for former in place.glob(f".{glob.escape(name)}.tmp.????????"):
        with suppress(BlockingIOError, FileNotFoundError):
            if (lock := _locked(former)) is not None:
                shutil.rmtree(former, ignore_errors=True)
                os.close(lock)
    folder, lock = _new_folder(place, f".{name}.tmp.")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _new_folder(place: Path, prefix: str) -> tuple[Path, int | None]:
    """A folder of a new name, and its lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
        with suppress(BlockingIOError, FileNotFoundError):  # a process that clears away was quicker: not this one
            lock = _locked(folder)
            if folder.exists():
                return folder, lock


def _locked(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock; None where the file system knows no locks.

    Raises:
        BlockingIOError: if another process holds it.
        FileNotFoundError: if the folder is gone.
    """
    try:
        lock = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return lock


@contextmanager
def atomic_folder(target: Path, check: Callable[[], None]) -> Iterator[Path]:
    """A folder to fill that takes the place of `target` if the block ends well, else it vanishes.

    Args:
        target: the folder.
        check: raises where `target` may not be written; asked again when all is ready.

    Raises:
        LaresError: if it can't be written; what was there before still is.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(target.parent, target.name) as folder:
            yield folder
            for path in folder.rglob("*"):
                if path.is_file():
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
            folder.chmod(0o755)
            check()
            if target.exists():
                exchange(folder, target)
            else:
                folder.rename(target)
    except OSError as error:
        raise LaresError(
            f"{target}: could not be written ({error}); what was there before is as it was. Make room there, or name "
            "another --output"
        ) from error


def check_folder(target: Path, what: str, mark: str, ours: Sequence[str], overwrite: bool) -> None:
    """Raise where a folder would be replaced that nobody said may be, or with it something that is not ours.

    Args:
        target: the folder.
        what: what we write there, such as `report`.
        mark: name of the file that tells it from other folders.
        ours: patterns of the names in it.
        overwrite: whether one that is there may be replaced.

    Raises:
        LaresError: if it may not be written.
    """
    one = f"{'an' if what[0] in 'aeiou' else 'a'} {what}"
    if target.exists() and not (target / mark).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise LaresError(f"{target} exists and holds no {what}; name another --output")
    if (target / mark).is_file() and not overwrite:
        raise LaresError(f"{target} holds {one} already; --overwrite true replaces it, or name another --output")
    names = sorted(path.name for path in target.iterdir()) if target.is_dir() else []
    if foreign := [name for name in names if not any(fnmatch(name, pattern) for pattern in ours)]:
        raise LaresError(f"{target} holds more than {one} ({', '.join(foreign[:3])}); name another --output")


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
    with atomic_write(path) as temporary:
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
