"""Sections on ranking quality (overall, by depth, by user and item group) and on latency."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from lares_pl.evaluation.protocols import other_protocol
from lares_pl.report.charts import Panel, Series, band_ticks, draw
from lares_pl.report.machine import device_name, threads
from lares_pl.report.measure import METRICS
from lares_pl.report.page import Section, Table, short, with_interval
from lares_pl.report.reported import reported_metrics
from lares_pl.report.statistics import Bands, bootstrap_interval, bootstrap_means, mean_and_spread, quantile_bands
from lares_pl.report.study import GroupFindings, Study

_LONGEST_ABBREVIATION = 4  # NDCG; a longer name is a word
#: each metric as tables and charts show it: `Recall@10`, `NDCG@10`, `MRR`
NAMES = {name: name.upper() if len(name.partition("@")[0]) <= _LONGEST_ABBREVIATION else name.capitalize() for name in METRICS}
PLOTTED = ("recall@10", "ndcg@10", "mrr")


def _by_depth(study: Study, groups: Iterable[GroupFindings]) -> pd.DataFrame:
    """One row per group, depth and metric: mean over seeds, interval over users, standard deviation over seeds."""
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
    """The table shown on the page: one row per group and depth, one column per metric with its interval."""
    rows = []
    for (label, depth), part in long.groupby(["model", "depth"], sort=False):
        of = part.set_index("metric")
        cells = {name: with_interval(*of.loc[name, ["mean", "low", "high"]]) for name in metrics}
        rows.append({"model": label, "depth": depth, **cells})
    return pd.DataFrame(rows)


def summary(study: Study) -> Section:
    """All metrics at the depth of evaluation."""
    long = _by_depth(study, study.groups)
    depths = {group.label: group.depth for group in study.groups}
    at_depth = long[long["depth"] == long["model"].map(depths)].reset_index(drop=True)
    main = [NAMES[name] for name in PLOTTED]
    rest = [name for name in NAMES.values() if name not in main]
    text = [
        f"{study.population.users:,} {study.target} items, {_targets_of_users(study)}, are ranked among all "
        f"{study.population.sequences.catalogue_size:,} items; ties count against them. Recall@K is the share of "
        "users whose item is among the first K. NDCG@K averages 1 / log2(1 + rank) over users, with 0 outside the first K; "
        f"MRR averages 1 / rank. In brackets: 95 % bootstrap interval over users ({study.resamples:,} samples). It shows how "
        "much the number would vary with other users from the same population, not between training runs.",
        "The depth of evaluation is the number of reasoning steps that the model was configured for: "
        + "; ".join(f"{group.label} {group.depth}" for group in study.groups)
        + ". Depth 0 is a model without recurrence.",
    ]
    return Section(
        "Results at the depth of evaluation",
        text,
        tables=[
            Table("summary", "Recall@10, NDCG@10 and MRR", at_depth, "All cutoffs are in the files.", _wide(at_depth, main)),
            Table("protocols", "Both protocols", _protocols(study), "Means over seeds."),
            Table(
                "summary-cutoffs",
                "Other cutoffs",
                at_depth[at_depth["metric"].isin(rest)].reset_index(drop=True),
                shown=_means(at_depth, rest),
            ),
            *reported_metrics(study),
        ],
    )


def _targets_of_users(study: Study) -> str:
    split = study.population.sequences.split
    if split is None or split["targets"] == "first":
        return "one of each user"
    return "some of them of the same user (the intervals treat all as independent)"


def _protocols(study: Study) -> pd.DataFrame:
    """A row for each group and protocol, that of its evaluation first."""
    rows: list[dict[str, object]] = []
    for group in study.groups:
        for prefix, left_out in (("", group.exclude_seen), (other_protocol(group.exclude_seen), not group.exclude_seen)):
            means = {NAMES[name]: mean_and_spread(group.by_seed(prefix + name, group.depth))[0] for name in PLOTTED}
            rows.append({"model": group.label, "items seen before": "left out" if left_out else "ranked", **means})
    return pd.DataFrame(rows)


def _means(at_depth: pd.DataFrame, metrics: list[str]) -> pd.DataFrame:
    wide = at_depth.pivot(index="model", columns="metric", values="mean")[metrics]
    return wide.loc[list(dict.fromkeys(at_depth["model"]))].reset_index()


def depth(study: Study) -> Section:
    """Quality at every depth, from one pass over the users."""
    title = "Quality by depth"
    if not study.recurrent:
        return Section(title, ["None of these models is recurrent: each has only one depth (0)."])
    long = _by_depth(study, study.recurrent)
    deepest = max(int(group.steps[-1]) for group in study.recurrent)
    marked = study.common_depth

    def panel(y: str, series: list[Series], zero: bool = False) -> Panel:
        return Panel("reasoning steps", y, series, log_x=deepest > 8, marked=marked, zero=zero)

    levels = [panel(NAMES[metric], _levels(study, metric, deepest)) for metric in PLOTTED[:2]]
    differences = [panel(f"difference in {NAMES[metric]}", _differences(study, metric), True) for metric in PLOTTED[:2]]
    dotted = "" if marked is None else f" The dotted line is the depth of evaluation, {marked}."
    return Section(
        title,
        [
            "The same weights, evaluated after every step of one pass. Additional steps cost time but add no parameters.",
        ],
        [
            draw(
                "quality-by-depth",
                f"Recall@10 and NDCG@10 by number of reasoning steps ({study.target} users)",
                "Bands are 95 % intervals over users. To see whether two depths differ, use the paired differences in the "
                f"next figure.{dotted}" + _flat_note(study),
                levels,
                study.labels,
            ),
            draw(
                "difference-by-depth",
                "Difference from the depth of evaluation",
                "Differences are paired by user, so these 95 % bands are narrower than above. Where a band excludes 0, that "
                "depth ranks differently from the depth of evaluation.",
                differences,
                study.labels,
            ),
        ],
        [
            Table(
                "quality-by-depth",
                "All depths",
                long,
                "Mean with 95 % interval over users; every metric and cutoff is in the files.",
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


def _differences(study: Study, metric: str) -> list[Series]:
    lines = []
    for group in study.recurrent:
        values = group.by_user(metric, [int(step) for step in group.steps])
        at_depth = group.findings[0].measured.column(group.depth)
        means = bootstrap_means(values, study.resamples)
        low, high = np.quantile(means - means[:, [at_depth]], [0.025, 0.975], axis=0)
        mean = values.mean(axis=0, dtype=np.float64)
        lines.append(Series(group.label, group.steps, mean - mean[at_depth], low, high))
    return lines


# ---------------------------------------------------------------- by user and item group


def kinds(study: Study) -> Section:
    """NDCG@10 by popularity of the target, length of the history and activity of the user."""
    users = study.population
    longest = max(group.max_length for group in study.groups)
    kinds = {
        "popularity": ("target's training interactions", quantile_bands(users.popularity)),
        "history": (
            "history items read",
            quantile_bands(np.minimum(users.activity, longest), capped=longest),
        ),
        "activity": ("user's earlier interactions", quantile_bands(users.activity)),
    }
    panels, tables, undivided = [], [], []
    for name, (axis, bands) in kinds.items():
        if len(bands.labels) == 1:
            undivided.append(f"Not divided by {axis}: most users have the same number (range: {bands.labels[0]}).")
            continue
        frame = _by_band(study, bands)
        panels.append(Panel(axis, "NDCG@10", _band_series(study, frame, bands), ticks=band_ticks(bands.labels), from_zero=True))
        tables.append(Table(f"quality-by-{name}", f"By {axis}", frame, shown=_band_page(study, frame, bands, axis)))
    title = "Quality by item popularity, history length and user activity"
    if not panels:
        return Section(title, undivided)
    text = [
        "Users are divided into bands of about equal size; users with equal values are in the same band. Popularity is the "
        "number of training interactions with the target (0: never seen in training), activity the number of a user's "
        f"interactions before the target. At most {longest} items of a history are read; + marks truncated histories. An "
        "interval from 0 to 0 means that no user of the band had a hit; such an interval is no bound on the hit rate.",
        *undivided,
    ]
    caption = (
        "At the depth of evaluation. Points are means over the users of a band, bars are 95 % intervals over users; tick "
        "labels are the limits of the bands."
    )
    chart = draw("quality-by-kind", "NDCG@10 by user and item group", caption, panels, study.labels, columns=3)
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


# ---------------------------------------------------------------- cost


def cost(study: Study) -> Section:
    """Latency and throughput by depth and batch size."""
    title = "Latency and throughput"
    timed = [group for group in study.groups if group.timings]
    if not timed:
        return Section(title, ["Latency was not measured (--timing false)."])
    rows = [(g.label, t.batch_size, t.depth, t.batches, t.p50, t.p95, t.p99, t.per_second) for g in timed for t in g.timings]
    names = ["p50 [ms]", "p95 [ms]", "p99 [ms]", "users per second"]
    frame = pd.DataFrame(rows, columns=["model", "batch size", "depth", "batches timed", *names])
    shown = frame.assign(**{name: frame[name].map(short) for name in names})
    sizes = sorted(set(frame["batch size"]))
    panels = [
        Panel("reasoning steps", "milliseconds per batch", _latencies(study, frame, size), f"batch of {size:,}", from_zero=True)
        for size in sizes
    ]
    same = [f"{group.label} has the architecture of {group.timed_as}" for group in study.groups if group.timed_as]
    text = [
        f"Time from histories in memory to the ten best items of the whole catalogue, on {device_name(study.device)} with "
        f"{threads()}, for {study.target} histories in random order, alternating between depths, after warm-up; batches repeat "
        "if there are few users. Data loading is excluded; other load on the machine is not corrected for.",
        *(
            [f"Time depends on the architecture, not on the weights: {'; '.join(same)} and was not timed again."]
            if same
            else []
        ),
    ]
    caption = "Lines are medians over batches; bands extend to the 95th percentile."
    chart = draw("latency", "Latency by depth and batch size", caption, panels, study.labels, columns=3)
    note = "A percentile is given only if at least one batch lies beyond it."
    return Section(title, text, [chart], [Table("latency", "Latency and throughput", frame, note, shown)])


def _latencies(study: Study, frame: pd.DataFrame, size: int) -> list[Series]:
    lines = []
    for label in study.labels:
        of = frame[(frame["model"] == label) & (frame["batch size"] == size)]
        if len(of):
            median, tail = of["p50 [ms]"].to_numpy(), of["p95 [ms]"].to_numpy()
            lines.append(Series(label, of["depth"].to_numpy(), median, median, tail))
    return lines
