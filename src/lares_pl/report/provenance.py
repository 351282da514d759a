"""The section on the origin of a report: checkpoints, data, device, versions, command."""

from __future__ import annotations

import datetime
import platform
import sys
from collections.abc import Sequence

import pandas as pd
import torch

from lares_pl import __version__
from lares_pl.report.machine import device_name, threads
from lares_pl.report.page import Section, Table
from lares_pl.report.study import Study


def provenance(study: Study, command: Sequence[str]) -> Section:
    """What was evaluated, on which device and versions, and how numbers were computed."""
    rows = [
        (
            group.label,
            finding.source.name,
            "–" if finding.source.seed is None else str(finding.source.seed),
            group.depth,
            group.parameters,
            group.max_length,
            "left out" if group.exclude_seen else "ranked",
            str(finding.source.path),
        )
        for group in study.groups
        for finding in group.findings
    ]
    columns = ["model", "run", "seed", "depth", "parameters", "history", "items seen", "checkpoint"]
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    data = study.population.sequences
    return Section(
        "Checkpoints and environment",
        [
            f"Dataset: {study.dataset}, with {data.users:,} users, {data.catalogue_size:,} items and {len(data.items):,} "
            f"interactions; {study.population.users:,} users have a {study.target} item.",
            f"Computed on {device_name(study.device)} with {threads()}; lares_pl {__version__}, PyTorch {torch.__version__}, "
            f"Python {platform.python_version()}; {now}.",
            f"Command: {' '.join(command)}",
            "All numbers come from one pass over all users for each checkpoint, to the largest depth. Initial noise is a "
            "function of the user's history only, so it does not depend on batches or earlier evaluations. At the depth of "
            "evaluation the numbers equal those of `lares test`.",
            *study.remarks,
        ],
        tables=[Table("checkpoints", "Checkpoints", pd.DataFrame(rows, columns=columns))],
    )


def command_line() -> list[str]:
    """The command as typed."""
    return ["lares", *sys.argv[1:]]
