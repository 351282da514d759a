"""Shipped configs: they parse, show their command, and are found from any folder."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lares_pl import LaresError
from lares_pl.cli.main import main
from lares_pl.cli.shipped_configs import TRAINER, shipped_configs, shipped_files, with_shipped_configs

CONFIGS = list(shipped_configs().values())


def resolved(tmp_path: Path, *arguments: str, command: str = "fit") -> dict[str, Any]:
    """The whole configuration of a command, as `--print_config` shows it."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.chdir(tmp_path)
        patch.setattr(sys, "argv", ["lares", command, *arguments, "--print_config"])
        with pytest.raises(SystemExit) as stopped:
            main()
    assert stopped.value.code == 0
    config: dict[str, Any] = yaml.safe_load(out.getvalue())
    return config


def test_names_are_unique_over_all_folders() -> None:
    folders = [shipped_configs()[TRAINER].parent, shipped_files()["slurm.sh"].parent]
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sorted(path.name for path in paths) == sorted(shipped_files())


def test_the_main_configs_are_shipped() -> None:
    assert {"spt.yaml", "rpt.yaml", "sasrec.yaml"} <= {path.name for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_configs_show_their_command(path: Path) -> None:
    assert f"--config {path.name}" in path.read_text() or path.name == TRAINER  # which is applied without being named
    assert yaml.safe_load(path.read_text())


def test_a_local_file_takes_precedence_over_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rpt.yaml").write_text("run: mine\n")
    resolved = with_shipped_configs(
        ["fit", "--config", "spt.yaml", "--config=rpt.yaml", "-c", "sasrec.yaml", "--run", "spt.yaml"]
    )
    shipped = {name: str(path) for name, path in shipped_configs().items()}
    assert resolved == [
        "fit",
        "--config",
        shipped["spt.yaml"],
        "--config=rpt.yaml",
        "-c",
        shipped["sasrec.yaml"],
        "--run",
        "spt.yaml",
    ]


def test_a_missing_config_is_an_error() -> None:
    with pytest.raises(LaresError, match=r"nope.yaml: no such file, and .*there are .*spt.yaml"):
        with_shipped_configs(["fit", "--config", "nope.yaml"])


# ---------------------------------------------------------------- what overlays keep


def test_a_cluster_config_keeps_the_budget_and_all_checkpoints(tmp_path: Path) -> None:
    """`cluster.yaml` after `spt-continued.yaml`: the budget is measured less often, but still applies."""
    callbacks = resolved(tmp_path, "--config", "spt-continued.yaml", "--config", "cluster.yaml")["callbacks"]
    assert callbacks["flop_budget"]["init_args"] == {"every": 50, "match": "rpt"}
    best, last = (callbacks[f"{name}_checkpoint"]["init_args"] for name in ("best", "last"))
    assert (best["monitor"], best["mode"], best["save_on_train_epoch_end"]) == ("val/ndcg@10", "max", False)
    assert (last["filename"], last["save_on_exception"], last["save_on_train_epoch_end"]) == ("last", True, False)
    assert callbacks["periodic_checkpoint"]["init_args"]["every_n_train_steps"] == 500
    assert callbacks["early_stopping"]["init_args"]["patience"] == 10


def test_custom_callbacks_replace_no_others(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("trainer: {callbacks: [{class_path: lightning.pytorch.callbacks.LearningRateMonitor}]}")
    config = resolved(tmp_path, "--config", "rpt.yaml", "--config", "mine.yaml", "--callbacks.early_stopping.patience", "3")
    assert len(config["trainer"]["callbacks"]) == 1
    assert config["callbacks"]["flop_budget"]["init_args"]["every"] == 10
    assert config["callbacks"]["early_stopping"]["init_args"]["patience"] == 3
    assert config["callbacks"]["best_checkpoint"]["init_args"]["monitor"] == "val/ndcg@10"


def test_null_removes_a_callback(tmp_path: Path) -> None:
    config = resolved(tmp_path, "--config", "spt.yaml", "--callbacks.early_stopping", "null")
    assert config["callbacks"]["early_stopping"] is None
    assert config["callbacks"]["last_checkpoint"] is not None


def test_the_trainer_block_is_the_same_under_every_stage(tmp_path: Path) -> None:
    of_stage = {name: resolved(tmp_path, "--config", name)["trainer"] for name in ("spt.yaml", "rpt.yaml", "sasrec.yaml")}
    shipped = yaml.safe_load(shipped_configs()[TRAINER].read_text())["trainer"]
    assert of_stage["spt.yaml"]["max_epochs"] == shipped["max_epochs"]
    assert of_stage["rpt.yaml"].pop("max_epochs") < shipped["max_epochs"]  # its budget is its own
    for name in ("spt.yaml", "sasrec.yaml"):
        del of_stage[name]["max_epochs"]
    for trainer in of_stage.values():
        assert [logger["class_path"] for logger in trainer["logger"]] == ["lares_pl.Wandb"]
        assert trainer == of_stage["spt.yaml"]
