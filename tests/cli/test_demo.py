"""What the demonstration measures is what the commands measure, split by hops as the rules say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lares_pl.cli import demo
from lares_pl.data.synthetic import write_interactions
from lares_pl.data.trips import Trips
from tests.console import lares

TRIPS = Trips(users=120, stations=20, kinds=4, groups=2, most_hops=6)
SHORT = ["--run", "demo", "--trainer.max_steps", "10", "--trainer.val_check_interval", "10", "--trainer.logger", "false"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demonstration with a short budget."""
    place = tmp_path_factory.mktemp("demo")
    write_interactions(TRIPS, place / "trips.tsv")
    lares(place, "prepare", "trips.tsv", "--output", "runs/demo/dataset")
    data = ["--data.dataset", "runs/demo/dataset"]
    flat = ["fit", "--config", "sasrec.yaml", "--config", "demo-flat.yaml", *SHORT, *data]
    lares(place, *flat, "--stage", "flat-2")
    lares(place, *flat, "--stage", "flat-4", "--model.backbone.pre_layers", "4")
    lares(place, "fit", "--config", "spt.yaml", "--config", "demo.yaml", *SHORT, *data)
    lares(place, "fit", "--config", "rpt.yaml", "--config", "demo-rpt.yaml", *SHORT, "--model.pruning.passes", "1")
    return place


@pytest.mark.slow
def test_the_summary_is_what_the_commands_report(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    summary = demo.measure("runs/demo/dataset", TRIPS)
    for name, stage in {**demo.TRAINED, "SPT + RPT": "rpt"}.items():
        tested = json.loads((demo.FOLDER / stage / "test.json").read_text())["metrics"]["test/ndcg@10"]
        assert summary["models"][name]["all"] == pytest.approx(tested, abs=1e-6)
    assert len({summary["depth"][depth]["all"] for depth in ("1", "2", "8")}) > 1
    assert 2 <= summary["adaptive"]["steps"]["all"] <= max(demo.DEPTHS)
    items, lengths = TRIPS.sample()
    hops = TRIPS.travel(items, lengths - 1)[1]
    for name, (first, last) in demo.HOPS.items():
        assert summary["users"][name] == np.sum((first <= hops) & (hops <= last))
    best = summary["models"]["best possible"]
    assert all(best["all"] >= row["all"] - 0.1 for row in summary["models"].values())
    text = demo.table(summary)
    assert all(f"{row['all']:.3f}" in text for row in summary["models"].values())
