"""The main workflow through the console command, on a generated log."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from lares_pl import SequenceDataset, load_stage, prepare
from tests.console import OFFLINE, QUICK, SMALL, error, lares

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def work(interactions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after prepare, SPT and RPT with short budgets."""
    folder = tmp_path_factory.mktemp("work")
    lares(folder, "prepare", str(interactions), "--k_core", "5")
    lares(folder, "fit", "--config", "spt.yaml", "--run", "ml", *QUICK, *SMALL, environment=OFFLINE)
    short = [*QUICK, "--model.pruning.passes", "1", "--data.batch_size", "32"]
    done = lares(folder, "fit", "--config", "rpt.yaml", "--run", "ml", *short, environment=OFFLINE)
    (folder / "rpt.out").write_text(done.said)
    return folder


def test_both_stages_write_their_files(work: Path) -> None:
    for stage in ("spt", "rpt"):
        folder = work / "runs" / "ml" / stage
        assert (folder / "checkpoints" / "best.ckpt").is_file()
        with (folder / "metrics" / "version_0" / "metrics.csv").open() as file:
            logged = {name for row in csv.DictReader(file) for name, value in row.items() if value}
        assert {"val/ndcg@10", "train/loss", "train/depth", "train/residual", "train/lr"} <= logged
        # no account: an offline run is kept
        assert list((folder / "wandb").glob("offline-run-*/*.wandb"))
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert config["run"] == "ml"


def test_rpt_starts_from_the_spt_run_of_the_same_name(work: Path) -> None:
    spt, rpt = (load_stage(work / "runs" / "ml" / stage / "checkpoints" / "best.ckpt") for stage in ("spt", "rpt"))
    assert rpt.backbone_config.hidden_size == spt.backbone_config.hidden_size == 16
    config = yaml.safe_load((work / "runs" / "ml" / "rpt" / "config.yaml").read_text())
    assert config["model"]["init_args"]["init_from"] == str(work / "runs" / "ml" / "spt" / "checkpoints" / "best.ckpt")
    assert config["data"]["dataset"] == str(work / "prepared")
    for name, value in spt.backbone.state_dict().items():
        assert value.equal(rpt.state_dict()[f"reference.{name}"])


def test_rpt_reports_what_it_kept_and_what_changed(work: Path) -> None:
    said = (work / "rpt.out").read_text()
    assert "pruning kept" in said
    assert "test metrics at depth 4 before and after RPT" in said
    report = json.loads((work / "runs" / "ml" / "rpt" / "test.json").read_text())
    spt = json.loads((work / "runs" / "ml" / "spt" / "test.json").read_text())
    assert report["before"]["metrics"] == pytest.approx(spt["metrics"], rel=1e-6)
    assert ("nothing was gained" in said) == (report["metrics"] == report["before"]["metrics"])
    assert ("no validation after an update was better" in said) == report["initial_weights_kept"]
    assert report["initial_weights_kept"] == ("nothing was gained" in said)


def test_evaluation_needs_only_a_checkpoint(work: Path, tmp_path: Path) -> None:
    best = str(work / "runs" / "ml" / "rpt" / "checkpoints" / "best.ckpt")
    lares(tmp_path, "test", "--ckpt_path", best, "--output", "test.json")
    report = json.loads((tmp_path / "test.json").read_text())
    trained = json.loads((work / "runs" / "ml" / "rpt" / "test.json").read_text())
    assert report["metrics"] == pytest.approx(trained["metrics"], rel=1e-6)
    # a config may come along; it must not get in the way
    with_config = ["--config", "rpt.yaml", "--trainer.logger", "false", "--data.batch_size", "7"]
    lares(tmp_path, "validate", *with_config, "--ckpt_path", best, "--depth", "1", "--output", "val.json")
    assert "val/ndcg@10" in json.loads((tmp_path / "val.json").read_text())["metrics"]


