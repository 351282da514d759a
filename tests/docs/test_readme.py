"""What the README shows is what works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lares_pl.cli.shipped_configs import shipped_files
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_python_examples_run(code: str, toy_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prepared").symlink_to(toy_dataset)
    exec(compile(code, "README.md", "exec"), {})


def test_every_config_named_is_shipped_and_every_shipped_config_is_named() -> None:
    shipped = {name for name in shipped_files() if name.endswith(".yaml")}
    assert set(re.findall(r"`([a-z-]+\.yaml)`", README)) - {"config.yaml"} == shipped
