"""`lares report`: trained runs on one page, with charts and tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from lares_pl.atomic_io import atomic_folder, check_folder
from lares_pl.data.dataset.prepared import check_dataset
from lares_pl.errors import LaresError
from lares_pl.model.device import resolve_device
from lares_pl.report.charts import check_matplotlib
from lares_pl.report.comparison import comparison
from lares_pl.report.html import render
from lares_pl.report.page import Section, Table
from lares_pl.report.provenance import command_line, provenance
from lares_pl.report.quality import cost, depth, kinds, summary
from lares_pl.report.sources import Group, find_sources, group_by_seed, why_apart
from lares_pl.report.steps import steps
from lares_pl.report.stopping import stopping
from lares_pl.report.study import Options, Study, make_study
from lares_pl.report.training import curves, pruning, reinforcement

#: the sections in order; each is a function of a study
SECTIONS: Sequence[Callable[[Study], Section]] = (
    summary,
    comparison,
    depth,
    cost,
    kinds,
    steps,
    stopping,
    curves,
    reinforcement,
    pruning,
)
PAGE = "report.html"


def report(
    runs: list[str],
    output: str = "report",
    split: Literal["test", "val"] = "test",
    depths: str | None = None,
    bootstrap: int = 1000,
    timing: bool = True,
    dataset: str | None = None,
    batch_size: int = 1024,
    device: str = "auto",
    title: str | None = None,
    overwrite: bool = False,
) -> None:
    """Measure trained runs and write a page about them, with its charts (SVG) and tables (CSV, Parquet).

    Args:
        runs: runs to report on: folders runs/NAME or runs/NAME/STAGE, or checkpoint files. Runs that differ only in their
            seed are grouped.
        output: folder to write, atomically.
        split: the split whose targets are ranked, test or val.
        depths: numbers of reasoning steps for the tables, separated by commas; default: from 1 to 4 × the depth of
            evaluation.
        bootstrap: bootstrap samples for each interval.
        timing: also measure latency.
        dataset: the prepared dataset, if it is not at the path in the checkpoints.
        batch_size: users per batch.
        device: auto (the GPU if there is one), cpu, cuda.
        title: title of the page.
        overwrite: replace an existing report.

    Raises:
        LaresError: if runs can't be read or are of different datasets, or the folder can't be written.

    Example:
        lares report runs/beauty
        lares report runs/seed1 runs/seed2 runs/seed3 --output seeds --timing false
    """
    check_matplotlib()
    if bootstrap < 100 or batch_size < 1:
        raise LaresError(
            "--bootstrap must be at least 100 (an interval's ends are quantiles of the samples), --batch_size at least 1"
        )
    target = Path(output).resolve()  # a symbolic link stays one
    _check_output(target, overwrite)
    options = Options(split, _numbers(depths), bootstrap, timing, batch_size, resolve_device(device))
    sources, remarks = find_sources(runs)
    groups = group_by_seed(sources)
    remarks += why_apart(groups)
    for remark in remarks:
        print(remark)
    data = str(check_dataset(dataset).absolute()) if dataset is not None else _dataset(groups)
    study = make_study(groups, data, options, remarks, lambda line: print(line, flush=True))
    names = ", ".join(study.labels)
    heading = title or "Report on " + (", ".join(source.name for source in sources) if len(sources) <= 3 else names)
    sections = [*(make(study) for make in SECTIONS), provenance(study, command_line())]
    lead = [
        f"Evaluated: {names}, on {study.population.users:,} {study.target} items of {Path(data).name}. These "
        "models read a user's history once and refine its representation by applying one small block repeatedly; the number of "
        "these reasoning steps is the depth.",
    ]
    _write(target, render(heading, lead, sections), sections, overwrite)
    print(f"wrote {Path(output) / PAGE}")


def _numbers(depths: str | None) -> list[int] | None:
    if depths is None:
        return None
    try:
        return [int(word) for word in str(depths).strip("[] ").split(",")]
    except ValueError as error:
        raise LaresError(f"--depths {depths}: expected numbers with commas between them, such as 1,2,4,8") from error


def _dataset(groups: Sequence[Group]) -> str:
    """The dataset of all checkpoints."""
    named = {source.checkpoint.data.get("dataset"): source.name for group in groups for source in group.sources}
    if len(named) > 1:
        places = "; ".join(f"{name} of {path}" for path, name in named.items())
        raise LaresError(
            f"these runs were trained on different datasets: {places}. A report compares runs on the same users: report on "
            "each dataset by itself, or name the one to evaluate all of them on with --dataset"
        )
    (path,) = named
    if path is None:
        raise LaresError(f"{named[None]}: this checkpoint names no dataset; say which one with --dataset DIR")
    try:
        return str(check_dataset(path))
    except LaresError as error:
        raise LaresError(
            f"{named[path]} was trained on {path}, and there is no dataset now. Say where it is with --dataset"
        ) from error


# ---------------------------------------------------------------- writing


def _check_output(target: Path, overwrite: bool) -> None:
    check_folder(target, "report", PAGE, (PAGE, "charts", "tables"), overwrite)


def _write(target: Path, page: str, sections: Sequence[Section], overwrite: bool) -> None:
    with atomic_folder(target, lambda: _check_output(target, overwrite)) as folder:
        for name in ("charts", "tables"):
            (folder / name).mkdir()
        (folder / PAGE).write_text(page, encoding="utf-8")
        for section in sections:
            for chart in section.charts:
                (folder / "charts" / f"{chart.name}.svg").write_text(chart.svg, encoding="utf-8")
            for table in section.tables:
                _write_table(table, folder / "tables")


def _write_table(table: Table, folder: Path) -> None:
    table.frame.to_csv(folder / f"{table.name}.csv", index=False)
    pq.write_table(pa.Table.from_pandas(table.frame, preserve_index=False), folder / f"{table.name}.parquet")