def test_a_stopping_rule_ends_before_the_depth_and_steps_are_averaged(work: Path, tmp_path: Path) -> None:
    """A threshold above every change stops all histories at the second step, a threshold of 0 none."""
    best = str(work / "runs" / "ml" / "spt" / "checkpoints" / "best.ckpt")
    read = {}
    stop = ["--depth", "5", "--stop", "lares_pl.ResidualStop", "--stop.threshold"]
    options = {"two": ["--depth", "2"], "five": ["--depth", "5"], "at once": [*stop, "1e9"], "never": [*stop, "0"]}
    for name, chosen in options.items():
        done = lares(tmp_path, "test", "--ckpt_path", best, *chosen, "--output", "test.json")
        assert "test metrics at depth" in done.stdout
        read[name] = json.loads((tmp_path / "test.json").read_text())["metrics"]
    assert (read["at once"].pop("test/steps"), read["never"].pop("test/steps")) == (2, 5)
    for stopped, fixed in (("at once", "two"), ("never", "five")):
        # the end of a trajectory is computed for its last positions alone and rounds otherwise: a far rank may move by one
        for name in ("test/mrr", "test/unseen/mrr"):
            assert read[stopped].pop(name) == pytest.approx(read[fixed].pop(name), rel=1e-4)
        assert read[stopped] == pytest.approx(read[fixed], rel=1e-6)
    assert read["two"] != read["five"]
    done = lares(tmp_path, "test", "--ckpt_path", best, "--depth", "5", "--average_steps", "true", "--output", "test.json")
    assert "test metrics at depth 5 (mean score of all steps)" in done.stdout
    averaged = json.loads((tmp_path / "test.json").read_text())
    reasoning = {"depth": 5, "stop": None, "trajectories": 1, "average_steps": True}
    assert {name: averaged[name] for name in reasoning} == reasoning
    assert averaged["metrics"] not in (read["two"], read["five"])
    lists = []
    for name in ("two", "at once"):
        lares(tmp_path, "predict", "--ckpt_path", best, *options[name], "--output", f"{name}.parquet")
        lists.append(pq.read_table(tmp_path / f"{name}.parquet").to_pydict()["item_ids"])
    assert lists[0] == lists[1]


def test_training_that_ends_before_its_first_validation_is_saved_and_tested(work: Path, tmp_path: Path) -> None:
    short = [*QUICK, *SMALL, "--trainer.logger", "false", "--data.dataset", str(work / "prepared")]
    short += ["--trainer.val_check_interval", "50", "--trainer.check_val_every_n_epoch", "null", "--trainer.max_steps", "2"]
    done = lares(tmp_path, "fit", "--config", "spt.yaml", *short)
    assert "the final weights were saved as best.ckpt" in done.said
    stage = tmp_path / "runs" / "default" / "spt"
    finished = json.loads((stage / "finished.json").read_text())
    assert (finished["best"], finished["tested"], finished["updates"]) == ("checkpoints/best.ckpt", True, 2)
    assert json.loads((stage / "test.json").read_text())["checkpoint"] == str(stage / finished["best"])
    again = lares(tmp_path, "fit", "--config", "spt.yaml", *short, "--ckpt_path", "auto")
    assert not (tmp_path / "runs" / "default" / "spt.1").exists(), again.said
    lares(tmp_path, "fit", "--config", "spt.yaml", *short, "--ckpt_path", "last", "--trainer.max_steps", "4")


def test_an_offline_run_of_wandb_is_announced_where_one_is_made(work: Path, tmp_path: Path) -> None:
    start = ["fit", "--config", "spt.yaml", *QUICK, *SMALL, "--data.dataset", str(work / "prepared")]
    assert "W&B" not in error(tmp_path, *start, "--data.batch_size", "0")
    assert "W&B" not in lares(tmp_path, *start, "--trainer.fast_dev_run", "true", environment=OFFLINE).said
    done = lares(tmp_path, *start, "--test_after_fit", "false", environment=OFFLINE)
    assert done.said.count("W&B: WANDB_MODE is offline, keeping an offline run in runs/default/spt/wandb") == 1


def test_a_later_stage_refuses_another_architecture(work: Path) -> None:
    for asked in (["--model.backbone.depth.mean", "7"], ["--config", "lru.yaml"]):
        said = error(work, "fit", "--config", "spt-continued.yaml", "--run", "ml", *QUICK, *asked)
        assert "continues the model of" in said


