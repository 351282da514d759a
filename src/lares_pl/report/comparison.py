"""The section that compares runs: means and standard deviations over seeds, and significance tests."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

from lares_pl.report.charts import Panel, Series, draw
from lares_pl.report.page import Chart, Section, Table, p_value
from lares_pl.report.quality import NAMES, PLOTTED
from lares_pl.report.statistics import bootstrap_means, holm, mean_and_spread, seed_test, sign_flip_test
from lares_pl.report.study import GroupFindings, Study

TITLE = "Comparison of runs"
SIGN_FLIPS = 10_000
_DECIMALS = 9  # smaller differences of a user are rounding errors


def comparison(study: Study) -> Section:
    """Means and standard deviations over seeds, and paired tests of all pairs of configurations."""
    if len(study.groups) == 1 and len(study.groups[0].findings) == 1:
        return Section(TITLE, ["There is only one run. Name several to compare them on the same users."])
    seeds = _seeds(study)
    charts = [_chart(study)] if any(len(group.findings) > 1 for group in study.groups) else []
    tables = [Table("seeds", "By configuration", seeds, "Mean ± standard deviation over seeds.", _seeds_page(study, seeds))]
    text = [
        "Runs whose configurations differ only in seed and name form a group, one row below. All are compared on the same "
        "users, each at its own depth of evaluation."
    ]
    if len(study.groups) > 1:
        tests = _tests(study)
        text += _assumptions(study, tests)
        tables.append(Table("tests", "Differences between configurations", tests, _TESTS_CAPTION, _tests_page(tests)))
    return Section(TITLE, text, charts, tables)


# ---------------------------------------------------------------- seeds


def _seeds(study: Study) -> pd.DataFrame:
    rows = []
    for group in study.groups:
        for metric, name in NAMES.items():
            for finding in group.findings:
                rows.append(
                    (group.label, finding.source.name, finding.seed_name, name, finding.measured.metrics(group.depth)[metric])
                )
    return pd.DataFrame(rows, columns=["model", "run", "seed", "metric", "value"])


def _seeds_page(study: Study, seeds: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for group in study.groups:
        row: dict[str, object] = {"model": group.label}
        for metric in PLOTTED:
            mean, spread = mean_and_spread(group.by_seed(metric, group.depth))
            row[NAMES[metric]] = f"{mean:.4f}" + ("" if np.isnan(spread) else f" ± {spread:.4f}")
        of = seeds[(seeds["model"] == group.label) & (seeds["metric"] == "NDCG@10")]
        row["NDCG@10 by seed"] = "; ".join(f"{s}: {value:.4f}" for s, value in zip(of["seed"], of["value"], strict=True))
        rows.append(row)
    return pd.DataFrame(rows)


def _chart(study: Study) -> Chart:
    labelled = len(study.groups) <= 4  # the legend has to do for more
    ticks = [label.replace(" (", "\n(") if labelled else "" for label in study.labels]
    panels = []
    for metric in PLOTTED[:2]:
        lines = []
        for number, group in enumerate(study.groups):
            values = group.by_seed(metric, group.depth)
            positions = number + (np.arange(len(values)) - (len(values) - 1) / 2) * 0.12
            lines.append(Series(group.label, positions, values))
        panels.append(Panel("", NAMES[metric], lines, ticks=ticks))
    return draw(
        "seeds",
        "Every run",
        "One point per run; runs that differ only in their seed are side by side. Differences between groups that are no "
        "larger than the spread within a group may be due to the seed.",
        panels,
        study.labels,
    )


# ---------------------------------------------------------------- tests

_TESTS_CAPTION = (
    "Difference: second minus first, with 95 % bootstrap interval over users. p over users: sign-flip permutation test. "
    "p over seeds: t-test; – if either side has fewer than three seeds. In brackets: after Holm's correction."
)


def _tests(study: Study) -> pd.DataFrame:
    rows = []
    for first, second in combinations(study.groups, 2):
        for metric in PLOTTED:
            rows.append(_test(study, first, second, metric))
    frame = pd.DataFrame(rows)
    frame["p over users, corrected"] = holm(frame["p over users"].to_numpy())
    known = frame["p over seeds"].notna().to_numpy()
    frame["p over seeds, corrected"] = np.nan
    if known.any():
        frame.loc[known, "p over seeds, corrected"] = holm(frame.loc[known, "p over seeds"].to_numpy())
    return frame


def _test(study: Study, first: GroupFindings, second: GroupFindings, metric: str) -> dict[str, object]:
    differences = np.round(second.by_user(metric, [second.depth]) - first.by_user(metric, [first.depth]), _DECIMALS)
    low, high = np.quantile(bootstrap_means(differences, study.resamples)[:, 0], [0.025, 0.975])
    of_seeds = seed_test(_by_seed(first, metric), _by_seed(second, metric))
    return {
        "first": first.label,
        "second": second.label,
        "metric": NAMES[metric],
        "difference": float(differences.mean()),
        "low": float(low),
        "high": float(high),
        "users that differ": int((differences != 0).sum()),
        "p over users": float(sign_flip_test(differences, SIGN_FLIPS)[0]),
        "p over seeds": np.nan if of_seeds is None else of_seeds.p_value,
        "seeds paired": "–" if of_seeds is None else "yes" if of_seeds.paired else "no",
    }


def _by_seed(group: GroupFindings, metric: str) -> dict[int, float]:
    values = zip(group.findings, group.by_seed(metric, group.depth), strict=True)
    return {finding.source.seed: value for finding, value in values if finding.source.seed is not None}


def _tests_page(tests: pd.DataFrame) -> pd.DataFrame:
    def with_correction(name: str) -> list[str]:
        pairs = zip(tests[name], tests[f"{name}, corrected"], strict=True)
        return ["–" if np.isnan(one) else f"{p_value(one)} ({p_value(corrected)})" for one, corrected in pairs]

    intervals = zip(tests["difference"], tests["low"], tests["high"], strict=True)
    return pd.DataFrame(
        {
            "first": tests["first"],
            "second": tests["second"],
            "metric": tests["metric"],
            "difference": [f"{value:+.4f} [{low:+.4f}, {high:+.4f}]" for value, low, high in intervals],
            "p over users (Holm)": with_correction("p over users"),
            "p over seeds (Holm)": with_correction("p over seeds"),
        }
    )


def _assumptions(study: Study, tests: pd.DataFrame) -> list[str]:
    count = len(tests)
    text = [
        "Over users: do these trained models differ in the population of users? Each user's values (means over seeds) are "
        "paired. The sign-flip permutation test counts how often a mean difference with random signs is at least as far from 0 "
        f"as the observed one ({SIGN_FLIPS:,} random sign patterns, or all of them if there are fewer). It assumes that users "
        "are independent and that, without a true difference, differences are symmetric about 0. It treats the models as "
        "fixed and does not cover the variation between training runs.",
        "Over seeds: do the configurations differ if they are trained again? The unit is the trained model, so both sides need "
        "at least three seeds. The test is a t-test, paired if both sides have the same seeds, Welch's otherwise. It assumes "
        "that values are normally distributed over seeds; with few seeds it detects only large differences.",
        f"Holm's method corrects for the {count} comparisons (all pairs × {len(PLOTTED)} metrics), separately over users and "
        "over seeds. It bounds the probability of any false positive among them by the significance level.",
    ]
    if tests["p over seeds"].isna().all():
        text.append("No pair here has three seeds on both sides, so the variation between training runs is not tested.")
    return text
