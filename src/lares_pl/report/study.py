"""What a report is made from: measurements of every checkpoint, grouped by configuration, and the evaluated users."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from lares_pl.data.dataset.prepared import SequenceDataset
from lares_pl.errors import LaresError
from lares_pl.model.architecture import with_dropout
from lares_pl.report.latency import Timing, time_inference
from lares_pl.report.measure import Measured, Split, measure, values_of
from lares_pl.report.sources import Group, Source
from lares_pl.serialization import to_plain
from lares_pl.stages.base import BaseStage
from lares_pl.stages.loading import load_stage
from lares_pl.stages.pruning import KeptSet, Pruning
from lares_pl.stages.rpt import RPT


@dataclass(frozen=True)
class Population:
    """The dataset, and the users whose targets are ranked, in the order of the dataset.

    Args:
        sequences: the dataset.
        popularity: number of training interactions with each user's target, `[U]`.
        activity: number of interactions of each user before the target, `[U]`.
        counts: number of training interactions with each item, `[N + 1]`.
    """

    sequences: SequenceDataset
    popularity: np.ndarray
    activity: np.ndarray
    counts: np.ndarray

    @property
    def users(self) -> int:
        """Number of users, U."""
        return len(self.activity)


def population(dataset: str, split: Split) -> Population:
    """The users of a split."""
    sequences = SequenceDataset.load(dataset)
    counts = sequences.training_popularity
    spans = sequences.held_out("test" if split == "test" else "validation").all()
    return Population(sequences, counts[sequences.targets(spans)], spans.ends - spans.starts, counts)


@dataclass(frozen=True)
class Finding:
    """Measurements of one checkpoint.

    Args:
        source: the checkpoint.
        measured: ranks and other measures of all users.
        kept: the training instances that pruning kept; None without pruning.
        pruning: the pruning rule.
    """

    source: Source
    measured: Measured
    kept: KeptSet | None
    pruning: Pruning | None

    @property
    def seed_name(self) -> str:
        """`seed 1`, or the checkpoint's name if its seed is unknown."""
        return self.source.name if self.source.seed is None else f"seed {self.source.seed}"


@dataclass(frozen=True)
class GroupFindings:
    """Measurements of one configuration.

    Args:
        label: name of the configuration.
        findings: one per seed.
        depth: depth of evaluation.
        depths: depths of the tables, ascending.
        max_length: longest history that the model reads.
        exclude_seen: whether items of the history are left out of the rankings.
        parameters: number of trained parameters.
        timings: latency of its first checkpoint; empty if not measured.
        timed_as: earlier group with the same architecture, whose latency holds for both; None if there is none.
    """

    label: str
    findings: Sequence[Finding]
    depth: int
    depths: Sequence[int]
    max_length: int
    exclude_seen: bool
    parameters: int
    timings: Sequence[Timing]
    timed_as: str | None = None

    @property
    def recurrent(self) -> bool:
        """Whether the model makes reasoning steps."""
        return self.depth > 0

    @property
    def steps(self) -> np.ndarray:
        """All depths that were measured, `[T]`."""
        return self.findings[0].measured.depths

    def by_user(self, metric: str, depths: Sequence[int]) -> np.ndarray:
        """A metric of each user at these depths, mean over seeds, `[U, len(depths)]` float64."""
        columns = [self.findings[0].measured.column(depth) for depth in depths]
        # float64, so that the mean of equal values is the same for any number of seeds
        total = np.zeros((len(self.findings[0].measured.ranks), len(columns)))
        for finding in self.findings:
            total += values_of(metric, finding.measured.ranks[:, columns])
        return total / len(self.findings)

    def by_seed(self, metric: str, depth: int) -> list[float]:
        """A metric of each checkpoint, as computed by `lares test`."""
        return [finding.measured.metrics(depth)[metric] for finding in self.findings]

    def pooled(self, name: str) -> np.ndarray:
        """A measure (`ranks`, `residual`, `cosine`, `entropy`, `kl`) of all users and seeds, `[seeds * U, T]`."""
        return np.concatenate([getattr(finding.measured, name) for finding in self.findings])


