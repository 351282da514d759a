"""Sections on training: curves of both stages, and the training instances that pruning kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from lares_pl.errors import LaresError
from lares_pl.report.charts import Panel, Series, band_ticks, draw
from lares_pl.report.page import Section, Table
from lares_pl.report.statistics import quantile_bands
from lares_pl.report.study import Finding, Study

Logs = Mapping[str, list[pd.DataFrame]]  # by group, one log per seed


def read_log(folder: Path) -> pd.DataFrame | None:
    """Read the logged metrics of a run, by update; None if there are none.

    A run writes one file per start. Where files overlap, the later one that trained replaces the earlier; a file that only
    holds a test replaces nothing.

    Args:
        folder: directory of the stage.

    Raises:
        LaresError: if a file can't be read.
    """
    parts: list[pd.DataFrame] = []
    for path in sorted((folder / "metrics").glob("**/metrics.csv"), key=_version):
        try:
            part = pd.read_csv(path)
        except ValueError as error:
            raise LaresError(f"{path}: can't be read as CSV: {error}. Remove it to report without its curves") from error
        if "step" not in part:
            raise LaresError(f"{path}: has no column `step`. Remove it to report without its curves")
        if _trained(part):
            parts = [former[former["step"] < part["step"].min()] for former in parts]
        elif parts:
            part = part[part["step"] > max(former["step"].max() for former in parts if len(former))]
        if len(part):
            parts = [*(former for former in parts if len(former)), part]
    return pd.concat(parts, ignore_index=True) if parts else None


def _trained(log: pd.DataFrame) -> bool:
    """Whether a log has training metrics, not only those of a test."""
    return bool(log.filter(regex="^train/").notna().any(axis=None))


def _version(path: Path) -> tuple[int, str]:
    """Sort key that puts `version_10` after `version_9`."""
    number = path.parent.name.rsplit("_", 1)[-1]
    return (int(number) if number.isdigit() else 0, str(path))


def _logs(study: Study) -> Logs:
    logs: dict[str, list[pd.DataFrame]] = {}
    for group in study.groups:
        read = [read_log(f.source.folder) for f in group.findings if f.source.folder is not None]
        logs[group.label] = [log for log in read if log is not None]
    return logs


def _column(log: pd.DataFrame, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Updates and values of a logged metric."""
    if name not in log:
        return np.zeros(0), np.zeros(0)
    rows = log[["step", name]].dropna()
    return rows["step"].to_numpy(dtype=float) + 1, rows[name].to_numpy(dtype=float)


def smoothed(values: np.ndarray, parts: int = 40) -> np.ndarray:
    """Running mean over a window of 1/40 of the curve, shorter at the ends."""
    half = len(values) // (2 * parts)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    reach = np.minimum(half, np.minimum(index, len(values) - 1 - index))
    mean: np.ndarray = (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)
    return mean


def _curves(logs: Logs, name: str, smooth: bool) -> list[Series]:
    """One line per seed."""
    lines = []
    for label, of_group in logs.items():
        for log in of_group:
            updates, values = _column(log, name)
            if len(values) == 0:
                continue
            if smooth and len(values) > 80:
                if len(of_group) == 1:
                    lines.append(Series(label, updates, values, faint=True))
                values = smoothed(values)
            lines.append(Series(label, updates, values))
    return lines


def _panels(logs: Logs, wanted: Mapping[str, str], smooth: Callable[[str], bool]) -> list[Panel]:
    """One panel per logged metric."""
    panels = []
    for name, axis in wanted.items():
        if lines := _curves(logs, name, smooth(name)):
            panels.append(Panel("update", axis, lines, percent=axis.startswith("share")))
    return panels


def _missing(study: Study, logs: Logs) -> list[str]:
    without = [group.label for group in study.groups if not logs[group.label]]
    return [f"No metrics.csv was found for {', '.join(without)}."] if without else []


_SPT = {
    "train/loss": "training loss",
    "val/ndcg@10": "validation NDCG@10",
    "train/ce": "cross-entropy [nats]",
    "train/tla": "TLA loss",
    "train/sla": "SLA loss",
    "train/residual": "relative change of the last step",
}
_RPT = {
    "train/reward": "mean reward",
    "val/ndcg@10": "validation NDCG@10",
    "train/kl": "KL to the SPT model [nats]",
    "train/groups_without_variance": "share of groups without variance",
    "train/advantage_std": "standard deviation of advantages",
    "train/residual": "relative change of the last step",
}
_READING = (
    "One line per seed, by update (optimiser step). Curves with many points are smoothed by a running mean over 1/40 of their "
    "length; with a single seed the raw values are drawn in the background. Part of the variation of the loss comes from the "
    "depth that is drawn for each update."
)


def curves(study: Study) -> Section:
    """Training curves of supervised stages."""
    logs = _logs(study)
    missing = _missing(study, logs)
    supervised = {label: some for label, some in logs.items() if not any("train/reward" in log for log in some)}
    panels = _panels(supervised, _SPT, lambda name: name.startswith("train/"))
    title = "Training curves"
    if not panels:
        return Section(title, missing or ["None of the runs has a supervised stage."])
    chart = draw("training", "Training by update", _READING, panels, study.labels)
    return Section(title, missing, [chart], [Table("training", "Last values", *_last(supervised, _SPT))])


