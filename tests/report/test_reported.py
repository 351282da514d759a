"""Metrics that runs reported by themselves are in the report, averaged over seeds."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lares_pl.report.reported import reported_metrics


def group(label: str, folders: list[Path | None], depth: int = 4) -> Any:
    findings = [SimpleNamespace(source=SimpleNamespace(folder=folder)) for folder in folders]
    return SimpleNamespace(label=label, findings=findings, depth=depth, exclude_seen=False)


def run(folder: Path, metrics: dict[str, float], depth: int = 4, **reasoning: Any) -> Path:
    folder.mkdir(parents=True)
    values = {f"test/{name}": value for name, value in metrics.items()}
    (folder / "test.json").write_text(json.dumps({"depth": depth, **reasoning, "metrics": values}))
    return folder


def test_metrics_beyond_those_of_the_report_are_means_over_seeds(tmp_path: Path) -> None:
    own = {"ndcg@10": 0.5, "unseen/ndcg@10": 0.6}
    first = run(tmp_path / "1", own | {"coverage@10": 0.2, "unseen/map@10": 0.1})
    second = run(tmp_path / "2", own | {"coverage@10": 0.4}, stop=None, trajectories=1, average_steps=False)
    other_depth = run(tmp_path / "3", {"coverage@10": 0.9}, depth=8)
    averaged = run(tmp_path / "4", {"coverage@10": 0.9}, stop=None, trajectories=1, average_steps=True)
    several = run(tmp_path / "5", {"coverage@10": 0.9}, stop=None, trajectories=2, average_steps=False)
    groups = [group("spt (2 seeds)", [first, second]), group("rpt", [other_depth, averaged, several]), group("file", [None])]
    (table,) = reported_metrics(SimpleNamespace(groups=groups, split="test"))  # type: ignore[arg-type]
    assert table.frame["metric"].tolist() == ["coverage@10", "unseen/map@10"]
    assert table.frame["mean"].tolist() == pytest.approx([0.3, 0.1])
    assert table.frame["seeds"].tolist() == [2, 1]
    assert table.shown is not None
    assert list(table.shown.columns) == ["metric", "spt (2 seeds)"]
    assert reported_metrics(SimpleNamespace(groups=groups, split="val")) == []  # type: ignore[arg-type]
    assert reported_metrics(SimpleNamespace(groups=groups[1:], split="test")) == []  # type: ignore[arg-type]