@dataclass(frozen=True)
class Study:
    """The input of every section.

    Args:
        groups: measurements by configuration.
        dataset: directory of the dataset.
        split: the split whose targets are ranked.
        population: the users of the split.
        resamples: number of bootstrap samples.
        device: the device that computed.
        remarks: sentences about what was left out.
    """

    groups: Sequence[GroupFindings]
    dataset: str
    split: Split
    population: Population
    resamples: int
    device: torch.device
    remarks: Sequence[str]

    @cached_property
    def labels(self) -> list[str]:
        """Labels of all groups, in order; they determine the colours."""
        return [group.label for group in self.groups]

    @property
    def recurrent(self) -> list[GroupFindings]:
        """The recurrent groups."""
        return [group for group in self.groups if group.recurrent]

    @property
    def common_depth(self) -> int | None:
        """Depth of evaluation of all recurrent groups; None if they differ."""
        depths = {group.depth for group in self.recurrent}
        return depths.pop() if len(depths) == 1 else None

    @property
    def target(self) -> str:
        """Name of the split in texts."""
        return "test" if self.split == "test" else "validation"


@dataclass(frozen=True)
class Options:
    """How to measure.

    Args:
        split: the split whose targets to rank.
        depths: depths of the tables; None: from 1 to 4 × the depth of evaluation.
        resamples: number of bootstrap samples.
        timing: whether to measure latency.
        batch_size: users per batch.
        device: the device to compute on.
    """

    split: Split
    depths: Sequence[int] | None
    resamples: int
    timing: bool
    batch_size: int
    device: torch.device


def usual_depths(depth: int) -> list[int]:
    """Depths from 1 to 4 × the depth of evaluation: all if there are at most 8, else powers of two and some multiples."""
    if depth == 0:
        return [0]
    deepest = 4 * depth
    if deepest <= 8:
        return list(range(1, deepest + 1))
    powers = {2**n for n in range(deepest.bit_length()) if 2**n <= deepest}
    return sorted(powers | {depth, 2 * depth, deepest})


def make_study(
    groups: Sequence[Group], dataset: str, options: Options, remarks: Sequence[str], say: Callable[[str], None]
) -> Study:
    """Measure every checkpoint.

    Args:
        groups: the checkpoints.
        dataset: directory of the prepared dataset.
        options: how to measure.
        remarks: sentences for the page.
        say: receives lines about the progress.

    Raises:
        LaresError: if a checkpoint belongs to another dataset or does not support a depth.
    """
    found: list[GroupFindings] = []
    timed: dict[str, str] = {}  # architecture -> label of the group that was timed
    for group in groups:
        found.append(_measure_group(group, dataset, options, timed, say))
    return Study(found, dataset, options.split, population(dataset, options.split), options.resamples, options.device, remarks)


def _measure_group(
    group: Group, dataset: str, options: Options, timed: dict[str, str], say: Callable[[str], None]
) -> GroupFindings:
    findings: list[Finding] = []
    timings: list[Timing] = []
    for source in group.sources:
        stage = load_stage(source.path).to(options.device)
        depth = stage.evaluation_depth
        depths = _depths(stage, source.path, options.depths)
        deepest = max(*depths, depth)
        say(f"{source.name}: {options.split} users at depth {'0' if depth == 0 else f'1 … {deepest}'}")
        measured = measure(stage, dataset, options.split, deepest, options.batch_size)
        kept, rule = (stage.kept, stage.pruning) if isinstance(stage, RPT) else (None, None)
        findings.append(Finding(source, measured, kept, rule))
        timed_as = timed.setdefault(_architecture(stage, depths), group.label)
        if options.timing and not timings and timed_as == group.label:
            say(f"{source.name}: timing")
            timings = time_inference(stage, dataset, options.split, _timed(depth, depths))
    return GroupFindings(
        group.label,
        findings,
        depth,
        sorted({*depths, depth}),
        stage.backbone.max_length,
        stage.exclude_seen,
        sum(parameter.numel() for parameter in stage.backbone.parameters()),
        timings,
        timed_as if options.timing and timed_as != group.label else None,
    )


def _depths(stage: BaseStage, path: Path, asked: Sequence[int] | None) -> Sequence[int]:
    if stage.evaluation_depth == 0:
        return [0]  # the only depth of a model without recurrence
    if asked is None:
        return usual_depths(stage.evaluation_depth)
    if min(asked) < 1:
        raise LaresError(f"{path}: --depths {','.join(map(str, asked))}: depths of a recurrent model start at 1")
    return sorted(set(asked))


def _architecture(stage: BaseStage, depths: Sequence[int]) -> str:
    """Everything that determines inference time, as a string for comparison."""
    backbone = stage.backbone
    sizes = (backbone.max_length, backbone.items, stage.evaluation_depth, list(depths))
    return repr((to_plain(with_dropout(stage.backbone_config, 0.0)), stage.exclude_seen, sizes))


def _timed(depth: int, depths: Sequence[int]) -> list[int]:
    """The depths to time: the first, the depth of evaluation, twice that, and the last."""
    return sorted({depths[0], depth, depths[-1], *(d for d in depths if d == 2 * depth)})
