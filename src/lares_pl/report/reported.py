"""Metrics that runs reported by themselves (`model.metrics`), beside those that a report computes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from lares_pl.evaluation.protocols import other_protocol
from lares_pl.report.measure import METRICS
from lares_pl.report.page import Table
from lares_pl.report.statistics import mean_and_spread
from lares_pl.report.study import GroupFindings, Study


def reported_metrics(study: Study) -> list[Table]:
    """A table of the metrics in the runs' `test.json` that are in no other table; none if there are none."""
    rows = [row for group in study.groups for row in _of_group(group)] if study.split == "test" else []
    if not rows:
        return []
    frame = pd.DataFrame(rows, columns=["model", "metric", "mean", "sd over seeds", "seeds"])
    shown = frame.pivot(index="metric", columns="model", values="mean").reindex(frame["metric"].unique()).reset_index()
    caption = "As the runs reported them (model.metrics) at their depth of evaluation, in test.json. Means over seeds."
    return [Table("reported-metrics", "Other metrics", frame, caption, shown[["metric", *frame["model"].unique()]])]


def _of_group(group: GroupFindings) -> Iterator[tuple[str, str, float, float, int]]:
    known = {prefix + name for name in METRICS for prefix in ("", other_protocol(group.exclude_seen))}
    reports = [_read(finding.source.folder, group.depth) for finding in group.findings]
    for name in dict.fromkeys(name for report in reports for name in report):
        if name not in known:
            values = [report[name] for report in reports if name in report]
            yield group.label, name, *mean_and_spread(values), len(values)


def _read(folder: Path | None, depth: int) -> dict[str, float]:
    """The metrics of a stage's test by their short names; none if it was not tested by the last of so many steps."""
    if folder is None or not (file := folder / "test.json").is_file():
        return {}
    report = json.loads(file.read_text(encoding="utf-8"))
    if report.get("depth") != depth or report.get("stop") or report.get("average_steps") or report.get("trajectories", 1) > 1:
        return {}
    return {name.removeprefix("test/"): value for name, value in report["metrics"].items()}
