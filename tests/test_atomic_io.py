"""Atomic writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lares_pl import LaresError
from lares_pl.atomic_io import atomic_write, move_aside, temporary_folder, write_json, write_text


def test_a_crash_leaves_the_previous_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.txt"
    write_text(path, "former")
    with pytest.raises(LaresError, match=r"x\.txt: could not be written \(disk full\)"), atomic_write(path) as temporary:  # noqa: PT012
        temporary.write_text("half of the")
        raise OSError("disk full")
    assert path.read_text() == "former"
    assert [file.name for file in path.parent.iterdir()] == ["x.txt"]
    write_json(path, {"a": 1})
    assert path.read_text() == '{\n "a": 1\n}\n'


def test_moving_aside_never_overwrites(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert move_aside(folder) is None
    for number in (1, 2):
        folder.mkdir()
        assert move_aside(folder) is None  # empty
        (folder / "x").write_text(str(number))
        assert move_aside(folder) == tmp_path / f"run.{number}"
        assert (tmp_path / f"run.{number}" / "x").read_text() == str(number)


def test_temporary_folders_are_removed_only_if_their_process_is_gone(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from lares_pl.atomic_io import temporary_folder\n"
    code += "with temporary_folder(Path(sys.argv[1]), 'x'): print('there', flush=True); time.sleep(600)"
    living, dead = (
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) for _ in range(2)
    )
    for process in (living, dead):
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
    assert len(list(tmp_path.iterdir())) == 2
    dead.kill()
    dead.wait()
    (tmp_path / ".x.tmp.precious.txt").write_text("not ours")
    (tmp_path / ".xy.tmp.abcdefgh").mkdir()
    with temporary_folder(tmp_path, "x") as mine:
        left = {path.name for path in tmp_path.iterdir()} - {".x.tmp.precious.txt", ".xy.tmp.abcdefgh", mine.name}
        assert len(left) == 1  # of the living
    living.kill()
    living.wait()
    with temporary_folder(tmp_path, "x"):
        assert not (tmp_path / left.pop()).exists()
    assert {path.name for path in tmp_path.iterdir()} == {".x.tmp.precious.txt", ".xy.tmp.abcdefgh"}
