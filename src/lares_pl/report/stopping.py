"""The section on stopping by itself: quality against mean depth, thresholds beside fixed depths."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lares_pl.report.charts import Panel, Series, draw
from lares_pl.report.measure import Measured, values_of
from lares_pl.report.page import Section, Table
from lares_pl.report.study import GroupFindings, Study

TITLE = "Stopping by itself"
METRIC = "ndcg@10"
_SAVING = 0.005  # less would read as 0 %
KEPT = 0.995  # of the quality at the depth of evaluation
#: what is followed, by the rule that stops by it, and its thresholds
RULES = {
    "ResidualStop": ("residual", (1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)),
    "DivergenceStop": ("kl", (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001, 0.00001)),
}
FIXED = "fixed depth"


def stopped_at(change: np.ndarray, threshold: float, least: int = 2) -> np.ndarray:
    """The step at which each user's trajectory ends, as `lares_pl.model.reasoning` ends it, `[U]`.

    Args:
        change: of each step, `[U, T]`.
        threshold: a smaller change ends the trajectory.
        least: number of steps made in any case.
    """
    arrived = change < threshold
    arrived[:, : least - 1] = False
    arrived[:, -1] = True
    steps: np.ndarray = arrived.argmax(axis=1) + 1
    return steps


def stopping(study: Study) -> Section:
    """Each user's trajectory ends once a step changes it little; what that saves, and what it costs."""
    groups = [group for group in study.recurrent if len(group.steps) > 2]
    if not groups:
        return Section(TITLE, ["No model here makes more than two steps, so none could stop earlier."])
    curves = pd.concat([_curve(group) for group in groups], ignore_index=True)
    panels = []
    for group in groups:
        of_group = curves[curves["model"] == group.label]
        lines = []
        for rule, points in of_group.groupby("rule", sort=False):
            points = points.sort_values("mean steps")
            lines.append(Series(str(rule), points["mean steps"].to_numpy(), points["NDCG@10"].to_numpy()))
        panels.append(Panel("mean reasoning steps", "NDCG@10", lines, group.label, log_x=True, marked=group.depth))
    return Section(
        TITLE,
        [
            "A rule ends each user's trajectory once a step changes the state (ResidualStop) or the distribution over the "
            "catalogue (DivergenceStop) by less than a threshold, and the user leaves the batch: `lares test --depth "
            f"{int(groups[0].steps[-1])} --stop lares_pl.ResidualStop --stop.threshold 0.05`.",
            *(_verdict(group, curves[curves["model"] == group.label]) for group in groups),
        ],
        [
            draw(
                "stopping",
                "Quality against mean depth: thresholds beside fixed depths",
                "Each point of a rule is one threshold, at the mean number of steps that it leads to. A rule pays where its "
                "line lies above that of fixed depths. The dotted line is the depth of evaluation.",
                panels,
                [FIXED, *RULES],
            )
        ],
        [
            Table(
                "stopping",
                "Thresholds and fixed depths",
                curves,
                "Means over users and seeds; on the page those that make no more steps than the depth of evaluation.",
                _shown(curves[curves["steps saved"] >= 0]),
            )
        ],
    )


def _curve(group: GroupFindings) -> pd.DataFrame:
    rows = []
    for column, depth in enumerate(group.steps):
        rows.append((FIXED, np.nan, float(depth), _mean([_quality(f.measured)[:, column] for f in group.findings])))
    for rule, (name, thresholds) in RULES.items():
        for threshold in thresholds:
            steps = [stopped_at(getattr(f.measured, name), threshold) for f in group.findings]
            quality = [_at(_quality(f.measured), made) for f, made in zip(group.findings, steps, strict=True)]
            rows.append((rule, threshold, _mean(steps), _mean(quality)))
    frame = pd.DataFrame(rows, columns=["rule", "threshold", "mean steps", "NDCG@10"])
    frame.insert(0, "model", group.label)
    own = frame[(frame["rule"] == FIXED) & (frame["mean steps"] == group.depth)]["NDCG@10"].item()
    frame["share kept"] = frame["NDCG@10"] / own
    frame["steps saved"] = 1 - frame["mean steps"] / group.depth
    return frame


def _quality(measured: Measured) -> np.ndarray:
    return values_of(METRIC, measured.ranks)


def _at(values: np.ndarray, steps: np.ndarray) -> np.ndarray:
    chosen: np.ndarray = values[np.arange(len(values)), steps - 1]
    return chosen


def _mean(parts: list[np.ndarray]) -> float:
    return float(np.concatenate(parts).mean(dtype=np.float64))


def _verdict(group: GroupFindings, curve: pd.DataFrame) -> str:
    """The fewest steps that keep nearly all of the quality, by each rule."""
    said = []
    for rule in (FIXED, *RULES):
        enough = curve[(curve["rule"] == rule) & (curve["share kept"] >= KEPT) & (curve["steps saved"] >= _SAVING)]
        if enough.empty:
            said.append(f"{rule}: none with fewer steps")
            continue
        fewest = enough.sort_values("mean steps").head(1)
        threshold, steps, _, kept, saved = fewest.iloc[0, 2:].astype(float)
        at = "" if rule == FIXED else f" (threshold {threshold:g})"
        said.append(f"{rule}: {steps:.2f}{at}, {kept:.1%} kept, {saved:.0%} fewer steps")
    return (
        f"{group.label}: fewest mean steps that keep {KEPT:.1%} of the NDCG@10 at depth {group.depth}. {'; '.join(said)}. "
        "(Thresholds are read off the same users, so the choice is a little too good.)"
    )


def _shown(curves: pd.DataFrame) -> pd.DataFrame:
    frame = curves.copy()
    frame["threshold"] = ["–" if np.isnan(value) else f"{value:g}" for value in frame["threshold"]]
    frame["mean steps"] = [f"{value:.2f}" for value in frame["mean steps"]]
    frame["NDCG@10"] = [f"{value:.4f}" for value in frame["NDCG@10"]]
    for name in ("share kept", "steps saved"):
        frame[name] = [f"{value:z.1%}" for value in frame[name]]
    return frame
