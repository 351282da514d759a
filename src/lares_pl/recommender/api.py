"""The recommender: histories of original ids in, ranked original ids out.

    recommender = Recommender.from_checkpoint("runs/default/rpt/checkpoints/best.ckpt")
    recommender.recommend([["milk", "bread"], ["tea"]], k=5).to_pandas()

The list of a history does not depend on other histories: the noise of the initial state is a function of the history.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from lares_pl.checks import at_least_one, switch, whole
from lares_pl.data.dataset.ids import ItemIndex, plain_ids
from lares_pl.data.dataset.prepared import SequenceDataset
from lares_pl.data.loading.external_histories import GivenHistories, Id, UnseenHistories
from lares_pl.data.loading.histories import Histories
from lares_pl.errors import LaresError
from lares_pl.model.backbone import RecurrentBackbone
from lares_pl.model.device import resolve_device
from lares_pl.model.reasoning import Reasoning, StopRule, mean_up_to_each
from lares_pl.model.recurrence import KeyedNoise
from lares_pl.recommender.candidates import Candidates, PerUserCandidates, SharedCandidates
from lares_pl.recommender.given_candidates import GivenCandidates, split_candidates
from lares_pl.recommender.new_items import unknown_items
from lares_pl.recommender.recommendations import Recommendations
from lares_pl.stages.checkpoint import read_checkpoint
from lares_pl.stages.growth import with_new_items
from lares_pl.stages.loading import load_stage


class Recommender:
    """Ranks a catalogue for histories of original ids.

    Args:
        backbone: the trained model; moved to `device`, in evaluation mode.
        item_ids: original ids of items 1 … N.
        reasoning: default of what `recommend` spends on a history.
        exclude_seen: default of `recommend` for excluding the items of the history.
        device: the device; `auto` is the GPU if there is one.

    Raises:
        LaresError: if the number of ids is not that of the items, or there is no such device.
    """

    def __init__(
        self,
        backbone: RecurrentBackbone,
        item_ids: pa.Array,
        reasoning: Reasoning,
        exclude_seen: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        if len(item_ids) != backbone.items:
            raise LaresError(f"{len(item_ids):,} item ids for a model of {backbone.items:,} items")
        self.device = resolve_device(device)
        self.backbone = backbone.to(self.device).eval()
        self.reasoning = reasoning
        self.exclude_seen = exclude_seen
        ids = item_ids.to_pylist()
        self._ids = np.array([None, *ids], dtype=object)  # by item
        self._id_type = pa.array(ids).type  # as Arrow sees what Python sees
        self._index = ItemIndex(item_ids)

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, dataset: str | Path | None = None, device: torch.device | str = "cpu"
    ) -> Recommender:
        """Create a recommender from a checkpoint of either stage, which is all that is needed.

        Args:
            path: the checkpoint.
            dataset: prepared dataset with the original ids, for a checkpoint without them (of the authors' release).
            device: the device; `auto` is the GPU if there is one.

        Raises:
            LaresError: if there is no such checkpoint, dataset or device, or the dataset has another catalogue.
        """
        checkpoint = read_checkpoint(path)
        ids = checkpoint.item_ids if dataset is None else _ids_of(SequenceDataset.load(dataset), checkpoint.catalogue, path)
        if ids is None:
            raise LaresError(f"{path} does not contain the ids of its items: give the prepared dataset it was trained on")
        stage = load_stage(path)
        return cls(stage.backbone, ids, stage.reasoning, stage.exclude_seen, device)

    def with_items(self, item_ids: Iterable[Id], vectors: np.ndarray) -> Recommender:
        """The same with further items, ranked from their text alone, as the item nearest by it; for models that read text.

        Args:
            item_ids: their original ids; items that are known, or have no text, are left out.
            vectors: their text vectors, from the encoder of the others, `[n, p]`; zeros are no text.

        Raises:
            LaresError: if the model reads no text, an id occurs twice, or the vectors don't fit.
        """
        new, text = unknown_items(self._index, item_ids, vectors)
        ids = pa.array(plain_ids(pd.Series([*self._ids[1:], *new], dtype=object)), from_pandas=True)
        return Recommender(with_new_items(self.backbone, text), ids, self.reasoning, self.exclude_seen, self.device)

    # ------------------------------------------------------------ recommending

    def recommend(
        self,
        histories: GivenHistories,
        k: int = 10,
        *,
        depth: int | None = None,
        stop: StopRule | None = None,
        trajectories: int | None = None,
        average_steps: bool | None = None,
        exclude_seen: bool | None = None,
        candidates: GivenCandidates | None = None,
        filter: Callable[[Id], bool] | None = None,
        batch_size: int = 1024,
    ) -> Recommendations:
        """Rank the best items for each history.

        Args:
            histories: item ids, oldest first, of one user or many; `UnseenHistories.of` lists the forms they may have. Items
                that the model does not know are skipped, and reported in `unknown`.
            k: length of each list; shorter where fewer items are left.
            depth: number of reasoning steps (with `stop` the largest); the model's own where None.
            stop: ends reasoning about a history once it has arrived.
            trajectories: trajectories whose scores are averaged.
            average_steps: average the scores of all steps.
            exclude_seen: leave out the items of each history; as the model was evaluated where None.
            candidates: rank only these items; a mapping, or a series of lists indexed by user, gives each user's own (none
                where it names no such user), as a list of lists does, one for each history. Those that the model does not
                know are reported in `unknown_candidates`.
            filter: rank only items of whose id this is true.
            batch_size: histories at a time.

        Raises:
            LaresError: if histories have an unknown form, a number is out of range, or no item is left to rank.
        """
        k, batch_size = at_least_one("k", k), at_least_one("batch_size", batch_size)
        reasoning = self._reasoning(depth, stop, trajectories, average_steps)
        unseen = UnseenHistories.of(histories)
        numbers = self._index.numbers(unseen.items)
        seen = [part[part > 0] for part in np.split(numbers, unseen.offsets[1:-1])] if unseen.users else []
        ranking, unknown = self._ranking(candidates, filter, unseen.users)
        skipped = [part.tolist() for part in np.split(unseen.items[numbers == 0], _bounds(numbers == 0, unseen.offsets))]
        found = Recommendations(
            unseen.users,
            [[] for _ in unseen.users],
            [[] for _ in unseen.users],
            [0.0] * len(unseen.users),
            skipped if unseen.users else [],
            unknown,
            self._id_type,
        )
        leave_out = self.exclude_seen if exclude_seen is None else exclude_seen
        known = [row for row, part in enumerate(seen) if len(part)]
        for start in range(0, len(known), batch_size):
            rows = known[start : start + batch_size]
            of_rows = [seen[row] for row in rows]
            read = self._read(of_rows)
            states, steps = self._reasoned(read, reasoning)
            scores, best = ranking.best(self.backbone.head(read), states, k, rows, of_rows if leave_out else None)
            for row, made, of_row, ranked in zip(rows, steps.tolist(), scores, best, strict=True):
                real = np.isfinite(of_row)
                found.item_ids[row] = self._ids[ranked[real]].tolist()
                found.scores[row] = of_row[real].tolist()
                found.steps[row] = made
        return found

    def explain(
        self, history: GivenHistories, k: int = 10, *, depth: int | None = None, exclude_seen: bool | None = None
    ) -> pd.DataFrame:
        """Show how the list of one history develops: the best items after each reasoning step.

        Args:
            history: item ids of one user, oldest first; in any form of `recommend`.
            k: length of each list.
            depth: number of reasoning steps.
            exclude_seen: exclude the items of the history.

        Returns:
            One row per step and rank: `step` (1 … depth; 0 if depth is 0), `rank`, `item_id`, `score`.

        Raises:
            LaresError: if it is not one history, none of its items is known, or k or depth is out of range.
        """
        unseen = UnseenHistories.of(history)
        if len(unseen.users) != 1:
            raise LaresError(f"explain takes one history at a time, with items in it; there are {len(unseen.users)}")
        numbers = self._index.numbers(unseen.items)
        seen = numbers[numbers > 0]
        if len(seen) == 0:
            raise LaresError(f"no item of this history is in the catalogue: {unseen.items[:5].tolist()}")
        depth = self._reasoning(depth).depth
        read = self._read([seen])
        states = self._path(read, depth)
        head = self.backbone.head(read).repeat(len(states), 1)
        rows = [0] * len(states)
        leave_out = self.exclude_seen if exclude_seen is None else exclude_seen
        everything, _ = self._ranking(None, None, [])
        scores, best = everything.best(head, states, at_least_one("k", k), rows, [seen] * len(states) if leave_out else None)
        places = [
            (step, rank, self._ids[item], score)
            for step, items, of_step in zip(range(min(depth, 1), depth + 1), best, scores, strict=True)
            for rank, (item, score) in enumerate(zip(items, of_step.tolist(), strict=True), start=1)
            if np.isfinite(score)
        ]
        return pd.DataFrame(places, columns=["step", "rank", "item_id", "score"])

    # ------------------------------------------------------------ the work

    def _reasoning(
        self,
        depth: int | None,
        stop: StopRule | None = None,
        trajectories: int | None = None,
        average_steps: bool | None = None,
    ) -> Reasoning:
        own = self.reasoning
        return Reasoning(
            own.depth if depth is None else whole("depth", depth),
            own.stop if stop is None else stop,
            own.trajectories if trajectories is None else whole("trajectories", trajectories),
            own.average_steps if average_steps is None else switch("average_steps", average_steps),
        )

    def _read(self, seen: Sequence[np.ndarray]) -> Histories:
        longest = self.backbone.max_length
        return Histories.from_lists([part[-longest:].tolist() for part in seen]).to(self.device)

    @torch.no_grad()
    def _reasoned(self, read: Histories, reasoning: Reasoning) -> tuple[Tensor, Tensor]:
        """User states `[B, d]` and numbers of steps `[B]`."""
        return reasoning(self.backbone, read)

    @torch.no_grad()
    def _path(self, read: Histories, depth: int) -> Tensor:
        """The user state that ranks after every step, `[T, d]`."""
        (states,) = self.backbone.rollout(read, [depth], KeyedNoise(read))
        if self.reasoning.average_steps:
            states = mean_up_to_each(self.backbone.config.similarity, states)
        return states[:, 0]

    def _looked_up(self, lists: Iterable[list[Id]]) -> tuple[list[np.ndarray], list[Id]]:
        """Lists of candidates as item indices, and those that are not in the catalogue, each once."""
        numbers: list[np.ndarray] = []
        unknown: dict[Id, None] = {}
        for asked in lists:
            numbers.append(self._index.numbers(asked))
            unknown |= dict.fromkeys(item for item, number in zip(asked, numbers[-1], strict=True) if number == 0)
        return numbers, list(unknown)

    def _ranking(
        self,
        candidates: GivenCandidates | None,
        allowed: Callable[[Id], bool] | None,
        users: Sequence[Id],
    ) -> tuple[Candidates, list[Id]]:
        """What is to be ranked, and the candidates that can't be."""
        open_to_all = np.ones(len(self._ids), dtype=bool)
        open_to_all[0] = False
        if allowed is not None:
            open_to_all[1:] = [bool(allowed(item_id)) for item_id in self._ids[1:]]
        unknown: list[Id] = []
        if candidates is not None:
            lists, per_user = split_candidates(candidates, users)
            numbers, unknown = self._looked_up(lists)
            if per_user:
                choices = [torch.from_numpy(part[open_to_all[part]]).to(self.device) for part in map(np.unique, numbers)]
                return PerUserCandidates(choices), unknown
            chosen = np.zeros(len(self._ids), dtype=bool)
            chosen[numbers[0]] = True
            open_to_all &= chosen
        if not open_to_all.any():
            raise LaresError("no item is left to rank: none of the candidates is known, or the filter lets none through")
        return SharedCandidates(self.backbone, torch.from_numpy(np.flatnonzero(open_to_all)).to(self.device)), unknown


def _ids_of(dataset: SequenceDataset, catalogue: Mapping[str, object], path: str | Path) -> pa.Array:
    """Original ids of a dataset, if its catalogue is the model's."""
    known = catalogue["fingerprint"]
    if dataset.catalogue_size != catalogue["items"] or known not in (None, dataset.catalogue_fingerprint):
        raise LaresError(f"{dataset.path}: not the catalogue that {path} was trained on; name its own dataset")
    return dataset.item_ids


def _bounds(chosen: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Where each user's part of what was chosen ends, the last one's aside."""
    counts: np.ndarray = np.concatenate([[0], chosen.cumsum()])[offsets[1:-1]]
    return counts