def test_predict_writes_original_ids(work: Path, tmp_path: Path) -> None:
    best = str(work / "runs" / "ml" / "rpt" / "checkpoints" / "best.ckpt")
    lares(tmp_path, "predict", "--ckpt_path", best, "--depth", "2", "--k", "7", "--model.exclude_seen", "true")
    table = pq.read_table(tmp_path / "predictions.parquet").to_pydict()
    data = SequenceDataset.load(work / "prepared")
    assert table["user_id"] == data.user_ids.to_pylist()
    known = set(data.item_ids.to_pylist())
    for row, (items, scores) in enumerate(zip(table["item_ids"], table["scores"], strict=True)):
        assert len(items) == len(set(items)) == len(scores) == 7
        assert scores == sorted(scores, reverse=True)
        seen = {data.item_ids[item - 1].as_py() for item in data.items[data.offsets[row] : data.offsets[row + 1]].tolist()}
        assert set(items) <= known - seen
    said = error(tmp_path, "predict", "--ckpt_path", best)
    assert "predictions.parquet exists; --overwrite true" in said
    assert "ends with .parquet" in error(tmp_path, "predict", "--ckpt_path", best, "--output", "lists.csv")


def test_predict_for_histories_from_a_file(work: Path, tmp_path: Path) -> None:
    best = str(work / "runs" / "ml" / "spt" / "checkpoints" / "best.ckpt")
    (tmp_path / "new.csv").write_text("user_id,item_id\nme,i50\nme,i172\nyou,i1\n")
    lares(tmp_path, "predict", "--ckpt_path", best, "--data.histories", "new.csv", "--k", "3", "--output", "out/new.parquet")
    table = pq.read_table(tmp_path / "out" / "new.parquet").to_pydict()
    assert table["user_id"] == ["me", "you"]
    (tmp_path / "new.data").write_bytes("Zoë;i50\nZoë;i172\nyou;i1\n".encode("cp1252"))
    written = ["--data.encoding", "cp1252", "--data.separator", ";", "--data.header", "user_id,item_id"]
    data = ["--data.histories", "new.data", *written]
    lares(tmp_path, "predict", "--ckpt_path", best, *data, "--k", "3", "--output", "out/other.parquet")
    other = pq.read_table(tmp_path / "out" / "other.parquet").to_pydict()
    assert other["user_id"] == ["Zoë", "you"]
    assert other["item_ids"] == table["item_ids"]
    said = error(tmp_path, "predict", "--ckpt_path", best, "--data.histories", "new.data")
    assert "Delimited text without a header line needs --data.separator and --data.header" in said
    (tmp_path / "odd.csv").write_text("user_id,item_id\nme,i50\nme,no-such-film\n")
    said = error(tmp_path, "predict", "--ckpt_path", best, "--data.histories", "odd.csv")
    assert "item 'no-such-film' of user 'me' is not in the catalogue" in said
    assert not (tmp_path / "predictions.parquet").exists()


