"""Files that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from lares_pl.files import appearing, write_json, write_text


def test_a_crash_leaves_the_former_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.txt"
    write_text(path, "former")
    with pytest.raises(OSError, match="disk full"), appearing(path) as temporary:  # noqa: PT012
        temporary.write_text("half of the")
        raise OSError("disk full")
    assert path.read_text() == "former"
    assert [file.name for file in path.parent.iterdir()] == ["x.txt"]
    write_json(path, {"a": 1})
    assert path.read_text() == '{\n "a": 1\n}\n'
