"""A trained model as a product: histories of original ids in, ranked original ids out.

    recommender = Recommender.from_checkpoint("runs/default/rpt/checkpoints/best.ckpt")
    recommender.recommend([["milk", "bread"], ["tea"]], k=5).to_pandas()

The same history always gets the same list, alone or among others: the noise of its initial state is a function of the history.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from lares_pl.atomic_io import atomic_write, check_free
from lares_pl.data.dataset.ids import ItemIndex, id_text
from lares_pl.data.dataset.prepared import SequenceDataset
from lares_pl.data.loading.external_histories import GivenHistories, Id, UnseenHistories
from lares_pl.data.loading.histories import Histories
from lares_pl.data.prepare.readers import Columns
from lares_pl.device import resolve_device
from lares_pl.errors import LaresError
from lares_pl.model.backbone import RecurrentBackbone
from lares_pl.model.reasoning import Reasoning, StopRule
from lares_pl.model.recurrence import KeyedNoise
from lares_pl.recommender.candidates import Choice, OwnChoices, SharedChoice
from lares_pl.stages.checkpoint import read_checkpoint
from lares_pl.stages.loading import load_stage


@dataclass(frozen=True)
class Recommendations:
    """Ranked items of U users.

    Args:
        users: their ids; 0 … U - 1 where the histories had none.
        item_ids: for each the items, best first; none where nothing of the history is known.
        scores: for each their scores, beside the items.
        steps: number of reasoning steps made for each.
        unknown: for each the items of the history that the model does not know, and skipped.
        unknown_candidates: candidates that the model does not know, and can't rank, each once.
        item_type: Arrow's type of the catalogue's ids.
    """

    users: list[Id]
    item_ids: list[list[Id]]
    scores: list[list[float]]
    steps: list[float]
    unknown: list[list[Id]]
    unknown_candidates: list[Id] = field(default_factory=list)
    item_type: pa.DataType = field(default_factory=pa.string)

    def __len__(self) -> int:
        return len(self.users)

    def to_arrow(self) -> pa.Table:
        """A row a user: `user_id` (as text where users are called by text and by numbers), `item_ids`, `scores`, `steps`,
        `unknown` (as text)."""
        unknown = [[str(item) for item in items] for items in self.unknown]
        columns = {
            "user_id": _arrow_ids(self.users),
            "item_ids": pa.array(self.item_ids, pa.list_(self.item_type)),
            "scores": pa.array(self.scores, pa.list_(pa.float32())),
            "steps": pa.array(self.steps, pa.float64()),
            "unknown": pa.array(unknown, pa.list_(pa.string())),
        }
        return pa.table(columns)

    def to_pandas(self) -> pd.DataFrame:
        """A row a recommendation: `user_id`, `rank` (1 is best), `item_id`, `score`."""
        lists = zip(self.users, self.item_ids, self.scores, strict=True)
        rows = [
            (user, rank, item, score)
            for user, items, scores in lists
            for rank, (item, score) in enumerate(zip(items, scores, strict=True), start=1)
        ]
        return pd.DataFrame(rows, columns=["user_id", "rank", "item_id", "score"])


class Recommender:
    """Ranks a catalogue for histories of original ids.

    Args:
        backbone: the trained model; moved to `device`, in evaluation mode.
        item_ids: original ids of items 1 … N.
        reasoning: what to spend on a history where `recommend` does not say.
        exclude_seen: whether items of the history are left out where `recommend` does not say.
        device: where to compute; `auto` is the GPU where there is one.

    Raises:
        LaresError: if there are not as many ids as items, or there is no such device.
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
        """Of a checkpoint of either stage, which is all that is needed.

        Args:
            path: the checkpoint.
            dataset: prepared dataset whose original ids count, for a checkpoint that knows none (of the authors' release).
            device: where to compute; `auto` is the GPU where there is one.

        Raises:
            LaresError: if there is no such checkpoint, dataset or device, or the dataset has another catalogue.
        """
        checkpoint = read_checkpoint(path)
        ids = checkpoint.item_ids if dataset is None else _ids_of(SequenceDataset.load(dataset), checkpoint.catalogue, path)
        if ids is None:
            raise LaresError(f"{path} does not know the original ids of its items: name the prepared dataset it is for")
        stage = load_stage(path)
        return cls(stage.backbone, ids, stage.reasoning, stage.exclude_seen, device)

    # ------------------------------------------------------------ recommending

    def recommend(
        self,
        histories: GivenHistories,
        k: int = 10,
        *,
        depth: int | None = None,
        stop: StopRule | None = None,
        trajectories: int | None = None,
        exclude_seen: bool | None = None,
        candidates: Iterable[Id] | Mapping[Id, Iterable[Id]] | None = None,
        filter: Callable[[Id], bool] | None = None,
        batch_size: int = 1024,
    ) -> Recommendations:
        """The best items for each history.

        Args:
            histories: item ids, oldest first, of one user or many; `UnseenHistories.of` lists the forms they may have. Items
                that the model does not know are skipped, and reported in `unknown`.
            k: length of each list; shorter where fewer items are left.
            depth: number of reasoning steps (with `stop` the largest); the model's own where None.
            stop: ends reasoning about a history once it has arrived.
            trajectories: trajectories whose scores are averaged.
            exclude_seen: leave out the items of each history; as the model was evaluated where None.
            candidates: rank only these items; a mapping gives each user's own (none where it names no such user). Those that
                the model does not know are reported in `unknown_candidates`.
            filter: rank only items of whose id this is true.
            batch_size: histories at a time.

        Raises:
            LaresError: if histories are in no form that is known, a number is out of range, or no item is left to rank.
        """
        k, batch_size = _at_least_one("k", k), _at_least_one("batch_size", batch_size)
        reasoning = self._reasoning(depth, stop, trajectories)
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
        """How one history's list came about, as far as the model can honestly say: the best items after each step.

        Args:
            history: item ids of one user, oldest first; in any form of `recommend`.
            k: length of each list.
            depth: number of reasoning steps.
            exclude_seen: leave out the items of the history.

        Returns:
            A row a place: `step` (1 … depth; 0 where depth is 0), `rank`, `item_id`, `score`.

        Raises:
            LaresError: if it is not one history, nothing of it is known, or k or depth is out of range.
        """
        unseen = UnseenHistories.of(history)
        if len(unseen.users) != 1:
            raise LaresError(f"explain takes one history at a time, with items in it; there are {len(unseen.users)}")
        numbers = self._index.numbers(unseen.items)
        seen = numbers[numbers > 0]
        if len(seen) == 0:
            raise LaresError(f"no item of this history is in the catalogue: {unseen.items[:5].tolist()}")
        depth = self._reasoning(depth, None, 1).depth
        read = self._read([seen])
        states = self._path(read, depth)
        head = self.backbone.head(read).repeat(len(states), 1)
        rows = [0] * len(states)
        leave_out = self.exclude_seen if exclude_seen is None else exclude_seen
        everything, _ = self._ranking(None, None, [])
        scores, best = everything.best(head, states, _at_least_one("k", k), rows, [seen] * len(states) if leave_out else None)
        places = [
            (step, rank, self._ids[item], score)
            for step, items, of_step in zip(range(min(depth, 1), depth + 1), best, scores, strict=True)
            for rank, (item, score) in enumerate(zip(items, of_step.tolist(), strict=True), start=1)
            if np.isfinite(score)
        ]
        return pd.DataFrame(places, columns=["step", "rank", "item_id", "score"])

    # ------------------------------------------------------------ the work

    def _reasoning(self, depth: int | None, stop: StopRule | None, trajectories: int | None) -> Reasoning:
        own = self.reasoning
        return Reasoning(
            own.depth if depth is None else _whole("depth", depth),
            own.stop if stop is None else stop,
            own.trajectories if trajectories is None else _whole("trajectories", trajectories),
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
        """The user state after every step, `[T, d]`."""
        (states,) = self.backbone.rollout(read, [depth], KeyedNoise(read))
        return states[:, 0]

    def _looked_up(self, lists: Iterable[Any]) -> tuple[list[np.ndarray], list[Id]]:
        """Lists of candidates as item indices, and those that are not in the catalogue, each once."""
        numbers: list[np.ndarray] = []
        unknown: dict[Id, None] = {}
        for asked in map(_given, lists):
            numbers.append(self._index.numbers(asked))
            unknown |= dict.fromkeys(item for item, number in zip(asked, numbers[-1], strict=True) if number == 0)
        return numbers, list(unknown)

    def _ranking(
        self,
        candidates: Iterable[Id] | Mapping[Id, Iterable[Id]] | None,
        allowed: Callable[[Id], bool] | None,
        users: Sequence[Id],
    ) -> tuple[Choice, list[Id]]:
        """What is to be ranked, and the candidates that can't be."""
        open_to_all = np.ones(len(self._ids), dtype=bool)
        open_to_all[0] = False
        if allowed is not None:
            open_to_all[1:] = [bool(allowed(item_id)) for item_id in self._ids[1:]]
        if isinstance(candidates, Mapping):
            of_user, unknown = self._looked_up(candidates.get(user, ()) for user in users)
            choices = [torch.from_numpy(part[open_to_all[part]]).to(self.device) for part in map(np.unique, of_user)]
            return OwnChoices(choices), unknown
        unknown = []
        if candidates is not None:
            (numbers,), unknown = self._looked_up([candidates])
            chosen = np.zeros(len(self._ids), dtype=bool)
            chosen[numbers] = True
            open_to_all &= chosen
        if not open_to_all.any():
            raise LaresError("no item is left to rank: none of the candidates is known, or the filter lets none through")
        return SharedChoice(self.backbone, torch.from_numpy(np.flatnonzero(open_to_all)).to(self.device)), unknown


# ---------------------------------------------------------------- the command


def recommend(
    ckpt_path: str,
    histories: str,
    output: str = "recommendations.parquet",
    k: int = 10,
    depth: int | None = None,
    stop: StopRule | None = None,
    trajectories: int = 1,
    exclude_seen: bool | None = None,
    candidates: str | None = None,
    columns: Columns = Columns(),
    dataset: str | None = None,
    device: str = "cpu",
    batch_size: int = 1024,
    overwrite: bool = False,
) -> None:
    """Rank the catalogue for histories never seen in training; the checkpoint is all that is needed.

    Args:
        ckpt_path: checkpoint of a stage.
        histories: file of interactions, in a format `lares prepare` reads, with original ids.
        output: file to write: `.parquet` with a row a user, `.csv` with a row a recommendation.
        k: length of each list.
        depth: number of reasoning steps; with `stop` the largest.
        stop: ends reasoning about a history once it has arrived, such as `lares_pl.ResidualStop`.
        trajectories: trajectories from different initial states, whose scores are averaged.
        exclude_seen: leave out the items of each history; as the model was evaluated where not given.
        candidates: text file with the original ids of the items to rank, one a line; all where not given.
        columns: names of the columns of `histories`.
        dataset: prepared dataset whose original ids count, for a checkpoint that knows none.
        device: what computes: cpu, cuda, auto (the GPU where there is one).
        batch_size: histories at a time.
        overwrite: replace the file if it is there.

    Raises:
        LaresError: if something can't be read or written, or is out of range.

    Example:
        lares recommend --ckpt_path runs/beauty/rpt/checkpoints/best.ckpt --histories new.csv --k 20
        lares recommend --ckpt_path best.ckpt --histories new.csv --exclude_seen true --output new-lists.csv
        lares recommend --ckpt_path best.ckpt --histories new.csv --depth 16 --stop lares_pl.ResidualStop
    """
    place = Path(output)
    if place.suffix not in (".parquet", ".csv"):
        raise LaresError(f"--output {output}: name a file that ends with .parquet or .csv")
    check_free(place, overwrite)
    recommender = Recommender.from_checkpoint(ckpt_path, dataset, device)
    among = None if candidates is None else _lines(Path(candidates))
    unseen = UnseenHistories.read(Path(histories), columns)
    found = recommender.recommend(
        dict(zip(unseen.users, np.split(unseen.items, unseen.offsets[1:-1]), strict=True)),
        k,
        depth=depth,
        stop=stop,
        trajectories=trajectories,
        exclude_seen=exclude_seen,
        candidates=among,
        batch_size=batch_size,
    )
    with atomic_write(place) as temporary:
        if place.suffix == ".csv":
            found.to_pandas().to_csv(temporary, index=False)
        else:
            pq.write_table(found.to_arrow(), temporary, compression="zstd")
    if found.unknown_candidates:
        print(
            f"{len(found.unknown_candidates):,} candidates are not in the catalogue and can't be ranked: the first is "
            f"{found.unknown_candidates[0]!r}"
        )
    print(f"wrote {len(found):,} rankings to {place}" + _about_unknown(found, len(unseen.items)))


def _about_unknown(found: Recommendations, interactions: int) -> str:
    unknown = sum(map(len, found.unknown))
    if not unknown:
        return ""
    row = next(row for row, items in enumerate(found.unknown) if items)
    nothing = sum(not items for items in found.item_ids)
    return (
        f"\n{unknown:,} of {interactions:,} interactions name items that the model does not know, and were skipped: the first "
        f"is {found.unknown[row][0]!r} of user {found.users[row]!r}" + (f"; {nothing:,} users have no list" if nothing else "")
    )


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, UnicodeDecodeError) as error:
        raise LaresError(f"{path}: can't be read: {error}") from error


