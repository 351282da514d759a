"""Files that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from lares_pl import LaresError
from lares_pl.files import appearing, move_aside, write_json, write_text


def test_a_crash_leaves_the_former_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.txt"
    write_text(path, "former")
    with pytest.raises(LaresError, match=r"x\.txt: could not be written \(disk full\)"), appearing(path) as temporary:  # noqa: PT012
        temporary.write_text("half of the")
        raise OSError("disk full")
    assert path.read_text() == "former"
    assert [file.name for file in path.parent.iterdir()] == ["x.txt"]
    write_json(path, {"a": 1})
    assert path.read_text() == '{\n "a": 1\n}\n'


def test_moving_aside_never_takes_a_name_that_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert move_aside(folder) is None
    for number in (1, 2):
        folder.mkdir()
        assert move_aside(folder) is None  # empty
        (folder / "x").write_text(str(number))
        assert move_aside(folder) == tmp_path / f"run.{number}"
        assert (tmp_path / f"run.{number}" / "x").read_text() == str(number)
