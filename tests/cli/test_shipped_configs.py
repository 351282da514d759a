"""Shipped configs are the manual: they parse, run a batch, and can be found from anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lares_pl import LaresError
from lares_pl.cli.shipped_configs import shipped_configs, with_shipped_configs

CONFIGS = sorted(path for path in shipped_configs().glob("*.yaml") if path.name != "sweep.yaml")  # which is for W&B


def test_there_are_the_configs_people_type() -> None:
    assert {"spt.yaml", "rpt.yaml", "sasrec.yaml"} <= {path.name for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_configs_say_how_they_are_used(path: Path) -> None:
    assert f"--config {path.name}" in path.read_text()
    assert yaml.safe_load(path.read_text())


def test_a_local_file_wins_over_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rpt.yaml").write_text("run: mine\n")
    resolved = with_shipped_configs(
        ["fit", "--config", "spt.yaml", "--config=rpt.yaml", "-c", "sasrec.yaml", "--run", "spt.yaml"]
    )
    shipped = str(shipped_configs())
    assert resolved == [
        "fit",
        "--config",
        f"{shipped}/spt.yaml",
        "--config=rpt.yaml",
        "-c",
        f"{shipped}/sasrec.yaml",
        "--run",
        "spt.yaml",
    ]


def test_a_config_that_is_nowhere_is_an_error() -> None:
    with pytest.raises(LaresError, match=r"nope.yaml: no such file here.*there are .*spt.yaml"):
        with_shipped_configs(["fit", "--config", "nope.yaml"])