def _ids_of(dataset: SequenceDataset, catalogue: Mapping[str, object], path: str | Path) -> pa.Array:
    """Original ids of a dataset, if its catalogue is the model's."""
    known = catalogue["fingerprint"]
    if dataset.catalogue_size != catalogue["items"] or known not in (None, dataset.catalogue_fingerprint()):
        raise LaresError(f"{dataset.path}: not the catalogue that {path} was trained on; name its own dataset")
    return dataset.item_ids


def _whole(name: str, value: Any, wanted: str = "a whole number") -> int:
    """A whole number of Python or numpy."""
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise LaresError(f"{name} must be {wanted}; got {value!r}")


def _at_least_one(name: str, value: Any) -> int:
    wanted = "a whole number, at least 1"
    number = _whole(name, value, wanted)
    if number < 1:
        raise LaresError(f"{name} must be {wanted}; got {value!r}")
    return number


def _given(candidates: Any) -> list[Id]:
    """Candidates as a list."""
    if isinstance(candidates, str | bytes) or not isinstance(candidates, Iterable):
        raise LaresError(f"candidates: {candidates!r} is no list of item ids")
    return list(candidates)


def _arrow_ids(ids: Sequence[Id]) -> pa.Array:
    """Ids of users, as text where they are of several types."""
    try:
        array = pa.array(ids)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([id_text(part) for part in ids], pa.string())
    return array.cast(pa.string()) if pa.types.is_null(array.type) else array


def _bounds(chosen: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Where each user's part of what was chosen ends, the last one's aside."""
    counts: np.ndarray = np.concatenate([[0], chosen.cumsum()])[offsets[1:-1]]
    return counts
