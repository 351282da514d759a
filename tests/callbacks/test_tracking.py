"""W&B records of SPT, an interrupted SPT and RPT, read back from offline runs."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from lares_pl import LaresError, SequenceDataModule, load_stage
from lares_pl.callbacks.depth_sweep import DepthSweep
from lares_pl.callbacks.lineage import Lineage, checkpoint_artifact, dataset_artifact
from lares_pl.callbacks.tracking import Wandb
from lares_pl.cli.main import main
from lares_pl.cli.shipped_configs import shipped_files
from lares_pl.evaluation.depths import metrics_by_depth
from lares_pl.runs import StageFolder
from tests import wandb_files
from tests.console import SMALL, error
from tests.training import data, released_spt, trainer

pytestmark = pytest.mark.slow

QUICK = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.log_every_n_steps", "1"]
TINY = [*QUICK, *SMALL, "--data.max_length", "8", "--data.instances", "prefix", "--model.backbone.depth.mean", "2"]


def lares(folder: Path, *arguments: str) -> None:
    """Run the command in this process and end W&B's run with it."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.chdir(folder)
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        patch.setattr(sys, "argv", ["lares", *arguments])
        main()
        wandb.finish()


@pytest.fixture(scope="module")
def runs(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SPT for an epoch, resumed for another, then RPT."""
    folder = tmp_path_factory.mktemp("tracked")
    (folder / "prepared").symlink_to(toy_dataset)
    spt = ["fit", "--config", "spt.yaml", "--run", "toy", *TINY]
    lares(folder, *spt, "--trainer.max_epochs", "1", "--test_after_fit", "false")
    (folder / "runs/toy/spt/wandb").rename(folder / "first")
    lares(folder, *spt, "--trainer.max_epochs", "2", "--ckpt_path", "last")
    rpt = [
        "--model.pruning.passes",
        "1",
        "--data.batch_size",
        "8",
        "--trainer.max_steps",
        "4",
        "--trainer.val_check_interval",
        "4",
    ]
    lares(folder, "fit", "--config", "rpt.yaml", "--run", "toy", *QUICK, *rpt)
    return folder / "runs" / "toy"


@pytest.fixture(scope="module", params=["spt", "rpt"])
def stage(request: pytest.FixtureRequest, runs: Path) -> Path:
    return runs / str(request.param)


def test_the_whole_configuration_is_logged_once(stage: Path) -> None:
    logged = wandb_files.config(wandb_files.records(stage))
    recorded = yaml.safe_load((stage / "config.yaml").read_text())
    for key, value in recorded.items():
        found = [value for name, value in logged if name.split("/")[0] == key]
        assert found == [value], key
    assert recorded["model"]["init_args"]["optimizer"]["init_args"]["lr"] in (0.005, 0.0001)


def test_metrics_by_update_and_a_test_in_the_summary(stage: Path) -> None:
    records = wandb_files.records(stage)
    rows = wandb_files.history(records)
    training = [row for row in rows if "train/loss" in row]
    validation = [row for row in rows if "val/ndcg@10" in row]
    steps = [row["trainer/global_step"] for row in training]
    assert len(steps) >= 2
    assert steps == sorted(set(steps))
    assert len(validation) == (2 if stage.name == "rpt" else 1)  # RPT validates what it starts from
    assert validation[-1]["trainer/global_step"] >= steps[-1]
    assert not any(name.startswith("test/") for row in rows for name in row)
    metrics = json.loads((stage / "test.json").read_text())["metrics"]
    summary = wandb_files.summary(records)
    assert {name: summary[name] for name in metrics} == pytest.approx(metrics)
    axes = {record.metric.glob_name or record.metric.name: record.metric for record in records if record.HasField("metric")}
    assert all(axes[name].step_metric == "trainer/global_step" for name in ("train/*", "val/*", "val/ndcg@10"))
    assert axes["val/ndcg@10"].summary.max


def test_the_depth_sweep_is_a_table_a_chart_and_a_csv(stage: Path) -> None:
    with (stage / "depth-sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["split"], int(row["depth"])) for row in rows] == [(s, d) for s in ("val", "test") for d in range(1, 9)]
    tested = json.loads((stage / "test.json").read_text())["metrics"]
    at_mean = next(row for row in rows if (row["split"], row["depth"]) == ("test", "2"))
    swept = {f"test/{name}": float(at_mean[name]) for name in at_mean if name not in ("split", "scores", "depth")}
    assert swept == pytest.approx(tested)
    assert {row["scores"] for row in rows} == {"last step"}
    (logged,) = [row for row in wandb_files.history(wandb_files.records(stage)) if "depth_sweep/table/path" in row]
    (path,) = stage.glob(f"wandb/offline-run-*/files/{logged['depth_sweep/table/path']}")
    table = json.loads(path.read_text())
    assert table["columns"] == list(rows[0])
    assert [[str(cell) for cell in row] for row in table["data"]] == [list(row.values()) for row in rows]
    charts = {key: value for key, value in wandb_files.config(wandb_files.records(stage)) if "/visualize/" in key}
    assert set(charts) == {f"_wandb/visualize/depth_sweep/{name}" for name in ("ndcg@10", "recall@10")}
    for key, chart in charts.items():
        fields = chart["panel_config"]["fieldSettings"]
        assert fields == {"x": "depth", "y": key.rpartition("/")[2], "stroke": "split"}
        assert logged[f"{key.removeprefix('_wandb/visualize/')}_table/path"] == logged["depth_sweep/table/path"]


@pytest.mark.parametrize("average", [False, True])
def test_a_sweep_equals_tests_at_each_depth(runs: Path, toy_dataset: Path, tmp_path: Path, average: bool) -> None:
    model = load_stage(runs / "spt" / "checkpoints" / "best.ckpt")
    model.average_steps = average
    data = SequenceDataModule(str(toy_dataset), max_length=8)
    make_sums = partial(model.make_sums, data.sequences)
    swept = metrics_by_depth(model.backbone, data.test_dataloader(), [1, 3, 5], make_sums, average)
    for row in swept:
        model.evaluation_depth = int(row["depth"])
        (metrics,) = trainer(tmp_path).test(model, data, verbose=False)
        assert {f"test/{name}": value for name, value in row.items() if name != "depth"} == pytest.approx(metrics)


def manifest(artifact: Any) -> dict[str, str]:
    return {entry.path: entry.digest for entry in artifact.manifest.contents}


def test_artifacts_link_the_stages(runs: Path) -> None:
    spt, rpt = (wandb_files.artifacts(wandb_files.records(runs / name)) for name in ("spt", "rpt"))
    inputs = [[artifact for artifact in of if artifact.use_after_commit] for of in (spt, rpt)]
    assert [[a.name for a in of] for of in inputs] == [["dataset-prepared"], ["dataset-prepared", "checkpoint-toy-spt"]]
    models = [[a for a in of if a.type == "model" and not a.use_after_commit] for of in (spt, rpt)]
    assert [[a.name for a in of] for of in models] == [["checkpoint-toy-spt"], ["checkpoint-toy-rpt"]]
    # the same content is the same version, whoever wrote it down
    assert inputs[0][0].digest == inputs[1][0].digest
    assert models[0][0].digest == inputs[1][1].digest
    assert set(manifest(inputs[0][0])) == {"dataset.json", "sequences.parquet", "items.parquet"}
    assert [entry.ref.startswith("file://") for entry in models[0][0].manifest.contents] == [True]
    assert json.loads(inputs[0][0].metadata)["users"] == 61
    assert "best" in models[0][0].aliases


def test_an_artifact_is_identified_by_its_content(runs: Path, toy_dataset: Path, tmp_path: Path) -> None:
    best = runs / "spt" / "checkpoints" / "best.ckpt"
    (tmp_path / "elsewhere.ckpt").write_bytes(best.read_bytes())
    reference, upload = checkpoint_artifact(best, "reference"), checkpoint_artifact(best, "upload")
    assert reference.digest == upload.digest
    assert checkpoint_artifact(tmp_path / "elsewhere.ckpt", "reference").name.startswith("checkpoint-elsewhere")
    assert checkpoint_artifact(runs / "rpt" / "checkpoints" / "best.ckpt", "reference").digest != reference.digest
    assert dataset_artifact(toy_dataset, "reference").digest == dataset_artifact(toy_dataset, "upload").digest


def test_a_resumed_run_is_the_same_run(runs: Path) -> None:
    (first,) = (runs.parent.parent / "first").glob("offline-run-*/*.wandb")
    (second,) = (runs / "spt" / "wandb").glob("offline-run-*/*.wandb")
    ids = {record.run.run_id for path in (first, second) for record in wandb_files.records_of(path) if record.HasField("run")}
    assert ids == {StageFolder(runs / "spt").tracked()}
    assert StageFolder(runs / "rpt").tracked() not in ids
    last = [row["trainer/global_step"] for row in wandb_files.history(wandb_files.records_of(first)) if "train/loss" in row][-1]
    assert wandb_files.history(wandb_files.records_of(second))[0]["trainer/global_step"] > last


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning.pytorch.utilities.rank_zero_only.rank", 1)
    logger = Wandb(save_dir=str(tmp_path / "none"))
    other: Any = trainer(tmp_path)
    monkeypatch.setattr(type(other), "is_global_zero", False)
    monkeypatch.setattr(type(other), "loggers", [logger])
    logger.log_metrics({"test/mrr": 1.0})
    logger.log_metrics({"train/loss": 1.0}, 3)
    assert logger.experiment.id is not None  # a stand-in that takes everything
    Lineage().on_fit_end(other, object())  # type: ignore[arg-type]
    assert not (tmp_path / "none").exists()
    assert wandb.run is None


def test_invalid_sweeps_are_refused() -> None:
    wrong: list[dict[str, Any]] = [{"reach": 0}, {"splits": []}, {"splits": ["train"]}]
    for options in wrong:
        with pytest.raises(LaresError, match="DepthSweep"):
            DepthSweep(**options)


def test_a_split_without_batches_is_not_in_the_sweep(toy_dataset: Path, tmp_path: Path) -> None:
    sweep = DepthSweep(path=str(tmp_path / "sweep.csv"))
    tester = trainer(tmp_path, limit_val_batches=0, callbacks=[sweep])
    stage, module = released_spt(), data(toy_dataset)
    tester.fit(stage, module)
    tester.test(stage, module, verbose=False)
    with (tmp_path / "sweep.csv").open() as file:
        assert {row["split"] for row in csv.DictReader(file)} == {"test"}


def test_the_sweep_file_uses_options_of_the_command(toy_dataset: Path, tmp_path: Path) -> None:
    sweep = yaml.safe_load(shipped_files()["sweep.yaml"].read_text())
    assert sweep["command"][-1] == "${args}"
    assert "lares fit --config spt.yaml" in sweep["command"][2]
    parameters = {name: {"value": _some(choice)} for name, choice in sweep["parameters"].items()}
    given = create_sweep_command_args({"args": parameters})["args"]
    assert "--model.backbone.depth.mean=2" in given
    # whatever a trial is given the command accepts: it comes as far as the data, which is not there
    assert "no prepared dataset at" in error(tmp_path, "fit", "--config", "spt.yaml", "--data.dataset", "nowhere", *given)
    assert "'alhpa' is not accepted" in error(tmp_path, "fit", "--config", "spt.yaml", "--model.alhpa=1")


def _some(choice: dict[str, Any]) -> Any:
    return choice["values"][0] if "values" in choice else choice["min"]
