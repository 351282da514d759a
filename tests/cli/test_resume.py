"""`--ckpt_path last` on the command line: what it applies, what it refuses, and where a run is written."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml

from tests.cli.test_faults import fit as many_epochs
from tests.cli.test_faults import updates, wait_for_a_save
from tests.console import QUICK, SMALL, Running, error, lares

START = ["fit", "--config", "spt.yaml", "--trainer.logger", "false", "--test_after_fit", "false", *QUICK, *SMALL]
AGAIN = [*START, "--ckpt_path", "last", "--trainer.max_epochs", "2"]


@pytest.fixture(scope="module")
def work(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    (folder / "prepared").symlink_to(toy_dataset)
    (folder / "patient.yaml").write_text(yaml.safe_dump({"callbacks": {"early_stopping": None, "depth_sweep": None}}))
    lares(folder, *START)
    return folder


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model.optimizer", "torch.optim.SGD"], "model.optimizer: the run was trained with torch.optim.adam.Adam"),
        (["--model.scheduler", "null"], "model.scheduler: the run was trained with"),
        (["--model.ema", "0"], "model.ema: the run was trained with 0.999"),
        (["--model.backbone.hidden_size", "32"], "--model.backbone.hidden_size can't change when a run is resumed"),
        (["--data.max_length", "9"], "--data.max_length can't change"),
        (["--data.dataset", "other"], "--data.dataset can't change"),
        (["--seed_everything", "9"], "--seed_everything can't change"),
    ],
)
def test_what_can_not_change_is_refused_and_changes_nothing(options: list[str], said: str, work: Path) -> None:
    folder = work / "runs" / "default" / "spt"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert said in error(work, *AGAIN, *options)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_new_learning_rate_is_applied_and_recorded(work: Path) -> None:
    done = lares(work, *AGAIN, "--model.optimizer.lr", "0.1", "--data.dataset", "runs/../prepared")
    assert "resuming with changed settings: optimizer.lr 0.005 -> 0.1" in done.stderr
    folder = work / "runs" / "default" / "spt"
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["hyper_parameters"]["optimizer"]["init_args"]["lr"] == 0.1
    assert last["optimizer_states"][0]["param_groups"][0]["initial_lr"] == 0.1
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.1


def test_a_run_whose_folder_was_renamed_keeps_its_best_checkpoint_and_where_it_began(work: Path) -> None:
    lares(work, *START, "--run", "former")
    rpt = ["fit", "--config", "rpt.yaml", *QUICK, "--data.batch_size", "64", "--trainer.logger", "false"]
    lares(work, *rpt, "--run", "former", "--test_after_fit", "false")
    (work / "runs" / "former").rename(work / "runs" / "renamed")
    checkpoints = work / "runs" / "renamed" / "rpt" / "checkpoints"
    before = (checkpoints / "best.ckpt").read_bytes()
    states = torch.load(checkpoints / "last.ckpt", weights_only=True)["callbacks"]
    (key,) = [key for key, state in states.items() if "best_model_score" in state and "ndcg" in key]

    ruins = ["--model.optimizer.lr", "0.5", "--trainer.max_epochs", "2"]  # no validation after it is better
    done = lares(work, *rpt, "--run", "renamed", "--ckpt_path", "last", *ruins)
    assert (checkpoints / "best.ckpt").read_bytes() == before
    now = torch.load(checkpoints / "last.ckpt", weights_only=True)["callbacks"][key]
    assert now["best_model_score"] == states[key]["best_model_score"]
    assert [now["dirpath"], now["best_model_path"]] == [str(checkpoints), str(checkpoints / "best.ckpt")]
    assert "dirpath has changed" not in done.said
    report = json.loads((checkpoints.parent / "test.json").read_text())
    assert report["before"]["checkpoint"] == str(work / "runs" / "renamed" / "spt" / "checkpoints" / "best.ckpt")

    (work / "runs" / "renamed").rename(work / "runs" / "again")  # with nothing left but the test
    finished = work / "runs" / "again" / "rpt" / "finished.json"
    finished.write_text(finished.read_text().replace("true", "false"))
    shutil.rmtree(work / "runs" / "again" / "spt")
    done = lares(work, *rpt, "--run", "again", "--ckpt_path", "auto", *ruins)
    assert "the checkpoint that RPT started from is no longer at" in done.said
    assert json.loads(finished.read_text())["best"] == "checkpoints/best.ckpt"
    assert json.loads((finished.parent / "test.json").read_text())["checkpoint"] == str(
        finished.parent / "checkpoints" / "best.ckpt"
    )


def test_a_run_resumed_into_the_folder_of_another_moves_that_aside(work: Path) -> None:
    lares(work, *START, "--run", "other")
    best = work / "runs" / "other" / "spt" / "checkpoints" / "best.ckpt"
    before = best.read_bytes()
    source = str(work / "runs" / "default" / "spt" / "checkpoints" / "last.ckpt")
    done = lares(work, *START, "--run", "other", "--ckpt_path", source, "--trainer.max_epochs", "9")
    assert "already contained a run, which was moved to runs/other/spt.1" in done.said
    assert (work / "runs" / "other" / "spt.1" / "checkpoints" / "best.ckpt").read_bytes() == before
    assert best.read_bytes() != before


@pytest.mark.parametrize(("option", "name"), [("--run", "../../x"), ("--run", ""), ("--run", "."), ("--stage", "../x")])
def test_a_run_never_leaves_its_folder(option: str, name: str, work: Path) -> None:
    before = sorted(work.parent.rglob("*"))
    assert f"{option} {name!r}: must be the name of one folder" in error(work, *START, option, name)
    assert sorted(work.parent.rglob("*")) == before


@pytest.mark.slow
def test_ctrl_c_saves_a_checkpoint_and_is_no_success(work: Path) -> None:
    last = work / "runs" / "ctrl-c" / "spt" / "checkpoints" / "last.ckpt"
    running = Running(work, *many_epochs("--run", "ctrl-c"))
    wait_for_a_save(last, running)
    os.kill(running.pids[0], signal.SIGINT)
    assert "interrupted; a checkpoint was saved: resume with the same command" in running.end(130).stderr
    reached = updates(last)
    lares(work, *many_epochs("--run", "ctrl-c", "--ckpt_path", "last", "--trainer.max_steps", str(reached + 2)))
    assert updates(last) == reached + 2
