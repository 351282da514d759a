"""Files and folders written atomically, and temporary folders that clean up after themselves."""

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

REMEDY = "Free some space there, or choose another path"


@contextmanager
def atomic_write(path: Path, remedy: str = REMEDY) -> Iterator[Path]:
    """Write a file atomically: yield a temporary path, which replaces `path` if the block succeeds and is deleted if it fails.

    Args:
        path: the file.
        remedy: what to do if it cannot be written, for the error message.

    Raises:
        LaresError: if it cannot be written (no space, no permission); an existing file is left unchanged.
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
        raise LaresError(f"{path}: could not be written ({error}); an existing file was left unchanged. {remedy}") from error


@contextmanager
def temporary_folder(place: Path, name: str) -> Iterator[Path]:
    """Yield a hidden folder `.NAME.tmp.XXXXXXXX` in `place`; it is deleted after the block unless the block renamed it.

    A process that is killed cannot delete its folder; the next one with the same name does. Each process locks its own folder,
    and the kernel releases the lock when the process ends, so that the folder of a running process is never deleted.
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
    """Create a folder with a unique name, and lock it."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
        with suppress(BlockingIOError, FileNotFoundError):  # another process deleted it before it was locked: try again
            lock = _locked(folder)
            if folder.exists():
                return folder, lock


def _locked(folder: Path) -> int | None:
    """Lock a folder and return the descriptor that holds the lock; None if the file system has no locks.

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
    """Write a folder atomically: yield a temporary folder, which replaces `target` if the block succeeds.

    Args:
        target: the folder.
        check: raises if `target` may not be written; called again just before it is replaced.

    Raises:
        LaresError: if it cannot be written; an existing folder is left unchanged.
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
            f"{target}: could not be written ({error}); an existing folder was left unchanged. Free some space there, or "
            "choose another --output"
        ) from error


def check_folder(target: Path, what: str, mark: str, ours: Sequence[str], overwrite: bool) -> None:
    """Check that a folder may be written: only our own output is replaced, and only on request.

    Args:
        target: the folder.
        what: what is written there, such as `report`.
        mark: name of the file that identifies such a folder.
        ours: patterns of the file names in it.
        overwrite: whether an existing one may be replaced.

    Raises:
        LaresError: if it may not be written.
    """
    one = f"{'an' if what[0] in 'aeiou' else 'a'} {what}"
    if target.exists() and not (target / mark).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise LaresError(f"{target} exists and contains no {what}; choose another --output")
    if (target / mark).is_file() and not overwrite:
        raise LaresError(f"{target} already contains {one}; --overwrite true replaces it, or choose another --output")
    names = sorted(path.name for path in target.iterdir()) if target.is_dir() else []
    if foreign := [name for name in names if not any(fnmatch(name, pattern) for pattern in ours)]:
        raise LaresError(f"{target} contains more than {one} ({', '.join(foreign[:3])}); choose another --output")


def exchange(folder: Path, other: Path) -> None:
    """Swap two folders of one file system atomically, with Linux's `renameat2`.

    On other systems a third name is used, and for a moment `other` does not exist.
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
    """Check that a file may be written.

    Raises:
        LaresError: if `path` is a folder, or exists and may not be replaced.
    """
    if path.is_dir():
        raise LaresError(f"{path} is a folder; give a file with --output")
    if path.exists() and not overwrite:
        raise LaresError(f"{path} exists; --overwrite true replaces it, or choose another --output")


def write_text(path: Path, text: str) -> None:
    """Write a text file."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def move_aside(folder: Path) -> Path | None:
    """Rename an existing, non-empty folder to `NAME.1`, `NAME.2`, …

    Returns:
        Its new path; None if there was nothing to move.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return None
    number = 1
    while (former := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    folder.rename(former)
    return former
