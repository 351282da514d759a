"""The section on what the steps do: to states, to the distribution over the catalogue, to the target's rank, to users."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from lares_pl.report.charts import Panel, Series, draw
from lares_pl.report.measure import values_of
from lares_pl.report.page import Chart, Section, Table, short
from lares_pl.report.study import Study

TITLE = "What the steps do"
_IN_FILES = "The page shows the first steps and the depths above; every step and the quartiles are in the files."
QUANTILES = {"lower quartile": 0.25, "median": 0.5, "upper quartile": 0.75}
_WHAT = {
    "residual": "relative change of the state",
    "cosine": "cosine of consecutive states",
    "kl": "KL divergence [nats]",
    "entropy": "entropy [nats]",
    "ranks": "rank of the target",
}


def steps(study: Study) -> Section:
    """What changes from one step to the next."""
    if not any(len(group.steps) > 1 for group in study.groups):
        return Section(TITLE, ["No model here makes more than one step, so there is nothing to follow from step to step."])
    probes, fates = _probes(study), _fates(study)
    groups = [group for group in study.recurrent if len(group.steps) > 1]
    largest = np.log(study.population.sequences.catalogue_size + 1)
    return Section(
        TITLE,
        [
            "What is followed is the state that ranks, at the last item of each user's history, and the distribution over the "
            "catalogue that it stands for (the softmax of training). Step 1 starts from noise, so differences between steps "
            "begin with step 2. Medians and quartiles are over users"
            + (" and seeds." if any(len(group.findings) > 1 for group in groups) else "."),
        ],
        [_movement(study, probes), _ranks(study, probes, largest), *_changes(study, fates)],
        [
            Table("steps", "By step", probes, f"Medians over users. {_IN_FILES}", _medians(study, probes)),
            Table(
                "steps-users",
                "Users helped and hurt by each step",
                fates,
                "Shares of users, against the step before; better and worse count any change of the target's rank, the last "
                f"two only changes of NDCG@10. {_IN_FILES}",
                _some_steps(study, fates.assign(**{name: [f"{share:.1%}" for share in fates[name]] for name in _SHARES})),
            ),
        ],
    )


def _probes(study: Study) -> pd.DataFrame:
    """A row for each group, step and thing measured: quantiles and mean over users and seeds."""
    rows = []
    for group in study.recurrent:
        for name, what in _WHAT.items():
            values = group.pooled(name)
            for number, step in enumerate(group.steps):
                of_step = values[:, number].astype(np.float64)
                if not np.isnan(of_step).all():
                    rows.append((group.label, int(step), what, *np.quantile(of_step, [*QUANTILES.values()]), of_step.mean()))
    return pd.DataFrame(rows, columns=["model", "step", "measure", *QUANTILES, "mean"])


def _some_steps(study: Study, frame: pd.DataFrame) -> pd.DataFrame:
    """For the page: all steps up to twice the depth of evaluation, behind it the depths of the other tables; in order."""
    shown = {group.label: {*range(1, 2 * group.depth + 1), *group.depths} for group in study.recurrent}
    frame = frame[[step in shown[label] for label, step in zip(frame["model"], frame["step"], strict=True)]]
    return frame.sort_values(["model", "step"], key=lambda of: of.map(study.labels.index) if of.name == "model" else of)


def _medians(study: Study, probes: pd.DataFrame) -> pd.DataFrame:
    wide = probes.pivot(index=["model", "step"], columns="measure", values="median")[list(_WHAT.values())].reset_index()
    wide = _some_steps(study, wide)
    digits: dict[str, Callable[[float], str]] = dict.fromkeys(_WHAT.values(), short)
    digits[_WHAT["cosine"]] = lambda value: "–" if np.isnan(value) else f"{value:.5f}"
    digits[_WHAT["ranks"]] = lambda value: f"{value:,.1f}".removesuffix(".0")
    wide = wide.assign(**{name: wide[name].map(show) for name, show in digits.items()})
    headings = ("change of state", "cosine", "KL [nats]", "entropy [nats]", "rank")
    return wide.rename(columns=dict(zip(_WHAT.values(), headings, strict=True)))


def _series(study: Study, probes: pd.DataFrame, what: str) -> list[Series]:
    lines = []
    for group in study.recurrent:
        of = probes[(probes["model"] == group.label) & (probes["measure"] == what)]
        step, middle, low, high = of[["step", "median", "lower quartile", "upper quartile"]].to_numpy(dtype=float).T
        lines.append(Series(group.label, step, middle, low, high))
    return [line for line in lines if len(line.x)]


def _panel(study: Study, y: str, series: list[Series], title: str = "", log_y: bool = False, percent: bool = False) -> Panel:
    return Panel("reasoning step", y, series, title, log_y=log_y, percent=percent, marked=study.common_depth)


def _movement(study: Study, probes: pd.DataFrame) -> Chart:
    kl, residual = _series(study, probes, _WHAT["kl"]), _series(study, probes, _WHAT["residual"])
    return draw(
        "step-movement",
        "How far each step moves the state and the distribution",
        "Left: |z(t) − z(t−1)| / |z(t)|. Right: KL(p(t) ‖ p(t−1)), what step t adds. Lines are medians over users, bands "
        "quartiles. Lines that fall are iterations that settle; levels near 10⁻⁷ and 10⁻¹³ are rounding.",
        [
            _panel(study, _WHAT["residual"], residual, log_y=_positive(residual)),
            _panel(study, _WHAT["kl"], kl, log_y=_positive(kl)),
        ],
        study.labels,
    )


def _positive(series: list[Series]) -> bool:
    """Whether a logarithmic axis can show them."""
    return all(np.nanmin(np.asarray(line.low)) > 0 for line in series)


def _ranks(study: Study, probes: pd.DataFrame, largest: float) -> Chart:
    return draw(
        "step-rank",
        "Rank of the target and entropy by step",
        "Left: rank of the target, 1 is best. Right: entropy of the distribution over the catalogue; lower is surer, uniform "
        f"would be {largest:.2f}. Lines are medians over users, bands quartiles.",
        [
            _panel(study, _WHAT["ranks"], _series(study, probes, _WHAT["ranks"]), log_y=True),
            _panel(study, _WHAT["entropy"], _series(study, probes, _WHAT["entropy"])),
        ],
        study.labels,
    )


# ---------------------------------------------------------------- users helped and hurt

_SHARES = ["better", "unchanged", "worse", "NDCG@10 up", "NDCG@10 down"]


def _fates(study: Study) -> pd.DataFrame:
    """A row for each group and step from the second on: shares of users."""
    rows = []
    for group in study.recurrent:
        ranks = group.pooled("ranks")
        gain = np.diff(values_of("ndcg@10", ranks), axis=1)
        change = np.diff(ranks, axis=1)
        for number, step in enumerate(group.steps[1:]):
            moved = change[:, number]
            shares = [(moved < 0).mean(), (moved == 0).mean(), (moved > 0).mean()]
            shares += [(gain[:, number] > 0).mean(), (gain[:, number] < 0).mean()]
            rows.append((group.label, int(step), *map(float, shares)))
    return pd.DataFrame(rows, columns=["model", "step", *_SHARES])


def _changes(study: Study, fates: pd.DataFrame) -> list[Chart]:
    def lines(column: str) -> list[Series]:
        parts = [(group, fates[fates["model"] == group.label]) for group in study.recurrent]
        return [Series(group.label, of["step"].to_numpy(), of[column].to_numpy()) for group, of in parts if len(of)]

    def panels(titles: dict[str, str]) -> list[Panel]:
        return [_panel(study, "share of users", lines(name), title=title, percent=True) for name, title in titles.items()]

    return [
        draw(
            "step-users-rank",
            "Users whose target each step moves up, leaves, or moves down",
            "Against the step before; any change of rank counts, near the top or far below it.",
            panels({"better": "moves up", "unchanged": "stays", "worse": "moves down"}),
            study.labels,
            columns=3,
        ),
        draw(
            "step-users-ndcg",
            "Users helped and hurt where it counts",
            "Against the step before; only changes of NDCG@10 count, within the first ten or across their edge. All other "
            "users see the same value as before.",
            panels({"NDCG@10 up": "helped: NDCG@10 rises", "NDCG@10 down": "hurt: NDCG@10 falls"}),
            study.labels,
        ),
    ]
