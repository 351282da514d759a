"""Two real processes (gloo) with an odd number of users: both stages train, and evaluation counts every user once."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from lares_pl import SequenceDataset, prepare
from lares_pl.stages.checkpoint import read_checkpoint
from tests.console import OFFLINE, SMALL, lares

pytestmark = pytest.mark.slow

TWO = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
BUDGET = ["--trainer.limit_train_batches", "3", "--trainer.max_epochs", "1"]


@pytest.fixture(scope="module")
def work(interactions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SPT and RPT on two processes."""
    folder = tmp_path_factory.mktemp("two")
    prepare(str(interactions), str(folder / "prepared"))
    assert SequenceDataset.load(folder / "prepared").users % 2 == 1
    lares(folder, "fit", "--config", "spt.yaml", *TWO, *BUDGET, *SMALL, environment=OFFLINE)
    pruning = ["--model.pruning.passes", "2", "--model.pruning.top", "200", "--data.batch_size", "16"]
    done = lares(folder, "fit", "--config", "rpt.yaml", *TWO, *BUDGET, *pruning, environment=OFFLINE)
    (folder / "rpt.out").write_text(done.said)
    return folder


def metrics(folder: Path, checkpoint: Path, *devices: str) -> dict[str, float]:
    lares(folder, "test", "--ckpt_path", str(checkpoint), *devices, "--output", "test.json")
    read: dict[str, float] = json.loads((folder / "test.json").read_text())["metrics"]
    return read


def test_metrics_of_two_processes_equal_those_of_one(work: Path, tmp_path: Path) -> None:
    best = work / "runs" / "default" / "rpt" / "checkpoints" / "best.ckpt"
    one = metrics(tmp_path, best, "--trainer.accelerator", "cpu", "--trainer.devices", "1")
    in_training = json.loads((work / "runs" / "default" / "rpt" / "test.json").read_text())
    assert in_training["metrics"] == pytest.approx(one, rel=1e-6)
    # the same rankings, so each user was counted once: metrics are whole counts over 189 users
    for name in ("test/recall@5", "test/recall@50"):
        assert one[name] * 189 == pytest.approx(round(one[name] * 189), abs=1e-2)


def test_metrics_of_lists_and_steps_on_two_processes_equal_those_of_one(work: Path, tmp_path: Path) -> None:
    best = work / "runs" / "default" / "spt" / "checkpoints" / "best.ckpt"
    chosen = ["--model.metrics", '[{"class_path": "lares_pl.Coverage"}, {"class_path": "lares_pl.Novelty"}]']
    chosen += ["--depth", "6", "--stop", "lares_pl.ResidualStop", "--stop.threshold", "0.03", "--data.eval_batch_size", "50"]
    one = metrics(tmp_path, best, *chosen, "--trainer.accelerator", "cpu", "--trainer.devices", "1")
    assert set(one) == {"test/coverage@10", "test/novelty@10", "test/steps"}
    assert one["test/steps"] % 1  # not the same for all
    assert metrics(tmp_path, best, *chosen, *TWO) == pytest.approx(one, rel=1e-6)


def test_one_process_logs_to_wandb_and_all_take_part_in_the_depth_sweep(work: Path) -> None:
    for stage in ("spt", "rpt"):
        folder = work / "runs" / "default" / stage
        assert len(list(folder.glob("wandb/offline-run-*/*.wandb"))) == 1
        tested = json.loads((folder / "test.json").read_text())
        with (folder / "depth-sweep.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["split"] == "test" and int(row["depth"]) == tested["depth"]]
        assert [float(row["ndcg@10"]) for row in rows] == pytest.approx([tested["metrics"]["test/ndcg@10"]], rel=1e-6)


def test_pruning_on_two_processes_equals_pruning_on_one(work: Path, tmp_path: Path) -> None:
    said = [line for line in (work / "rpt.out").read_text().splitlines() if line.startswith("pruning kept")]
    assert len(said) == 1
    spt = str(work / "runs" / "default" / "spt" / "checkpoints" / "best.ckpt")
    pruning = ["--model.pruning.passes", "2", "--model.pruning.top", "200", "--data.batch_size", "16"]
    one = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--test_after_fit", "false"]
    done = lares(tmp_path, "fit", "--config", "rpt.yaml", "--model.init_from", spt, *one, *BUDGET, *pruning)
    assert said[0] in done.said


def test_predictions_of_two_processes_equal_those_of_one(work: Path, tmp_path: Path) -> None:
    best = str(work / "runs" / "default" / "spt" / "checkpoints" / "best.ckpt")
    tables = []
    for name, devices in (("two", TWO), ("one", ["--trainer.accelerator", "cpu", "--trainer.devices", "1"])):
        lares(
            tmp_path, "predict", "--ckpt_path", best, *devices, "--output", f"{name}.parquet", "--data.eval_batch_size", "100"
        )
        tables.append(pq.read_table(tmp_path / f"{name}.parquet").to_pydict())
    assert tables[0]["user_id"] == tables[1]["user_id"]
    assert tables[0]["item_ids"] == tables[1]["item_ids"]


RECIPE = ["--model.ema", "0.5", "--model.backbone.repeat_bias", "true"]
RECIPE += ["--model.alignment.cosine", "true", "--model.alignment.tau", "0.1", "--model.alignment.mask_same_target", "true"]


@pytest.mark.parametrize(
    ("instances", "choices"),
    [
        ("prefix", ["--model.supervision", "lares_pl.LastStep"]),
        ("sequence", ["--model.supervision", "lares_pl.LastAndRandomStep"]),
        ("sequence", [*RECIPE, "--model.supervision", "lares_pl.EveryStep"]),
    ],
    ids=["prefix", "sequence", "recipe"],
)
def test_training_on_two_processes_equals_training_on_one(
    work: Path, tmp_path: Path, instances: str, choices: list[str]
) -> None:
    """The same global batches, depths and partners (and no noise): the same weights after three updates."""
    same = ["--model.backbone.initial_state", "lares_pl.ZeroState", "--model.backbone.dropout", "0"]
    same += ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.3", "--model.alpha", "0.5"]
    same += ["--data.instances", instances, "--data.dataset", str(work / "prepared"), "--test_after_fit", "false"]
    same += ["--trainer.max_steps", "3", "--trainer.val_check_interval", "3", "--trainer.limit_val_batches", "2"]
    same += ["--trainer.check_val_every_n_epoch", "null", "--trainer.logger", "false"]
    one = ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    weights = {}
    for name, devices, batch in (("two", TWO, "16"), ("one", one, "32"), ("other", one, "16")):
        lares(
            tmp_path, "fit", "--config", "spt.yaml", "--config", "paper.yaml", "--run", name, *SMALL, *same, *choices, *devices,
            "--data.batch_size", batch,
        )  # fmt: skip
        weights[name] = read_checkpoint(tmp_path / "runs" / name / "spt" / "checkpoints" / "last.ckpt").backbone_weights()
    for key, value in weights["one"].items():
        torch.testing.assert_close(weights["two"][key], value, rtol=1e-4, atol=1e-6, msg=key)
    assert not torch.allclose(weights["other"]["embedding.item.weight"], weights["one"]["embedding.item.weight"], atol=1e-5)
