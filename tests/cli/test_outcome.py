"""The table of metrics that a run prints at its end."""

from __future__ import annotations

from typing import Any

from lares_pl import ResidualStop
from lares_pl.cli.outcome import metrics_text
from lares_pl.serialization import to_plain

BEFORE = {"checkpoint": "spt.ckpt", "metrics": {"test/ndcg@10": 0.2, "test/mrr": 0.0}}


def test_the_table_after_rpt_shows_the_change() -> None:
    report: dict[str, Any] = {"depth": 4, "before": BEFORE, "metrics": {"test/ndcg@10": 0.21, "test/mrr": 0.1}}
    assert metrics_text({**report, "initial_weights_kept": False}).splitlines() == [
        "test metrics at depth 4 before and after RPT",
        "  ndcg@10    0.2000 -> 0.2100  +5.0%",
        "  mrr        0.0000 -> 0.1000",
    ]


def test_the_table_after_rpt_states_that_the_initial_weights_were_kept() -> None:
    text = metrics_text({"depth": 4, "before": BEFORE, "metrics": BEFORE["metrics"], "initial_weights_kept": True})
    assert "%" not in text
    assert text.endswith("no validation after an update was better: the best checkpoint holds RPT's starting weights")


def test_the_heading_says_how_evaluation_reasoned() -> None:
    report = {"depth": 16, "stop": to_plain(ResidualStop(0.1)), "average_steps": True, "metrics": {"test/mrr": 0.5}}
    heading, *_ = metrics_text(report).splitlines()
    assert heading == "test metrics at depth 16 at most, stopped by ResidualStop (mean score of all steps)"


def test_metrics_of_a_single_checkpoint_have_no_change() -> None:
    assert metrics_text({"depth": 2, "metrics": {"val/mrr": 0.5}}) == "validation metrics at depth 2\n  mrr        0.5000"
