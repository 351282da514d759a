"""Histories from outside a prepared dataset: as Python objects, tables or files, and as item indices of a catalogue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa

from lares_pl.data.dataset.ids import ItemIndex, plain_ids, without_zero_fraction
from lares_pl.data.dataset.prepared import SequenceDataset
from lares_pl.data.prepare.columns import Columns, possible_times, times
from lares_pl.data.prepare.readers import read_interactions
from lares_pl.data.prepare.source import Source
from lares_pl.errors import LaresError

Id = Any  # an original id of a user or an item in the raw data
GivenHistories: TypeAlias = (
    Sequence[Any]
    | np.ndarray
    | pd.Series
    | pd.Index
    | pa.Array
    | pa.ChunkedArray
    | Mapping[Any, Sequence[Any]]
    | pd.DataFrame
    | pa.Table
)


@dataclass(frozen=True)
class UnseenHistories:
    """Histories of U users in original ids.

    Args:
        users: ids of the users; 0 … U - 1 if unknown.
        items: item ids of all users, concatenated, oldest first, `[n]` objects.
        offsets: offset of each user's items, and the total, `[U + 1]`.
    """

    users: list[Id]
    items: np.ndarray
    offsets: np.ndarray

    @staticmethod
    def of(given: GivenHistories) -> UnseenHistories:
        """Convert histories from Python objects or tables.

        Args:
            given: item ids, oldest first, of one user (a list) or of many (a list of lists, or a mapping from user to list); or
                a table of pandas or Arrow: a row an interaction (`user_id`, `item_id`, `timestamp` if known, numbers or
                dates, also as text: else the rows' order counts), or a row a user (`item_ids`, `user_id` if known); the
                index may have some of these. A series of lists has a user an entry, named by its index; a series of item ids is
                one user's, or a row an interaction where its index is called `user_id`.

        Raises:
            LaresError: if it is none of these, or a row has no user, no item or an invalid timestamp.
        """
        if isinstance(given, pa.Table):
            given = given.to_pandas()
        if isinstance(given, pa.Array | pa.ChunkedArray):
            given = given.to_pylist()
        if isinstance(given, pd.Series):
            given = _of_series(given)
        if isinstance(given, pd.DataFrame):
            levels = [name for name in ("user_id", "item_id", "timestamp") if name in given.index.names]
            given = given.reset_index([name for name in levels if name not in given.columns])
            return (
                _of_rows(given) if "item_ids" in given.columns else _of_interactions(given, "user_id", "item_id", "timestamp")
            )
        if isinstance(given, Mapping):
            return _of_lists(list(given), list(given.values()))
        if not _is_list(given):
            raise LaresError(
                f"histories: {type(given).__name__} is not supported; give a list of item ids, a list of such lists, a "
                "mapping from user to such a list, or a pandas or Arrow table"
            )
        many = [_is_list(part) for part in given]
        if len(set(many)) > 1:
            raise LaresError(f"histories: a list contains both item ids and lists (element {many.index(not many[0])})")
        lists = list(given) if any(many) or len(given) == 0 else [given]
        return _of_lists(list(range(len(lists))), lists)

    @staticmethod
    def read(source: Source, columns: Columns) -> UnseenHistories:
        """Histories of interactions that `lares prepare` reads, with ids as it writes them.

        Raises:
            LaresError: if they can't be read.
        """
        table = pd.concat(list(read_interactions(source, columns)), ignore_index=True)
        return _of_interactions(table, "user", "item", "time")


def _of_series(given: pd.Series) -> pd.Series | pd.DataFrame | Mapping[Any, Any]:
    """A series in the form that says the same: one history, interactions, or lists by user."""
    if len(given) and all(part is None or _is_list(part) for part in given):
        if given.index.has_duplicates:
            raise LaresError(f"histories: the series names user {given.index[given.index.duplicated()][0]!r} twice")
        return dict(zip(given.index.tolist(), given.tolist(), strict=True))
    if "user_id" in given.index.names:
        return given.rename("item_id").reset_index("user_id")
    if given.index.has_duplicates:
        raise LaresError(
            "histories: a series of item ids whose index repeats: call the index user_id if it names users, or drop it with "
            "reset_index(drop=True) if they are one user's"
        )
    return given


def _is_list(part: Any) -> bool:
    return isinstance(part, Sequence | np.ndarray | pd.Series | pd.Index | pa.Array) and not isinstance(part, str | bytes)


def _of_lists(users: list[Id], lists: Sequence[Any]) -> UnseenHistories:
    if wrong := [user for user, part in zip(users, lists, strict=True) if part is not None and not _is_list(part)]:
        raise LaresError(f"histories: the value of user {wrong[0]!r} is not a list of item ids")
    parts = [[] if part is None else part.to_pylist() if isinstance(part, pa.Array) else list(part) for part in lists]
    if odd := next((item for part in parts for item in part if _is_list(item) or isinstance(item, Set | Mapping)), None):
        raise LaresError(
            f"histories: {type(odd).__name__} in place of an item id: {odd!r}; each history must be a list of ids, oldest first"
        )
    items = np.array([None, *(item for part in parts for item in part)], dtype=object)[1:]
    return UnseenHistories(users, items, np.concatenate([[0], np.cumsum([len(part) for part in parts], dtype=np.int64)]))


def _of_rows(table: pd.DataFrame) -> UnseenHistories:
    users = table["user_id"].tolist() if "user_id" in table.columns else list(range(len(table)))
    return _of_lists(users, table["item_ids"].tolist())


def _of_interactions(table: pd.DataFrame, user: str, item: str, time: str) -> UnseenHistories:
    """Users in the order of their first row."""
    if missing := [name for name in (user, item) if name not in table.columns]:
        raise LaresError(
            f"histories: no column {' and no '.join(missing)}; there are {', '.join(map(str, table.columns))}. Expected "
            f"{user}, {item} and, if known, {time}; or item_ids, one list per row"
        )
    if user == "user_id" and time not in table.columns and (others := possible_times(list(map(str, table.columns)))):
        raise LaresError(
            f"histories: no column {time} to order the items by. Call {others[0]!r} so if it holds their times; drop it if the "
            "rows are in order"
        )
    empty = table[[user, item]].isna().any(axis=1).to_numpy()
    if empty.any():
        raise LaresError(f"histories: data row {int(np.argmax(empty)) + 1} names no {user} or no {item}")
    codes, users = pd.factorize(without_zero_fraction(plain_ids(table[user])))
    moments = [times(table[time], "histories", time)[0].to_numpy()] if time in table.columns else []
    order = np.lexsort([*moments, codes])  # stable: where no time tells, the rows' order counts
    items = without_zero_fraction(plain_ids(table[item])).to_numpy(dtype=object)[order]
    return UnseenHistories(list(users), items, np.concatenate([[0], np.bincount(codes, minlength=len(users)).cumsum()]))


def read_histories(source: Source, columns: Columns, known: SequenceDataset) -> SequenceDataset:
    """Sequences of interactions, with the item indices of a prepared dataset.

    Args:
        source: the file or folder, in a format `lares prepare` reads.
        columns: names of its columns.
        known: the dataset with the catalogue.

    Raises:
        LaresError: if the file cannot be read or contains an item that is not in the catalogue.
    """
    unseen = UnseenHistories.read(source, columns)
    items = ItemIndex(known.item_ids).numbers(unseen.items)
    unknown = items == 0
    if unknown.any():
        first = int(np.argmax(unknown))
        user = unseen.users[int(np.searchsorted(unseen.offsets, first, side="right")) - 1]
        raise LaresError(
            f"{source.path}: item {unseen.items[first]!r} of user {user!r} is not in the catalogue of {known.path} "
            f"({int(unknown.sum())} of {len(items)} rows are unknown). `lares recommend` skips and reports such rows; or leave "
            "them out, or train on data that has them."
        )
    return SequenceDataset.of_arrays(
        items.astype(np.int32), unseen.offsets, pa.array(unseen.users), known.item_ids, str(source.path)
    )
