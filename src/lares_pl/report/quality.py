"""Sections on how well targets are ranked: the summary, by depth, by kind of user and item, and what it costs."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from lares_pl.evaluation.protocols import other_protocol
from lares_pl.report.charts import Panel, Series, draw, limits
from lares_pl.report.machine import device_name, threads
from lares_pl.report.measure import METRICS
from lares_pl.report.page import Section, Table, short, with_interval
from lares_pl.report.statistics import Bands, bootstrap_interval, bootstrap_means, mean_and_spread, quantile_bands
from lares_pl.report.study import GroupFindings, Study

NAMES = {name: name.replace("recall", "Recall").replace("ndcg", "NDCG").replace("mrr", "MRR") for name in METRICS}
PLOTTED = ("recall@10", "ndcg@10", "mrr")


def _by_depth(study: Study, groups: Iterable[GroupFindings]) -> pd.DataFrame:
    """A row for each group, depth and metric: mean over seeds, interval over users, spread over seeds."""
    rows = []
    for group in groups:
        for metric in METRICS:
            depths = list(group.depths)
            low, high = bootstrap_interval(group.by_user(metric, depths), study.resamples)
            for number, depth in enumerate(depths):
                mean, spread = mean_and_spread(group.by_seed(metric, depth))
                rows.append((group.label, depth, NAMES[metric], mean, low[number], high[number], spread, len(group.findings)))
    columns = ["model", "depth", "metric", "mean", "low", "high", "sd over seeds", "seeds"]
    return pd.DataFrame(rows, columns=columns)


def _wide(long: pd.DataFrame, metrics: Iterable[str]) -> pd.DataFrame:
    """For the page: a row for each group and depth, a column for each metric with its interval."""
    rows = []
    for (label, depth), part in long.groupby(["model", "depth"], sort=False):
        of = part.set_index("metric")
        cells = {name: with_interval(*of.loc[name, ["mean", "low", "high"]]) for name in metrics}
        rows.append({"model": label, "depth": depth, **cells})
    return pd.DataFrame(rows)


def summary(study: Study) -> Section:
    """All metrics at the depth of evaluation."""
    long = _by_depth(study, study.groups)
    own = {group.label: group.depth for group in study.groups}
    at_own = long[long["depth"] == long["model"].map(own)].reset_index(drop=True)
    most = [NAMES[name] for name in ("recall@10", "ndcg@10", "mrr")]
    rest = [name for name in NAMES.values() if name not in most]
    text = [
        f"{study.population.users:,} {study.target} items, {_targets_of_users(study)}, are ranked among all "
        f"{study.population.sequences.catalogue_size:,} items; ties count against them. Recall@K is the share of "
        "users whose item is among the first K; NDCG@K gives 1 / log2(1 + rank) for it, MRR 1 / rank. In brackets: 95 % "
        f"bootstrap interval over users ({study.resamples:,} samples), which says how far other users of the same kind would "
        "move the number, not how far another training run would.",
        "The depth of evaluation is the number of reasoning steps that the model was configured for: "
        + "; ".join(f"{group.label} {group.depth}" for group in study.groups)
        + ". (Depth 0: a model without recurrence.)",
    ]
    return Section(
        "Results at the depth of evaluation",
        text,
        tables=[
            Table("summary", "Recall@10, NDCG@10 and MRR", at_own, "All cutoffs are in the files.", _wide(at_own, most)),
            Table("protocols", "Both protocols", _protocols(study), "Means over seeds."),
            Table(
                "summary-cutoffs",
                "Other cutoffs",
                at_own[at_own["metric"].isin(rest)].reset_index(drop=True),
                shown=_means(at_own, rest),
            ),
        ],
    )


def _targets_of_users(study: Study) -> str:
    split = study.population.sequences.split
    if split is None or split["targets"] == "first":
        return "one of each user"
    return "in part several of a user, which the intervals take for those of different users"


def _protocols(study: Study) -> pd.DataFrame:
    """A row for each group and protocol, that of its evaluation first."""
    rows: list[dict[str, object]] = []
    for group in study.groups:
        for prefix, left_out in (("", group.exclude_seen), (other_protocol(group.exclude_seen), not group.exclude_seen)):
            means = {NAMES[name]: mean_and_spread(group.by_seed(prefix + name, group.depth))[0] for name in PLOTTED}
            rows.append({"model": group.label, "items seen before": "left out" if left_out else "ranked", **means})
    return pd.DataFrame(rows)


def _means(at_own: pd.DataFrame, metrics: list[str]) -> pd.DataFrame:
    wide = at_own.pivot(index="model", columns="metric", values="mean")[metrics]
    return wide.loc[list(dict.fromkeys(at_own["model"]))].reset_index()


def depth(study: Study) -> Section:
    """Quality at every depth, from one pass."""
    title = "Quality by depth"
    if not study.recurrent:
        return Section(title, ["No model here has recurrence, so there is one depth (0) and nothing to compare."])
    long = _by_depth(study, study.recurrent)
    deepest = max(int(group.steps[-1]) for group in study.recurrent)
    marked = study.common_depth

    def panel(y: str, series: list[Series], zero: bool = False) -> Panel:
        return Panel("reasoning steps", y, series, log_x=deepest > 8, marked=marked, zero=zero)

    levels = [panel(NAMES[metric], _levels(study, metric, deepest)) for metric in PLOTTED[:2]]
    changes = [panel(f"difference in {NAMES[metric]}", _changes(study, metric), True) for metric in PLOTTED[:2]]
    dotted = "" if marked is None else f" The dotted line is the depth of evaluation, {marked}."
    return Section(
        title,
        [
            "The same weights, read after every step of one pass. Depth costs time and no parameters.",
        ],
        [
            draw(
                "quality-by-depth",
                f"Recall@10 and NDCG@10 by number of reasoning steps ({study.target} users)",
                "Bands are 95 % intervals over users: they show how well the level is known. Whether two depths differ is the "
                f"next figure's question.{dotted}" + _flat_note(study),
                levels,
                study.labels,
            ),
            draw(
                "difference-by-depth",
                "Difference from the depth of evaluation",
                "Each user is compared with themselves, so these bands (95 %, over users) are narrower than above: where a "
                "band leaves 0 out, that depth ranks differently from the depth of evaluation on these users.",
                changes,
                study.labels,
            ),
        ],
        [
            Table(
                "quality-by-depth",
                "All depths",
                long,
                "Mean with 95 % interval over users; the files hold every metric and cutoff.",
                _wide(long, [NAMES[name] for name in PLOTTED]),
            )
        ],
    )


def _flat_note(study: Study) -> str:
    flat = [group.label for group in study.groups if not group.recurrent]
    return f" Dashed: {', '.join(flat)}, without recurrence." if flat else ""


def _levels(study: Study, metric: str, deepest: int) -> list[Series]:
    lines = []
    for group in study.groups:
        depths = [int(step) for step in group.steps]
        values = group.by_user(metric, depths)
        low, high = bootstrap_interval(values, study.resamples)
        mean = values.mean(axis=0, dtype=np.float64)
        if not group.recurrent:
            lines.append(Series(group.label, [1, deepest], [mean[0]] * 2, dashed=True))
        else:
            lines.append(Series(group.label, depths, mean, low, high))
    return lines


def _changes(study: Study, metric: str) -> list[Series]:
    lines = []
    for group in study.recurrent:
        values = group.by_user(metric, [int(step) for step in group.steps])
        own = group.findings[0].measured.column(group.depth)
        means = bootstrap_means(values, study.resamples)
        low, high = np.quantile(means - means[:, [own]], [0.025, 0.975], axis=0)
        mean = values.mean(axis=0, dtype=np.float64)
        lines.append(Series(group.label, group.steps, mean - mean[own], low, high))
    return lines


# ---------------------------------------------------------------- by kind of user and item


def kinds(study: Study) -> Section:
    """NDCG@10 by popularity of the target, length of the history and activity of the user."""
    people = study.population
    longest = max(group.max_length for group in study.groups)
    kinds = {
        "popularity": ("target's training interactions", quantile_bands(people.popularity)),
        "history": (
            "history items read",
            quantile_bands(np.minimum(people.activity, longest), capped=longest),
        ),
        "activity": ("user's earlier interactions", quantile_bands(people.activity)),
    }
    panels, tables, alike = [], [], []
    for name, (axis, bands) in kinds.items():
        if len(bands.labels) == 1:
            alike.append(f"There are no bands of {axis}: most users have the same number, all have {bands.labels[0]}.")
            continue
        frame = _by_band(study, bands)
        panels.append(Panel(axis, "NDCG@10", _band_series(study, frame, bands), ticks=limits(bands.labels), from_zero=True))
        tables.append(Table(f"quality-by-{name}", f"By {axis}", frame, shown=_band_page(study, frame, bands, axis)))
    title = "Quality by item popularity, history length and user activity"
    if not panels:
        return Section(title, alike)
    text = [
        "Users are cut into bands of about equal size; equal numbers stay in one band. Popularity of the target is counted "
        "over training interactions only (0: never seen in training); activity is what a user did before the target. At most "
        f"{longest} items of a history are read; + marks histories cut to that. An interval from 0 to 0 means that no user of "
        "the band was hit: it can't say how rare hits are.",
        *alike,
    ]
    caption = (
        "At the depth of evaluation. Points are means over the users of a band, bars 95 % intervals over them; below stand the "
        "limits of each band."
    )
    chart = draw("quality-by-kind", "NDCG@10 by kind of user and item", caption, panels, study.labels, columns=3)
    return Section(title, text, [chart], tables)


def _by_band(study: Study, bands: Bands) -> pd.DataFrame:
    rows = []
    for group in study.groups:
        for metric in PLOTTED:
            values = group.by_user(metric, [group.depth])
            for band, (label, size) in enumerate(zip(bands.labels, bands.sizes, strict=True)):
                inside = values[bands.of_user == band]
                low, high = bootstrap_interval(inside, study.resamples)
                mean = float(inside.mean(dtype=np.float64))
                rows.append((group.label, label, int(size), NAMES[metric], mean, float(low[0]), float(high[0])))
    return pd.DataFrame(rows, columns=["model", "band", "users", "metric", "mean", "low", "high"])


def _band_series(study: Study, frame: pd.DataFrame, bands: Bands) -> list[Series]:
    lines = []
    for group in study.groups:
        of = frame[(frame["model"] == group.label) & (frame["metric"] == "NDCG@10")]
        mean, low, high = of[["mean", "low", "high"]].to_numpy().T
        lines.append(Series(group.label, np.arange(len(bands.labels)), mean, low, high))
    return lines


def _band_page(study: Study, frame: pd.DataFrame, bands: Bands, axis: str) -> pd.DataFrame:
    of = frame[frame["metric"] == "NDCG@10"]
    cells = {
        f"NDCG@10, {label}": [with_interval(*row) for row in of.loc[of["model"] == label, ["mean", "low", "high"]].to_numpy()]
        for label in study.labels
    }
    return pd.DataFrame({axis: bands.labels, "users": bands.sizes, **cells})


# ---------------------------------------------------------------- what it costs


def cost(study: Study) -> Section:
    """Latency and throughput by depth and batch size."""
    title = "Latency and throughput"
    timed = [group for group in study.groups if group.timings]
    if not timed:
        return Section(title, ["Nothing was timed (--timing false)."])
    rows = [(g.label, t.batch_size, t.depth, t.batches, t.p50, t.p95, t.p99, t.per_second) for g in timed for t in g.timings]
    names = ["p50 [ms]", "p95 [ms]", "p99 [ms]", "users a second"]
    frame = pd.DataFrame(rows, columns=["model", "batch size", "depth", "batches timed", *names])
    shown = frame.assign(**{name: frame[name].map(short) for name in names})
    sizes = sorted(set(frame["batch size"]))
    panels = [
        Panel("reasoning steps", "milliseconds a batch", _latencies(study, frame, size), f"batch of {size:,}", from_zero=True)
        for size in sizes
    ]
    same = [f"{group.label} has the architecture of {group.timed_as}" for group in study.groups if group.timed_as]
    text = [
        f"Time from histories in memory to the ten best items of the whole catalogue, on {device_name(study.device)} with "
        f"{threads()}, for {study.target} histories in random order, all depths in turn, after warm-up; where users "
        "are few, batches come again. Loading data is not counted; other work on the machine counts in.",
        *(
            [f"Time depends on the architecture, not on what was learned: {'; '.join(same)} and was not timed again."]
            if same
            else []
        ),
    ]
    caption = "Lines are medians over batches, bands reach up to the 95th percentile (the tail that a service feels)."
    chart = draw("latency", "Latency by depth and batch size", caption, panels, study.labels, columns=3)
    note = "A percentile is given where at least one batch lies beyond it."
    return Section(title, text, [chart], [Table("latency", "Latency and throughput", frame, note, shown)])


def _latencies(study: Study, frame: pd.DataFrame, size: int) -> list[Series]:
    lines = []
    for label in study.labels:
        of = frame[(frame["model"] == label) & (frame["batch size"] == size)]
        if len(of):
            middle, tail = of["p50 [ms]"].to_numpy(), of["p95 [ms]"].to_numpy()
            lines.append(Series(label, of["depth"].to_numpy(), middle, middle, tail))
    return lines
