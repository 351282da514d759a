"""The section on the effect of each step: on states, on the distribution over the catalogue, on ranks and on users."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from lares_pl.report.charts import Panel, Series, draw
from lares_pl.report.measure import values_of
from lares_pl.report.page import Chart, Section, Table, short
from lares_pl.report.study import Study

TITLE = "What each step changes"
_IN_FILES = "The page shows the first steps and the depths of the other tables; all steps and quartiles are in the files."
QUANTILES = {"lower quartile": 0.25, "median": 0.5, "upper quartile": 0.75}
_MEASURES = {
    "residual": "relative change of the state",
    "cosine": "cosine of consecutive states",
    "kl": "KL divergence [nats]",
    "entropy": "entropy [nats]",
    "ranks": "rank of the target",
}


def steps(study: Study) -> Section:
    """What changes from one step to the next."""
    if not any(len(group.steps) > 1 for group in study.groups):
        return Section(TITLE, ["None of these models makes more than one step."])
    by_step, by_users = _by_step(study), _by_users(study)
    groups = [group for group in study.recurrent if len(group.steps) > 1]
    largest = np.log(study.population.sequences.catalogue_size + 1)
    return Section(
        TITLE,
        [
            "The state is the user state that items are scored with, at the last position of each history; the distribution "
            "is the softmax over the catalogue, as in training. The initial state (noise or zero) ranks nothing, so changes "
            "begin with step 2. Medians and quartiles are over users"
            + (" and seeds." if any(len(group.findings) > 1 for group in groups) else "."),
        ],
        [_movement(study, by_step), _ranks(study, by_step, largest), *_changes(study, by_users)],
        [
            Table("steps", "By step", by_step, f"Medians over users. {_IN_FILES}", _medians(study, by_step)),
            Table(
                "steps-users",
                "Users helped and hurt by each step",
                by_users,
                "Shares of users, relative to the previous step. Better and worse count any change of the target's rank, the "
                f"last two columns only changes of NDCG@10. {_IN_FILES}",
                _some_steps(study, by_users.assign(**{name: [f"{share:.1%}" for share in by_users[name]] for name in _SHARES})),
            ),
        ],
    )


def _by_step(study: Study) -> pd.DataFrame:
    """One row per group, step and measure: quantiles and mean over users and seeds."""
    rows = []
    for group in study.recurrent:
        for name, measure in _MEASURES.items():
            values = group.pooled(name)
            for number, step in enumerate(group.steps):
                of_step = values[:, number].astype(np.float64)
                if not np.isnan(of_step).all():
                    rows.append((group.label, int(step), measure, *np.quantile(of_step, [*QUANTILES.values()]), of_step.mean()))
    return pd.DataFrame(rows, columns=["model", "step", "measure", *QUANTILES, "mean"])


def _some_steps(study: Study, frame: pd.DataFrame) -> pd.DataFrame:
    """The rows shown on the page, in order: steps up to twice the depth of evaluation, and the depths of the other tables."""
    shown = {group.label: {*range(1, 2 * group.depth + 1), *group.depths} for group in study.recurrent}
    frame = frame[[step in shown[label] for label, step in zip(frame["model"], frame["step"], strict=True)]]
    return frame.sort_values(["model", "step"], key=lambda of: of.map(study.labels.index) if of.name == "model" else of)


def _medians(study: Study, by_step: pd.DataFrame) -> pd.DataFrame:
    wide = by_step.pivot(index=["model", "step"], columns="measure", values="median")[list(_MEASURES.values())].reset_index()
    wide = _some_steps(study, wide)
    formats: dict[str, Callable[[float], str]] = dict.fromkeys(_MEASURES.values(), short)
    formats[_MEASURES["cosine"]] = lambda value: "–" if np.isnan(value) else f"{value:.5f}"
    formats[_MEASURES["ranks"]] = lambda value: f"{value:,.1f}".removesuffix(".0")
    wide = wide.assign(**{name: wide[name].map(formatted) for name, formatted in formats.items()})
    headings = ("change of state", "cosine", "KL [nats]", "entropy [nats]", "rank")
    return wide.rename(columns=dict(zip(_MEASURES.values(), headings, strict=True)))


def _series(study: Study, by_step: pd.DataFrame, name: str) -> list[Series]:
    lines = []
    for group in study.recurrent:
        of = by_step[(by_step["model"] == group.label) & (by_step["measure"] == _MEASURES[name])]
        step, median, low, high = of[["step", "median", "lower quartile", "upper quartile"]].to_numpy(dtype=float).T
        lines.append(Series(group.label, step, median, low, high))
    return [line for line in lines if len(line.x)]


def _panel(study: Study, y: str, series: list[Series], title: str = "", log_y: bool = False, percent: bool = False) -> Panel:
    return Panel("reasoning step", y, series, title, log_y=log_y, percent=percent, marked=study.common_depth)


def _movement(study: Study, by_step: pd.DataFrame) -> Chart:
    kl, residual = _series(study, by_step, "kl"), _series(study, by_step, "residual")
    return draw(
        "step-movement",
        "Change of the state and of the distribution in each step",
        "Left: |z(t) − z(t−1)| / |z(t)|. Right: KL(p(t) ‖ p(t−1)). Lines are medians over users, bands are quartiles. A "
        "falling line means that the iteration converges; levels near 10⁻⁷ (left) and 10⁻¹³ (right) are rounding errors.",
        [
            _panel(study, _MEASURES["residual"], residual, log_y=_positive(residual)),
            _panel(study, _MEASURES["kl"], kl, log_y=_positive(kl)),
        ],
        study.labels,
    )


def _positive(series: list[Series]) -> bool:
    """Whether a logarithmic axis can show all values."""
    return all(np.nanmin(np.asarray(line.low)) > 0 for line in series)


def _ranks(study: Study, by_step: pd.DataFrame, largest: float) -> Chart:
    return draw(
        "step-rank",
        "Rank of the target and entropy by step",
        "Left: rank of the target, 1 is best. Right: entropy of the distribution over the catalogue; a uniform distribution "
        f"has {largest:.2f}. Lines are medians over users, bands are quartiles.",
        [
            _panel(study, _MEASURES["ranks"], _series(study, by_step, "ranks"), log_y=True),
            _panel(study, _MEASURES["entropy"], _series(study, by_step, "entropy")),
        ],
        study.labels,
    )


# ---------------------------------------------------------------- users helped and hurt

_SHARES = ["better", "unchanged", "worse", "NDCG@10 up", "NDCG@10 down"]


def _by_users(study: Study) -> pd.DataFrame:
    """One row per group and step, from the second step: shares of users."""
    rows = []
    for group in study.recurrent:
        ranks = group.pooled("ranks")
        gain = np.diff(values_of("ndcg@10", ranks), axis=1)
        change = np.diff(ranks, axis=1)
        for number, step in enumerate(group.steps[1:]):
            change_of_step = change[:, number]
            shares = [(change_of_step < 0).mean(), (change_of_step == 0).mean(), (change_of_step > 0).mean()]
            shares += [(gain[:, number] > 0).mean(), (gain[:, number] < 0).mean()]
            rows.append((group.label, int(step), *map(float, shares)))
    return pd.DataFrame(rows, columns=["model", "step", *_SHARES])


def _changes(study: Study, by_users: pd.DataFrame) -> list[Chart]:
    def lines(column: str) -> list[Series]:
        parts = [(group, by_users[by_users["model"] == group.label]) for group in study.recurrent]
        return [Series(group.label, of["step"].to_numpy(), of[column].to_numpy()) for group, of in parts if len(of)]

    def panels(titles: dict[str, str]) -> list[Panel]:
        return [_panel(study, "share of users", lines(name), title=title, percent=True) for name, title in titles.items()]

    return [
        draw(
            "step-users-rank",
            "Users whose target moves up, stays or moves down in each step",
            "Relative to the previous step; any change of rank counts, however far from the top.",
            panels({"better": "moves up", "unchanged": "stays", "worse": "moves down"}),
            study.labels,
            columns=3,
        ),
        draw(
            "step-users-ndcg",
            "Users whose NDCG@10 rises or falls in each step",
            "Relative to the previous step; only changes of rank within the first ten, or into or out of them, count.",
            panels({"NDCG@10 up": "helped: NDCG@10 rises", "NDCG@10 down": "hurt: NDCG@10 falls"}),
            study.labels,
        ),
    ]
