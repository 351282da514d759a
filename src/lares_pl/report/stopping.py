"""The section on stopping rules: quality against mean depth, for thresholds and for fixed depths."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lares_pl.report.charts import Panel, Series, draw
from lares_pl.report.measure import Measured, values_of
from lares_pl.report.page import Section, Table
from lares_pl.report.study import GroupFindings, Study

TITLE = "Fixed depth against stopping rules"
METRIC = "ndcg@10"
_MIN_SAVING = 0.005  # a smaller share of steps would be shown as 0 %
KEPT = 0.995  # share of the quality at the depth of evaluation
#: the measure that each rule compares with its threshold, and the thresholds
RULES = {
    "ResidualStop": ("residual", (1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)),
    "DivergenceStop": ("kl", (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001, 0.00001)),
}
FIXED = "fixed depth"


def stopped_at(change: np.ndarray, threshold: float, min_steps: int = 2) -> np.ndarray:
    """The step at which each user's trajectory ends under the rules of `lares_pl.model.reasoning`, `[U]`.

    Args:
        change: change in each step, `[U, T]`.
        threshold: a smaller change ends the trajectory.
        min_steps: steps made in any case.
    """
    ends = change < threshold
    ends[:, : min_steps - 1] = False
    ends[:, -1] = True
    steps: np.ndarray = ends.argmax(axis=1) + 1
    return steps


def stopping(study: Study) -> Section:
    """Steps saved and quality lost if each user's trajectory ends at its first small change."""
    groups = [group for group in study.recurrent if len(group.steps) > 2]
    if not groups:
        return Section(TITLE, ["None of these models makes more than two steps, so no rule could stop earlier."])
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
            "A rule ends a user's trajectory once a step changes the state (ResidualStop) or the distribution over the "
            "catalogue (DivergenceStop) by less than a threshold; the user is then removed from the batch. To use one: "
            f"`lares test --depth {int(groups[0].steps[-1])} --stop lares_pl.ResidualStop --stop.threshold 0.05`.",
            *(_verdict(group, curves[curves["model"] == group.label]) for group in groups),
        ],
        [
            draw(
                "stopping",
                "Quality against mean depth, for stopping rules and fixed depths",
                "Each point of a rule is one threshold, at its mean number of steps. A rule is worth using where its line is "
                "above that of fixed depths. The dotted line is the depth of evaluation.",
                panels,
                [FIXED, *RULES],
            )
        ],
        [
            Table(
                "stopping",
                "Thresholds and fixed depths",
                curves,
                "Means over users and seeds. The page shows the rows with no more steps than the depth of evaluation.",
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
    at_depth = frame[(frame["rule"] == FIXED) & (frame["mean steps"] == group.depth)]["NDCG@10"].item()
    frame["share kept"] = frame["NDCG@10"] / at_depth
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
    """State the fewest steps that keep nearly all of the quality, for each rule."""
    verdicts = []
    for rule in (FIXED, *RULES):
        enough = curve[(curve["rule"] == rule) & (curve["share kept"] >= KEPT) & (curve["steps saved"] >= _MIN_SAVING)]
        if enough.empty:
            verdicts.append(f"{rule}: none with fewer steps")
            continue
        fewest = enough.sort_values("mean steps").head(1)
        threshold, steps, _, kept, saved = fewest.iloc[0, 2:].astype(float)
        at = "" if rule == FIXED else f" (threshold {threshold:g})"
        verdicts.append(f"{rule}: {steps:.2f}{at}, {kept:.1%} kept, {saved:.0%} fewer steps")
    return (
        f"{group.label}: fewest mean steps that keep {KEPT:.1%} of the NDCG@10 at depth {group.depth}. {'; '.join(verdicts)}. "
        "(Thresholds are chosen on the same users, so this estimate is slightly optimistic.)"
    )


def _shown(curves: pd.DataFrame) -> pd.DataFrame:
    frame = curves.copy()
    frame["threshold"] = ["–" if np.isnan(value) else f"{value:g}" for value in frame["threshold"]]
    frame["mean steps"] = [f"{value:.2f}" for value in frame["mean steps"]]
    frame["NDCG@10"] = [f"{value:.4f}" for value in frame["NDCG@10"]]
    for name in ("share kept", "steps saved"):
        frame[name] = [f"{value:z.1%}" for value in frame[name]]
    return frame