def reinforcement(study: Study) -> Section:
    """Reward, KL and groups without variance of RPT."""
    title = "Reinforcement post-training (RPT)"
    logs = {label: some for label, some in _logs(study).items() if any("train/reward" in log for log in some)}
    panels = _panels(logs, _RPT, lambda name: name.startswith("train/"))
    if not panels:
        return Section(title, ["No RPT run with a metrics.csv was given."])
    text = [
        "A group consists of the trajectories of one training instance. Advantages are rewards minus the mean of the group, "
        "divided by its standard deviation. A group whose rewards are all equal has zero advantages and contributes no reward "
        "signal; the share of such groups is shown. KL is the divergence from the frozen SPT model.",
        *_not_improved(study),
    ]
    chart = draw("reinforcement", "RPT by update", _READING, panels, study.labels)
    return Section(title, text, [chart], [Table("reinforcement", "Last values", *_last(logs, _RPT))])


def _not_improved(study: Study) -> list[str]:
    """A sentence on the RPT checkpoints that hold the weights RPT started from."""
    kept = [
        f"{group.label}, {finding.seed_name}"
        for group in study.groups
        for finding in group.findings
        if finding.source.checkpoint.stage_name == "RPT" and finding.source.checkpoint.holds_initial_weights()
    ]
    return [f"No update improved validation, so the checkpoint holds the initial weights: {'; '.join(kept)}."] if kept else []


def _last(logs: Logs, wanted: Mapping[str, str]) -> tuple[pd.DataFrame, str, pd.DataFrame]:
    """All curves as a table, its caption, and the final values for the page."""
    points, ends = [], []
    for label, of_group in logs.items():
        for number, log in enumerate(of_group, start=1):
            end: dict[str, object] = {"model": label, "curve": number}
            for name, axis in wanted.items():
                updates, values = _column(log, name)
                points.append(
                    pd.DataFrame({"model": label, "curve": number, "measure": name, "update": updates, "value": values})
                )
                if len(values):
                    end["updates"] = max(int(end.get("updates", 0)), int(updates[-1]))  # type: ignore[call-overload]
                    end[axis] = float(values[-max(1, len(values) // 20) :].mean())
            ends.append(end)
    caption = "The page shows means over the last 5 % of each curve; the full curves are in the files."
    return pd.concat(points, ignore_index=True), caption, pd.DataFrame(ends)


# ---------------------------------------------------------------- pruning


def pruning(study: Study) -> Section:
    """The training instances that RPT kept."""
    title = "Pruning"
    instances = len(study.population.sequences.training_instances)
    pruned = [(g.label, f) for g in study.groups for f in g.findings if f.kept is not None and len(f.kept.mask) == instances]
    if not pruned:
        return Section(title, ["None of the checkpoints holds a pruned set of this dataset's training instances (RPT's do)."])
    spans = study.population.sequences.training_instances.all()
    popularity = study.population.counts[study.population.sequences.targets(spans)]
    length = spans.ends - spans.starts
    by = {"popularity": ("target's training interactions", popularity), "history": ("items before the target", length)}
    frames, panels = [], []
    for axis, values in by.values():
        frame, panel = _kept_by(axis, values, pruned)
        frames.append(frame)
        panels.append(panel)
    frame = pd.concat(frames, ignore_index=True)
    shown = frame.groupby(["model", "by", "band"], sort=False).agg({"instances": "first", "kept": "mean"}).reset_index()
    shown["kept"] = [f"{share:.1%}" for share in shown["kept"]]
    return Section(
        title,
        [_rule(label, finding) for label, finding in pruned],
        [
            draw(
                "pruning",
                "Share of training instances kept, by popularity of the target and length of the history",
                "Instances are divided into bands of about equal size. Instances are left out if the SPT model ranks their "
                "target low in every pass.",
                panels,
                study.labels,
            )
        ],
        [Table("pruning", "Instances kept", frame, "Means over seeds; the values of each seed are in the files.", shown)],
    )


def _rule(label: str, finding: Finding) -> str:
    assert finding.kept is not None
    kept, of = int(finding.kept.mask.sum()), len(finding.kept.mask)
    rule = finding.pruning
    how = "" if rule is None else f" (target among the first {rule.top} in any of {rule.passes} passes)"
    return f"{label}, {finding.seed_name}: {kept:,} of {of:,} training instances were kept, {kept / of:.1%}{how}."


def _kept_by(axis: str, values: np.ndarray, pruned: Iterable[tuple[str, Finding]]) -> tuple[pd.DataFrame, Panel]:
    bands = quantile_bands(values)
    rows, shares = [], dict[str, list[np.ndarray]]()
    for label, finding in pruned:
        assert finding.kept is not None
        share = np.bincount(bands.of_user, finding.kept.mask, len(bands.labels)) / bands.sizes
        shares.setdefault(label, []).append(share)
        rows += [
            (label, finding.seed_name, axis, band, int(size), float(one))
            for band, size, one in zip(bands.labels, bands.sizes, share, strict=True)
        ]
    series = [Series(label, np.arange(len(bands.labels)), np.mean(by_seed, axis=0)) for label, by_seed in shares.items()]
    frame = pd.DataFrame(rows, columns=["model", "seed", "by", "band", "instances", "kept"])
    return frame, Panel(axis, "share kept", series, ticks=band_ticks(bands.labels), percent=True)
