"""`lares report`: the folder it writes, and its errors."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from lares_pl import (
    RPT,
    LaresError,
    load_stage,
)
from lares_pl.report import command
from lares_pl.report.command import report
from tests.report.conftest import EVIL, train, with_text
from tests.training import data, released_spt, trainer


def test_the_folder_holds_page_charts_and_tables(written: Path) -> None:
    page = (written / "report.html").read_text()
    charts = sorted((written / "charts").glob("*.svg"))
    expected = {"quality-by-depth", "difference-by-depth", "latency", "quality-by-kind", "step-movement", "step-rank"}
    expected |= {"step-users-rank", "step-users-ndcg", "training", "reinforcement", "pruning", "seeds", "stopping"}
    assert {path.stem for path in charts} == expected
    for path in charts:
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
        assert f'id="chart-{path.stem}"' in page
    tables = sorted((written / "tables").glob("*.csv"))
    assert {path.stem for path in tables} >= {"summary", "quality-by-depth", "latency", "steps", "tests", "seeds", "pruning"}
    for path in tables:
        assert f'id="table-{path.stem}"' in page
        parquet = pd.read_parquet(path.with_suffix(".parquet"))
        pd.testing.assert_frame_equal(
            pd.read_csv(path, keep_default_na=False), pd.read_csv(_csv(parquet), keep_default_na=False)
        )
    ids = [part.split('"', 1)[0] for part in page.split(' id="')[1:]]
    assert len(ids) == len(set(ids))
    assert "<script" not in page
    assert "<img" not in page
    assert "src=" not in page.replace(EVIL.replace("<", "&lt;").replace(">", "&gt;"), "")


def _csv(frame: pd.DataFrame) -> io.StringIO:
    return io.StringIO(frame.to_csv(index=False))


def test_tables_hold_what_was_measured(written: Path, runs: Path, toy_dataset: Path, tmp_path: Path) -> None:
    tables = {path.stem: pd.read_csv(path, float_precision="round_trip") for path in (written / "tables").glob("*.csv")}
    expected = []
    for seed in (1, 2, 3):
        stage = load_stage(runs / f"seed{seed}" / "spt" / "checkpoints" / "best.ckpt")
        expected.append(
            trainer(tmp_path).test(stage, data(toy_dataset, eval_batch_size=1024), verbose=False)[0]["test/ndcg@10"]
        )
    (summary,) = tables["summary"].query("model == 'spt (3 seeds)' and metric == 'NDCG@10'").to_dict("records")
    assert summary["mean"] == pytest.approx(np.mean(expected), rel=1e-12)
    assert summary["sd over seeds"] == pytest.approx(np.std(expected, ddof=1), rel=1e-9)
    assert summary["low"] < summary["mean"] < summary["high"]
    assert set(tables["latency"]["model"]) == {"spt (3 seeds)", "sasrec"}  # RPT has SPT's architecture
    both = tables["protocols"].query("model == 'spt (3 seeds)'")
    assert both["items seen before"].tolist() == ["ranked", "left out"]
    assert both["NDCG@10"].iloc[0] == pytest.approx(np.mean(expected), rel=1e-9)
    assert both["NDCG@10"].iloc[1] > both["NDCG@10"].iloc[0]
    seeds = tables["seeds"].query("model == 'spt (3 seeds)' and metric == 'NDCG@10'")
    assert seeds["value"].tolist() == expected
    by_depth = tables["quality-by-depth"]
    assert set(by_depth["depth"]) == {1, 4, 6}
    assert "sasrec" not in set(by_depth["model"])  # of depth 0, a dashed line
    flat = tables["summary"].query("model == 'sasrec'")
    assert set(flat["depth"]) == {0}
    users = tables["steps-users"]
    assert (users[["better", "unchanged", "worse"]].sum(axis=1) - 1).abs().max() < 1e-9
    pairs = tables["tests"]
    assert len(pairs) == 3 * 3  # three pairs of groups, three metrics
    assert (pairs["p over users, corrected"] >= pairs["p over users"]).all()
    assert pairs["p over seeds"].isna().all()
    kept = tables["pruning"].query("by.str.startswith('items')", engine="python")
    rpt = load_stage(runs / "seed1" / "rpt" / "checkpoints" / "best.ckpt")
    assert isinstance(rpt, RPT)
    assert rpt.kept is not None
    assert (kept["kept"] * kept["instances"]).sum() == pytest.approx(rpt.kept.mask.sum())
    kinds = tables["quality-by-activity"].query("model == 'sasrec' and metric == 'MRR'")
    of_all = (kinds["mean"] * kinds["users"]).sum() / kinds["users"].sum()
    assert of_all == pytest.approx(flat.set_index("metric").loc["MRR", "mean"], rel=1e-5)


def test_a_report_is_written_atomically(written: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = [str(runs / EVIL)]
    quick: dict[str, Any] = {"timing": False, "bootstrap": 100, "device": "cpu"}
    before = (written / "report.html").read_bytes()
    with pytest.raises(LaresError, match="--overwrite true replaces it"):
        report(one, str(written), **quick)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")
    with pytest.raises(LaresError, match="contains no report"):
        report(one, str(tmp_path / "mine"), overwrite=True, **quick)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(command, "_write_table", full)
        with pytest.raises(LaresError, match="could not be written"):
            report(one, str(tmp_path / "new"), **quick)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]
    report(one, str(tmp_path / "new"), **quick)
    page = (tmp_path / "new" / "report.html").read_text()
    for missing in (
        "There is only one run",
        "only one depth (0)",
        "more than one step",
        "Latency was not measured",
        "No RPT run",
        "holds a pruned",
    ):
        assert missing in page
    (tmp_path / "link").symlink_to("new")
    report(one, str(tmp_path / "link"), overwrite=True, title="Again", **quick)
    assert (tmp_path / "link").is_symlink()
    assert "<h1>Again</h1>" in (tmp_path / "new" / "report.html").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "mine", "new"]
    assert (written / "report.html").read_bytes() == before


def test_runs_of_different_datasets_are_refused(runs: Path, tmp_path: Path) -> None:
    other = train(tmp_path / "b" / "spt", released_spt(), with_text(tmp_path), 1, max_steps=1)
    quick: dict[str, Any] = {"timing": False, "device": "cpu"}
    with pytest.raises(LaresError, match="different datasets"):
        report([str(runs / "seed1" / "spt"), str(other)], str(tmp_path / "report"), **quick)
    with pytest.raises(LaresError, match="another catalogue"):
        report([str(runs / "seed1" / "spt")], str(tmp_path / "report"), dataset=str(tmp_path / "text"), **quick)
    with pytest.raises(LaresError, match="start at 1"):
        report([str(runs / "seed1" / "spt")], str(tmp_path / "report"), depths="0,1", **quick)
    with pytest.raises(LaresError, match="numbers with commas"):
        report([str(runs / "seed1" / "spt")], str(tmp_path / "report"), depths="few", **quick)
    with pytest.raises(LaresError, match="--device tpu"):
        report([str(runs / "seed1" / "spt")], str(tmp_path / "report"), device="tpu")
    assert not (tmp_path / "report").exists()


def test_without_matplotlib_the_error_says_what_to_install(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(LaresError, match=r"pip install 'lares-pl\[report\]'"):
        report([str(runs)], str(tmp_path / "report"))


def test_several_runs_are_positional_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    from lares_pl.cli import main as cli

    given: dict[str, Any] = {}

    def report(runs: list[str], output: str = "report", timing: bool = True) -> None:
        given.update(runs=runs, output=output, timing=timing)

    monkeypatch.setattr(command, "report", report)
    monkeypatch.setattr(sys, "argv", ["lares", "report", "runs/a,b", "--output", "x", "runs/c d", "--timing=false", "e"])
    cli.main()
    assert given == {"runs": ["runs/a,b", "runs/c d", "e"], "output": "x", "timing": False}
