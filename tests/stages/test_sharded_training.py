"""Both stages with the catalogue sharded over two real processes (gloo) against one process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from lares_pl import TextOptions, prepare
from lares_pl.stages.checkpoint import read_checkpoint
from tests.console import SMALL, lares

pytestmark = pytest.mark.slow

CPU = ["--trainer.accelerator", "cpu"]
ONE = [*CPU, "--trainer.devices", "1"]
SHARDED = ["--config", "sharded.yaml", *CPU, "--trainer.devices", "2"]
# noise and dropout as ever; an epsilon that keeps gradients of round-off size from becoming steps of full size
BUDGET = ["--model.optimizer", "torch.optim.Adam", "--model.optimizer.lr", "0.005", "--model.optimizer.eps", "0.001"]
BUDGET += ["--trainer.gradient_clip_val", "0.5", "--trainer.logger", "false", "--data.batch_size", "32"]
BUDGET += ["--trainer.val_check_interval", "2", "--trainer.check_val_every_n_epoch", "null"]


def fit(folder: Path, config: str, run: str, *options: str, steps: int = 4) -> Path:
    """One run; its folder."""
    released = ["--config", "paper.yaml", *SMALL] if config == "spt.yaml" else []
    steps_and_run = ["--trainer.max_steps", str(steps), "--run", run]
    done = lares(folder, "fit", "--config", config, *released, *BUDGET, *options, *steps_and_run)
    stage = folder / "runs" / run / config.removesuffix(".yaml")
    (stage / "said").write_text(done.said)
    return stage


def assert_same_weights(one: Path, other: Path, exactly: bool = False) -> None:
    ours, theirs = (read_checkpoint(stage / "checkpoints" / "last.ckpt") for stage in (one, other))
    assert ours.weights.keys() == theirs.weights.keys()
    for name, value in ours.weights.items():
        difference = float((theirs.weights[name].double() - value.double()).abs().max())
        assert difference <= (0 if exactly else 2e-5), f"{name}: {difference}"


@pytest.fixture(scope="module")
def work(interactions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SPT on one process and on two that share the catalogue (600 items and padding: an odd number of rows)."""
    folder = tmp_path_factory.mktemp("sharded")
    prepare(str(interactions), str(folder / "prepared"))
    fit(folder, "spt.yaml", "one", *ONE)
    fit(folder, "spt.yaml", "two", *SHARDED)
    return folder


def test_training_with_the_catalogue_sharded_over_two_processes_equals_training_on_one(work: Path) -> None:
    assert_same_weights(work / "runs" / "one" / "spt", work / "runs" / "two" / "spt")
    before = torch.load(work / "runs" / "two" / "spt" / "checkpoints" / "best.ckpt", weights_only=True)
    assert before["state_dict"]["backbone.embedding.item.weight"].shape == (601, 16)
    assert type(before["state_dict"]["backbone.embedding.item.weight"]) is torch.Tensor


def test_evaluation_on_two_processes_equals_evaluation_on_one(work: Path, tmp_path: Path) -> None:
    stage = work / "runs" / "two" / "spt"
    best = str(stage / "checkpoints" / "best.ckpt")
    lares(tmp_path, "test", "--ckpt_path", best, *ONE, "--output", "one.json")
    lares(tmp_path, "test", *SHARDED, "--ckpt_path", best, "--output", "two.json", "--model.exclude_seen", "true")
    lares(tmp_path, "test", "--ckpt_path", best, *ONE, "--output", "seen.json", "--model.exclude_seen", "true")
    read = {path.stem: json.loads(path.read_text())["metrics"] for path in tmp_path.glob("*.json")}
    assert json.loads((stage / "test.json").read_text())["metrics"] == pytest.approx(read["one"], rel=1e-5)
    assert read["two"] == pytest.approx(read["seen"], rel=1e-5)
    assert read["seen"]["test/mrr"] != read["one"]["test/mrr"]
    tables = []
    for name, options in (("two", SHARDED), ("one", ONE)):
        lares(
            tmp_path, "predict", *options, "--ckpt_path", best, "--output", f"{name}.parquet", "--data.eval_batch_size", "100"
        )
        tables.append(pq.read_table(tmp_path / f"{name}.parquet").to_pydict())
    assert tables[0]["user_id"] == tables[1]["user_id"]
    assert tables[0]["item_ids"] == tables[1]["item_ids"]
    torch.testing.assert_close(torch.tensor(tables[0]["scores"]), torch.tensor(tables[1]["scores"]))


