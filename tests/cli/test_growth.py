"""A newer catalogue through the whole command line: continue from the old checkpoint, test, recommend, export, report."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from lares_pl import Recommender, load_stage
from tests.console import QUICK, SMALL, lares
from tests.stages.test_growth import write

OLD, NEW = "runs/may/spt/checkpoints/best.ckpt", "runs/june/spt/checkpoints/best.ckpt"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after training on items 0 to 19, and on items 5 to 29 from those weights."""
    folder = tmp_path_factory.mktemp("work")
    write(folder, "may", 0, 20)
    write(folder, "june", 5, 30)
    lares(folder, "fit", "--config", "spt.yaml", "--run", "may", "--data.dataset", "may", *QUICK, *SMALL)
    continued = ["--run", "june", "--data.dataset", "june", "--model.init_from", OLD]
    done = lares(folder, "fit", "--config", "spt.yaml", *continued, *QUICK, *SMALL)
    (folder / "june.out").write_text(done.said)
    return folder


@pytest.mark.slow
def test_the_counts_are_printed_once_and_the_optimiser_starts_fresh(work: Path) -> None:
    said = (work / "june.out").read_text()
    counts = "15 items matched by id, 10 new (they start from the mean of the item embeddings), 5 gone"
    assert said.count(counts) == 1
    new = torch.load(work / "runs/june/spt/checkpoints/last.ckpt", weights_only=True)
    states = new["optimizer_states"][0]["state"].values()
    assert {int(state["step"]) for state in states} == {new["global_step"]}  # none of the old run's updates


@pytest.mark.slow
def test_the_new_checkpoint_is_tested_reported_and_exported(work: Path) -> None:
    lares(work, "test", "--ckpt_path", NEW, "--output", "test.json")
    tested = json.loads((work / "test.json").read_text())["metrics"]
    fitted = json.loads((work / "runs/june/spt/test.json").read_text())["metrics"]
    assert tested == pytest.approx(fitted, rel=1e-6)
    assert "test/unseen/ndcg@10" in tested
    lares(work, "report", "runs/june", "--output", "report", "--bootstrap", "100", "--timing", "false", "--depths", "1,2")
    assert "june" in (work / "report" / "report.html").read_text()
    lares(work, "export", "--ckpt_path", NEW, "--output", "exported", "--format", "torch", "--check", "8", "--k", "5")
    assert len(list((work / "exported").iterdir())) > 2


@pytest.mark.slow
def test_both_checkpoints_recommend_for_the_same_histories(work: Path) -> None:
    (work / "new.csv").write_text("user_id,item_id\nann,i1\nann,i10\nann,i29\n")  # of the old one, of both, of the new one
    for name, path, size, unknown in (("old", OLD, 20, ["i29"]), ("new", NEW, 25, ["i1"])):
        output = f"{name}.parquet"
        lares(work, "recommend", "--ckpt_path", path, "--histories", "new.csv", "--k", "30", "--output", output)
        (row,) = pq.read_table(work / output).to_pylist()
        assert len(row["item_ids"]) == load_stage(work / path).backbone.items == size
        assert row["unknown"] == unknown
        assert Recommender.from_checkpoint(work / path).recommend([["i10"]], k=30).unknown == [[]]
    assert {"i25", "i29"} < set(row["item_ids"])
    assert not {"i1", "i4"} & set(row["item_ids"])