def test_a_second_run_moves_the_first_aside_and_overlays_apply_in_order(work: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("model:\n  class_path: lares_pl.SPT\n  init_args:\n    alpha: 0.0\n    gamma: 0.25\n")
    base = ["fit", "--config", "spt.yaml", "--config", "mine.yaml", *QUICK, *SMALL, "--data.dataset", str(work / "prepared")]
    base += ["--trainer.logger", "false", "--test_after_fit", "false", "--trainer.limit_train_batches", "2"]
    lares(tmp_path, *base, "--model.alpha", "0.5")
    config = yaml.safe_load((tmp_path / "runs" / "default" / "spt" / "config.yaml").read_text())["model"]["init_args"]
    assert (config["alpha"], config["gamma"], config["alignment"]["tau"]) == (0.5, 0.25, 0.1)
    assert not (tmp_path / "runs" / "default" / "spt" / "wandb").exists()
    assert list((tmp_path / "runs" / "default" / "spt" / "metrics").rglob("metrics.csv"))
    kept = (tmp_path / "runs" / "default" / "spt" / "checkpoints" / "best.ckpt").read_bytes()
    lares(tmp_path, *base, "--seed_everything", "2")
    assert (tmp_path / "runs" / "default" / "spt.1" / "checkpoints" / "best.ckpt").read_bytes() == kept
    assert (tmp_path / "runs" / "default" / "spt" / "checkpoints" / "best.ckpt").read_bytes() != kept
    # resuming goes on in the same folder, from the last validation, also where an earlier one was better
    last = tmp_path / "runs" / "default" / "spt" / "checkpoints" / "last.ckpt"
    lares(tmp_path, *base, "--ckpt_path", "last", "--trainer.max_epochs", "3")
    assert not (tmp_path / "runs" / "default" / "spt.2").exists()
    assert torch.load(last, weights_only=True)["epoch"] == 2


def test_a_recorded_config_runs_under_another_name(work: Path, tmp_path: Path) -> None:
    recorded = work / "runs" / "ml" / "spt" / "config.yaml"
    before = (work / "runs" / "ml" / "spt" / "checkpoints" / "best.ckpt").read_bytes()
    data = ["--data.dataset", str(work / "prepared"), "--trainer.logger", "false"]
    lares(tmp_path, "fit", "--config", str(recorded), "--run", "again", *data)
    assert (tmp_path / "runs" / "again" / "spt" / "checkpoints" / "best.ckpt").is_file()
    assert (work / "runs" / "ml" / "spt" / "checkpoints" / "best.ckpt").read_bytes() == before


def test_a_resumed_rpt_reports_what_changed_since_spt(work: Path) -> None:
    quick = [*QUICK, "--data.batch_size", "32", "--trainer.max_epochs", "2", "--trainer.logger", "false"]
    done = lares(work, "fit", "--config", "rpt.yaml", "--run", "ml", *quick, "--ckpt_path", "last")
    assert "before and after RPT" in done.stdout


def test_an_invalid_configuration_moves_no_run_aside(work: Path) -> None:
    data = ["--run", "ml", *QUICK, *SMALL, "--model.backbone.core_block.heads", "3"]
    assert "heads=3 does not divide" in error(work, "fit", "--config", "spt.yaml", *data)
    for option, said in (
        (["--model.optimizer.lr", "-1"], "model.optimizer: Invalid learning rate"),
        (["--model.scheduler.warmup", "500", "--model.scheduler.total", "100"], "expected 0 <= warmup < total"),
    ):
        assert said in error(work, "fit", "--config", "spt.yaml", *data[:-2], *option)
    assert (work / "runs" / "ml" / "spt" / "checkpoints" / "best.ckpt").is_file()
    assert not (work / "runs" / "ml" / "spt.1").exists()


def test_the_demo_never_moves_its_data(tmp_path: Path) -> None:
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    mine = tmp_path / "runs" / "demo" / "mine.csv"
    mine.write_text("user_id,item_id\n")
    assert "put it elsewhere" in error(tmp_path, "demo", "--data", "runs/demo/mine.csv")
    assert mine.is_file()


def test_the_baseline_trains_with_the_same_command(work: Path, tmp_path: Path) -> None:
    data = ["--data.dataset", str(work / "prepared"), "--trainer.logger", "false"]
    lares(
        tmp_path,
        "fit",
        "--config",
        "sasrec.yaml",
        "--config",
        "small-sasrec.yaml",
        *QUICK,
        *data,
        "--trainer.val_check_interval",
        "2",
    )
    assert json.loads((tmp_path / "runs" / "default" / "sasrec" / "test.json").read_text())["depth"] == 0


def test_errors_are_one_paragraph(work: Path, tmp_path: Path) -> None:
    spt, rpt = (str(work / "runs" / "ml" / stage / "checkpoints" / "best.ckpt") for stage in ("spt", "rpt"))
    data = ["--data.dataset", str(work / "prepared")]
    assert "model: Option 'alhpa' is not accepted" in error(tmp_path, "fit", "--config", "spt.yaml", "--model.alhpa", "1")
    assert "model.alpha: Expected a number. Got value: x" in error(
        tmp_path, "fit", "--config", "spt.yaml", "--model.alpha", "x"
    )
    assert "--trainer.max_epoch" in error(tmp_path, "fit", "--config", "spt.yaml", "--trainer.max_epoch", "3")
    assert "did you mean --model.optimizer.lr?" in error(tmp_path, "fit", "--config", "spt.yaml", "--optimizer.lr", "1")
    said = error(tmp_path, "fit", "--config", "spt.yaml", "--model.optimizer.lr", "1e-3x")
    assert "model.optimizer.lr: Expected a dot import path string: 1e-3x" in said
    assert "is a folder; name a checkpoint in it, such as" in error(tmp_path, "test", "--ckpt_path", str(work / "runs" / "ml"))
    assert "mean depth must be at least 1" in error(
        tmp_path, "fit", "--config", "spt.yaml", "--model.backbone.depth.mean", "0", *data
    )
    assert "no prepared dataset at" in error(tmp_path, "fit", "--config", "spt.yaml")
    assert "no model: give a config" in error(tmp_path, "fit", *data)
    assert "train it first" in error(tmp_path, "fit", "--config", "rpt.yaml")
    assert "to start RPT from its weights use --model.init_from" in error(
        tmp_path, "fit", "--config", "rpt.yaml", "--ckpt_path", spt
    )
    assert "exclude each other" in error(tmp_path, "fit", "--config", "rpt.yaml", "--ckpt_path", rpt, "--model.init_from", spt)
    assert "needs a checkpoint: --ckpt_path" in error(tmp_path, "test")
    assert "no checkpoint at" in error(tmp_path, "test", "--ckpt_path", "nowhere.ckpt")
    assert "depth: Expected a whole number, 0 or larger" in error(tmp_path, "test", "--ckpt_path", spt, "--depth", "-1")
    assert "k: Expected a whole number, 1 or larger" in error(tmp_path, "predict", "--ckpt_path", spt, "--k", "0")
    assert "data.aligned_positions must be" in error(
        tmp_path, "fit", "--config", "spt.yaml", "--data.instances", "prefix", "--data.aligned_positions", "2", *data
    )
    assert "FMLPBlock lets a position see later ones" in error(
        tmp_path, "fit", "--config", "spt.yaml", "--config", "fmlp.yaml", "--data.instances", "sequence", *data
    )
    assert "trajectories: 3 asked of a model that starts all of them alike (ZeroState)" in error(
        tmp_path, "fit", "--config", "spt.yaml", "--trajectories", "3", *data
    )
    assert "unknown command 'fti'" in error(tmp_path, "fti")
    assert not (tmp_path / "runs").exists()
    assert "is a checkpoint of this same run" in error(
        work, "fit", "--config", "spt.yaml", "--run", "ml", "--model.init_from", "runs/ml/spt/checkpoints/best.ckpt"
    )


def test_a_dataset_with_another_catalogue_is_refused(work: Path, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("".join(f"{user} 1 2 3 4\n" for user in range(5)))
    prepare(str(tmp_path / "x.txt"), str(tmp_path / "other"))
    best = str(work / "runs" / "ml" / "spt" / "checkpoints" / "best.ckpt")
    said = error(tmp_path, "test", "--ckpt_path", best, "--data.dataset", "other")
    assert "has another catalogue" in said
    assert "--data.dataset" in said


def test_an_emptied_dataset_is_refused(work: Path, tmp_path: Path) -> None:
    import pyarrow as pa

    shutil.copytree(work / "prepared", tmp_path / "empty")
    schema = pq.read_schema(tmp_path / "empty" / "sequences.parquet")
    pq.write_table(
        pa.table({name: pa.array([], schema.field(name).type) for name in schema.names}),
        tmp_path / "empty" / "sequences.parquet",
    )
    best = str(work / "runs" / "ml" / "spt" / "checkpoints" / "best.ckpt")
    assert "interactions; there are 0 and 0" in error(tmp_path, "test", "--ckpt_path", best, "--data.dataset", "empty")


def test_a_traceback_is_shown_when_asked_for(tmp_path: Path) -> None:
    done = lares(tmp_path, "test", "--ckpt_path", "nowhere.ckpt", status=1, environment={"LARES_TRACEBACK": "1"})
    assert "Traceback" in done.stderr
    assert "no checkpoint at" in done.stderr


def test_help_is_printed(tmp_path: Path) -> None:
    assert "lares fit --config spt.yaml" in lares(tmp_path, "--help").stdout
    assert "--k_core" in lares(tmp_path, "prepare", "--help").stdout
    assert "--depth" in lares(tmp_path, "predict", "--help").stdout