def test_a_run_resumes_on_the_same_number_of_processes_or_on_one(work: Path) -> None:
    rest = ["--ckpt_path", "last", "--test_after_fit", "false"]
    half = fit(work, "spt.yaml", "half", *SHARDED, "--test_after_fit", "false", steps=2)
    for run in ("again", "mixed"):
        shutil.copytree(half, work / "runs" / run / "spt")
    assert_same_weights(work / "runs" / "two" / "spt", fit(work, "spt.yaml", "again", *SHARDED, *rest), exactly=True)
    fit(work, "spt.yaml", "mixed", *ONE, *rest, steps=3)
    assert_same_weights(work / "runs" / "one" / "spt", fit(work, "spt.yaml", "mixed", *SHARDED, *rest))


def test_rpt_with_the_catalogue_sharded_over_two_processes_equals_rpt_on_one(work: Path) -> None:
    source = ["--model.init_from", str(work / "runs" / "one" / "spt" / "checkpoints" / "best.ckpt")]
    source += ["--model.pruning.passes", "1", "--model.pruning.top", "200"]
    one = fit(work, "rpt.yaml", "one", *ONE, *source)
    two = fit(work, "rpt.yaml", "two", *SHARDED, *source)
    assert_same_weights(one, two)
    said = [[line for line in (stage / "said").read_text().splitlines() if "pruning kept" in line] for stage in (one, two)]
    assert len(said[0]) == 1
    assert said[0] == said[1]
    reports = [json.loads((stage / "test.json").read_text()) for stage in (one, two)]
    assert reports[0]["before"]["metrics"] == pytest.approx(reports[1]["before"]["metrics"], rel=1e-5)
    assert reports[0]["metrics"] == pytest.approx(reports[1]["metrics"], rel=1e-3)


def test_two_groups_with_a_sharded_catalogue_each_equal_one_process(work: Path) -> None:
    """Four processes: gradients averaged over groups, TLA and SLA over the rows of both; without noise, as shares differ."""
    same = [
        "--model.backbone.initial_state",
        "lares_pl.ZeroState",
        "--model.backbone.dropout",
        "0",
        "--test_after_fit",
        "false",
    ]
    groups = ["--trainer.devices", "4", "--trainer.strategy.init_args.data_parallel_size", "2", "--data.batch_size", "16"]
    four = fit(work, "spt.yaml", "four", *SHARDED, *same, *groups)
    assert_same_weights(fit(work, "spt.yaml", "still", *ONE, *same), four)


def test_item_text_is_sharded_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = [" ".join([f"u{user}", *rng.choice(list("abcdefghij"), rng.integers(3, 9))]) for user in range(41)]
    (tmp_path / "x.txt").write_text("\n".join(lines) + "\n")
    pd.DataFrame({"item_id": list("abcdefghij"), "v": list(rng.normal(size=(10, 6)))}).to_parquet(tmp_path / "v.parquet")
    text = TextOptions(vectors="v", half=True)
    prepare(str(tmp_path / "x.txt"), str(tmp_path / "prepared"), item_text=str(tmp_path / "v.parquet"), text=text)
    tedrec = ["--config", "tedrec.yaml", *SMALL, "--test_after_fit", "false"]
    one = fit(tmp_path, "spt.yaml", "one", *tedrec, *ONE, steps=2)
    two = fit(tmp_path, "spt.yaml", "two", *tedrec, *SHARDED, steps=2)
    assert_same_weights(one, two)
    vectors = read_checkpoint(two / "checkpoints" / "last.ckpt").weights["backbone.embedding.text.vectors"]
    assert vectors.dtype == torch.float16
    assert vectors.shape == (11, 6)
    fit(tmp_path, "rpt.yaml", "two", *SHARDED, "--model.pruning.top", "10", steps=2)


def test_unsupported_options_of_a_sharded_catalogue_are_refused(work: Path) -> None:
    alone = ["--config", "spt.yaml", "--config", "sharded.yaml", *ONE, "--run", "refused"]
    alone += ["--trainer.strategy.init_args.tensor_parallel_size", "1"]
    said = lares(work, "fit", *alone, *SMALL, status=2).stderr
    assert "nothing to shard the catalogue over" in said
    assert len([line for line in said.splitlines() if line.startswith("lares: error")]) == 1
    folders = ["--trainer.strategy.init_args.save_distributed_checkpoint", "true"]
    assert "save_distributed_checkpoint: false" in lares(work, "fit", *alone, *folders, *SMALL, status=2).stderr
