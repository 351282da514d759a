"""Comparison of written programs with the model, on histories of the dataset."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from lares_pl.data.dataset.prepared import SequenceDataset
from lares_pl.data.loading.batches import cut_histories
from lares_pl.data.loading.histories import Histories
from lares_pl.data.loading.item_pairs import ItemPairs
from lares_pl.errors import LaresError
from lares_pl.export.formats import Run
from lares_pl.model.backbone import RecurrentBackbone
from lares_pl.model.reasoning import Reasoning

TOLERANCE = 1e-4  # largest difference of a score, relative to the largest score; round-off is about 1e-6
BATCH_SIZE = 64


@dataclass(frozen=True)
class Parity:
    """The result of the comparison.

    Args:
        histories: number of histories compared at each depth.
        depths: the depths.
        difference: largest difference of a score between program and model, relative to the largest score.
        equal: fraction of histories whose ranked lists are identical.
    """

    histories: int
    depths: tuple[int, ...]
    difference: float
    equal: float

    def __str__(self) -> str:
        depths = ", ".join(map(str, self.depths))
        return (
            f"{self.histories:,} histories at depth {depths}: scores differ by at most {self.difference:.1e} of the largest "
            f"score, {self.equal:.2%} of the lists are equal"
        )


def sampled_histories(dataset: SequenceDataset, count: int, max_length: int, seed: int = 0) -> Histories:
    """Sample histories that end at random positions of random users' sequences, so that all lengths occur.

    Args:
        dataset: the sequences.
        count: number of histories.
        max_length: maximum history length L.
        seed: the seed.
    """
    generator = np.random.default_rng(seed)
    users = generator.choice(np.flatnonzero(np.diff(dataset.offsets)), count)
    starts, lengths = dataset.offsets[users], np.diff(dataset.offsets)[users]
    return cut_histories(dataset.items, starts, starts + 1 + generator.integers(0, lengths), max_length)


@torch.no_grad()
def compare(
    backbone: RecurrentBackbone,
    rankings: Run,
    states: Run,
    vectors: np.ndarray,
    histories: Histories,
    depths: tuple[int, ...],
    k: int,
    average_steps: bool = False,
) -> Parity:
    """Run programs and model on the same histories.

    Every second history has its own items excluded. User states are compared by their scores with `vectors`. Shows progress.

    Args:
        backbone: the model, in evaluation mode.
        rankings, states: the programs.
        vectors: the item vectors written with them, `[N + 1, d]`.
        histories: the histories.
        depths: depths to compare at; more than one if the depth is an input.
        k: length of the lists.
        average_steps: whether the model is to average the scores of all steps.
    """
    largest, difference, equal = 0.0, 0.0, 0
    every = 0.1 if sys.stderr.isatty() else 30.0  # seconds between what is shown
    count = 1 + math.ceil((len(histories) - 1) / BATCH_SIZE)
    for batch in tqdm(_batches(histories), total=count, desc="comparing", leave=False, delay=every, mininterval=every):
        padded, excluded, pairs = _padded(batch, backbone.max_length)
        inputs = {"items": padded, "lengths": batch.lengths.numpy()}
        for depth in depths:
            at = {"depth": np.array(depth)} if len(depths) > 1 else {}
            found = rankings({**inputs, "excluded": excluded, **at})
            state = states({**inputs, **at})["state"]
            of_user = Reasoning(depth, average_steps=average_steps)(backbone, batch).states
            expected, items = backbone.head(batch).top_k(of_user, k, pairs)
            real = expected.isfinite().numpy()
            ranked = np.where(real, found["ranked_items"], 0)
            inner_products = np.einsum("bd,bkd->bk", state, vectors[ranked])
            if backbone.config.repeat_bias:  # no part of the user states, which are for nearest-neighbour search
                read = (padded[:, None, :] == ranked[:, :, None]).any(axis=2)
                inner_products += read * float(backbone.bias_of_repeats)
            of_model = backbone.head(batch).scores(of_user).gather(1, torch.from_numpy(ranked))
            largest = max(largest, float(np.abs(expected.numpy()[real]).max(initial=0)))
            # the n-th best score; the model's score of the program's n-th item; and that of the user state
            for scores in (expected.numpy(), of_model.numpy(), inner_products):
                off = np.abs(found["scores"][real] - scores[real])
                difference = max(difference, float(off.max(initial=0)) if np.isfinite(off).all() else np.inf)
            equal += int(((ranked == items.numpy()) | ~real).all(axis=1).sum())
    return Parity(len(histories), depths, difference / max(largest, 1e-12), equal / (len(histories) * len(depths)))


def check_parity(agreement: Parity) -> None:
    """Check that programs and model differ by no more than round-off.

    Raises:
        LaresError: if they do; with the differences.
    """
    if not agreement.difference <= TOLERANCE:
        raise LaresError(
            f"the exported program differs from the model ({agreement}); nothing was written. A custom block that draws random "
            "numbers in evaluation, or has Python control flow that depends on values, can't be exported"
        )


def _batches(histories: Histories) -> Iterator[Histories]:
    """A batch of one, then larger batches."""
    counts = [1, *(min(BATCH_SIZE, len(histories) - start) for start in range(1, len(histories), BATCH_SIZE))]
    tokens = [int(part.sum()) for part in histories.lengths.split(counts)]
    for items, lengths in zip(histories.items.split(tokens), histories.lengths.split(counts), strict=True):
        yield Histories(items, lengths, int(lengths.max()))


def _padded(histories: Histories, width: int) -> tuple[np.ndarray, np.ndarray, ItemPairs]:
    """Items `[B, L]`; what is excluded, `[B, L]` for the program and as pairs for the model."""
    real = torch.arange(width) < histories.lengths[:, None]
    items = torch.zeros(len(histories), width, dtype=torch.int64).masked_scatter_(real, histories.items)
    excluded = items * (torch.arange(len(histories)) % 2)[:, None]
    rows, places = excluded.nonzero(as_tuple=True)
    return items.numpy(), excluded.numpy(), ItemPairs(rows, excluded[rows, places])
