"""Candidates in the forms that programs hold them: the same for all users, or each user's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa

from lares_pl.data.dataset.ids import id_text
from lares_pl.data.loading.external_histories import Id
from lares_pl.errors import LaresError

GivenCandidates: TypeAlias = Iterable[Id] | Iterable[Iterable[Id]] | Mapping[Id, Iterable[Id]]


def split_candidates(given: GivenCandidates, users: Sequence[Id]) -> tuple[list[list[Id]], bool]:
    """Lists of candidates, one for all users or one for each of them; and whether each user has one.

    Args:
        given: item ids; or a mapping from user to item ids, or a series of lists indexed by user (none where it does not name
            a user); or a list of lists, one for each history.
        users: the users.

    Raises:
        LaresError: if they are none of these, or there are not as many lists as users.
    """
    if isinstance(given, pd.DataFrame | pa.Table):
        raise LaresError(
            "candidates: a table is not understood; give its column of item ids, or a mapping from user to item ids"
        )
    if isinstance(given, Mapping):
        return _of_users(given, users), True
    listed = _ids(given)
    nested = [
        isinstance(part, Sequence | Set | np.ndarray | pd.Series) and not isinstance(part, str | bytes) for part in listed
    ]
    if not any(nested):
        return [listed], False
    if not all(nested):
        raise LaresError(f"candidates: a list holds both item ids and lists (its part {nested.index(not nested[0])})")
    if isinstance(given, pd.Series) and not isinstance(given.index, pd.RangeIndex):
        if given.index.has_duplicates:
            raise LaresError(f"candidates: the series names user {given.index[given.index.duplicated()][0]!r} twice")
        return _of_users(dict(zip(given.index.tolist(), listed, strict=True)), users), True
    if len(listed) != len(users):
        raise LaresError(f"candidates: {len(listed)} lists for {len(users)} histories; give each history one, in their order")
    return [_ids(part) for part in listed], True


def _of_users(lists: Mapping[Id, Iterable[Id]], users: Sequence[Id]) -> list[list[Id]]:
    by_text = {id_text(user): part for user, part in lists.items()}  # 7 and "7" are the same user, as they are the same item
    if by_text and users and not any(id_text(user) in by_text for user in users):
        raise LaresError(
            f"candidates: they name users such as {next(iter(lists))!r}, and none of them has a history (the first is of "
            f"{users[0]!r})"
        )
    return [_ids(lists[user] if user in lists else by_text.get(id_text(user), ())) for user in users]


def _ids(given: Any) -> list[Id]:
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise LaresError(f"candidates: {given!r} is no list of item ids")
    return list(given)
