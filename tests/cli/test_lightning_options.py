"""Lightning's flags and callbacks on the command line, many in a run: the rows of docs/lightning.md (Python: tests/stages)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.console import QUICK, SMALL, error, lares

FIT = ["fit", "--config", "spt.yaml", *QUICK, *SMALL, "--data.batch_size", "8", "--trainer.logger", "false"]
LIGHTNING = "lightning.pytorch.callbacks"

FLAGS: dict[str, Any] = {
    "strategy": "auto",
    "num_nodes": 1,
    "precision": "bf16-mixed",
    "min_epochs": 1,
    "max_steps": 4,
    "min_steps": 1,
    "max_time": "00:00:05:00",
    "limit_val_batches": 1,
    "limit_test_batches": 1,
    "val_check_interval": 2,
    "check_val_every_n_epoch": 1,
    "num_sanity_val_steps": 1,
    "enable_model_summary": "true",
    "enable_progress_bar": "true",
    "accumulate_grad_batches": 2,
    "gradient_clip_val": 1.0,
    "gradient_clip_algorithm": "norm",
    "deterministic": "true",
    "benchmark": "false",
    "inference_mode": "false",
    "use_distributed_sampler": "false",
    "profiler": "simple",
    "detect_anomaly": "true",
    "sync_batchnorm": "true",
    "reload_dataloaders_every_n_epochs": 1,
    "default_root_dir": "elsewhere",
    "enable_autolog_hparams": "true",
}
CALLBACKS: dict[str, dict[str, Any]] = {
    "DeviceStatsMonitor": {},
    "EarlyStopping": {"monitor": "val/mrr", "mode": "max"},
    "GradientAccumulationScheduler": {"scheduling": {0: 1, 1: 2}},
    "LearningRateMonitor": {},
    "ModelCheckpoint": {"monitor": "val/mrr", "mode": "max", "filename": "by-mrr"},
    "ModelSummary": {"max_depth": 2},
    "OnExceptionCheckpoint": {"dirpath": "on-exception"},
    "TQDMProgressBar": {"refresh_rate": 1},
    "Timer": {"duration": "00:00:05:00"},
}


@pytest.fixture(scope="module")
def work(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("options")
    (folder / "prepared").symlink_to(toy_dataset)
    return folder


def with_callbacks(work: Path, chosen: dict[str, dict[str, Any]]) -> list[str]:
    specs = [{"class_path": f"{LIGHTNING}.{name}", "init_args": options} for name, options in chosen.items()]
    (work / "own.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": specs}}))
    return ["--config", "own.yaml"]


def test_flags_of_the_trainer(work: Path) -> None:
    flags = [word for flag, value in FLAGS.items() for word in (f"--trainer.{flag}", str(value))]
    said = lares(work, *FIT, "--run", "flags", "--trainer.max_epochs", "5", *flags).said
    assert "`max_steps=4` reached" in said
    assert "RecurrentBackbone" in said  # the summary
    assert "FIT Profiler Report" in said
    folder = work / "runs" / "flags" / "spt"
    assert (folder / "checkpoints" / "best.ckpt").exists()
    assert (folder / "test.json").exists()
    recorded = yaml.safe_load((folder / "config.yaml").read_text())["trainer"]
    given = {flag: yaml.safe_load(str(value)) for flag, value in FLAGS.items() if flag not in ("max_time", "default_root_dir")}
    assert {flag: recorded[flag] for flag in given} == given


def test_stock_callbacks_beside_those_of_every_run(work: Path) -> None:
    options = ["--run", "own", "--trainer.max_epochs", "2", *with_callbacks(work, CALLBACKS)]
    said = lares(work, *FIT, *options).said
    assert "`max_epochs=2` reached" in said
    assert "Epoch 1: 100%" in said  # of the bar given here, in place of ours
    assert "SPT epoch" not in said
    folder = work / "runs" / "own" / "spt"
    assert {path.name for path in folder.glob("checkpoints/*")} == {"best.ckpt", "last.ckpt", "by-mrr.ckpt"}
    (metrics,) = folder.glob("metrics/*/metrics.csv")
    assert "lr-Adam" in metrics.read_text().splitlines()[0]


def test_a_run_without_updates_is_no_silent_success(work: Path) -> None:
    options = ["--run", "none", "--trainer.limit_train_batches", "0", "--trainer.limit_val_batches", "0"]
    said = lares(work, *FIT, *options, "--test_after_fit", "false").said
    assert (
        "warning: no update was made (trainer.max_epochs, max_steps, limit_train_batches); the initial weights were saved"
        in said
    )
    assert "could not find" not in said


def test_a_dry_run_writes_nothing(work: Path) -> None:
    said = lares(work, *FIT, "--run", "dry", "--trainer.fast_dev_run", "true").said
    assert "warning: no checkpoint was kept (trainer.fast_dev_run), so none is tested" in said
    assert not (work / "runs" / "dry").exists()


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        (["--trainer.overfit_batches", "2"], "prepare a dataset of a few users"),
        (["--trainer.barebones", "true"], "trainer.barebones: this command always logs and saves"),
        ({"StochasticWeightAveraging": {"swa_lrs": 0.001}}, "set model.ema"),
        ({"WeightAveraging": {}}, "set model.ema"),
        ({"BackboneFinetuning": {}}, "BaseFinetuning"),
        ({"SpikeDetection": {}}, "can't load its own state"),
        ({"ModelPruning": {"pruning_fn": "l1_unstructured"}}, "Leave it out"),
        ({"EarlyStopping": {"monitor": "val/mrr"}}, "set mode='max'"),
        ({"LearningRateFinder": {}}, "Tuner(trainer).lr_find"),
    ],
)
def test_what_is_refused_writes_nothing(flag: Any, said: str, work: Path) -> None:
    options = flag if isinstance(flag, list) else with_callbacks(work, flag)
    assert said in error(work, *FIT, "--run", "refused", *options)
    assert not (work / "runs" / "refused").exists()
