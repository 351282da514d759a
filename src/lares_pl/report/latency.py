"""Latency of a batch of users, by depth and batch size."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from lares_pl.data.loading.batches import Batch
from lares_pl.model.recurrence import KeyedNoise
from lares_pl.report.measure import Split, batches
from lares_pl.stages.base import BaseStage

BATCH_SIZES = (1, 32, 256)
WARM_UP, FEWEST, MOST = 3, 20, 500  # batches
TOP = 10


@dataclass(frozen=True)
class Timing:
    """Time from histories in memory to the ten best items.

    Args:
        depth: number of steps.
        batch_size: users per batch.
        batches: number of batches timed.
        p50, p95, p99: milliseconds per batch; NaN if too few batches were timed (p95 needs 20, p99 100).
        per_second: users per second.
    """

    depth: int
    batch_size: int
    batches: int
    p50: float
    p95: float
    p99: float
    per_second: float


def summarise(seconds: Sequence[float], depth: int, batch_size: int) -> Timing:
    """Quantiles of the times of batches."""
    times = np.asarray(seconds)
    p50, p95, p99 = (
        float(np.quantile(times, q)) * 1e3 if len(times) * (1 - q) >= 1 - 1e-9 else float("nan") for q in (0.5, 0.95, 0.99)
    )
    return Timing(depth, batch_size, len(times), p50, p95, p99, batch_size * len(times) / float(times.sum()))


@torch.inference_mode()
def time_inference(
    stage: BaseStage,
    dataset: str,
    split: Split,
    depths: Sequence[int],
    batch_sizes: Sequence[int] = BATCH_SIZES,
    budget: float = 3.0,
) -> list[Timing]:
    """Latency of recommending ten items to users of a split in random order, by depth and batch size.

    Args:
        stage: a trained stage, on the device to time, in evaluation mode.
        dataset: directory of the prepared dataset.
        split: the split whose histories are read.
        depths: numbers of steps.
        batch_sizes: users per batch; sizes larger than the split are skipped.
        budget: seconds to spend on each depth and batch size; at least 20 and at most 500 batches are timed.
    """
    timings = []
    for batch_size in batch_sizes:
        some = list(islice(batches(stage, dataset, split, batch_size, shuffle=True), MOST))
        some = [batch for batch in some if len(batch) == batch_size and bool(batch.valid.all())]
        if some:
            timings += _time(stage, some, depths, batch_size, budget * len(depths))
    return timings


def _time(
    stage: BaseStage,
    some: Sequence[Batch],
    depths: Sequence[int],
    batch_size: int,
    budget: float,
) -> list[Timing]:
    """Time all depths in turn, so that other load on the machine affects them equally."""
    seconds: dict[int, list[float]] = {depth: [] for depth in depths}
    spent, number = 0.0, -WARM_UP
    while number < MOST and (number < FEWEST or spent < budget):
        batch = some[number % len(some)]
        for depth, of_depth in seconds.items():
            start = time.perf_counter()
            _recommend(stage, batch, depth)
            if number >= 0:
                of_depth.append(time.perf_counter() - start)
                spent += of_depth[-1]
        number += 1
    return [summarise(of_depth, depth, batch_size) for depth, of_depth in seconds.items()]


def _recommend(stage: BaseStage, batch: Batch, depth: int) -> None:
    backbone = stage.backbone
    (states,) = backbone.rollout(batch.histories, [depth], KeyedNoise(batch.histories))
    backbone.head(batch.histories).top_k(states[-1], min(TOP, backbone.items), stage.excluded(batch))
    if batch.targets.is_cuda:
        torch.cuda.synchronize()
