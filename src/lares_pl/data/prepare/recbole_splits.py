"""RecBole benchmark files, which are already split: `NAME.train.inter`, `NAME.valid.inter`, `NAME.test.inter`.

Each row has a user, a history and a target. A user's whole sequence is reconstructed from all rows, so that its
leave-one-out split is that of the files: the test row's target comes last, the validation row's before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from lares_pl.errors import LaresError

PARTS = ("train", "valid", "test")
_NAME = re.compile(rf"(.+)\.(?:{'|'.join(PARTS)})\.inter(?:\.gz)?")


def benchmark_files(source: Path) -> list[Path] | None:
    """Return the three files of a benchmark if `source` is its folder or one of them, else None.

    Raises:
        LaresError: if some of the three are missing, or the folder contains several benchmarks.
    """
    if source.is_dir():
        names = {found[1] for path in source.iterdir() if (found := _NAME.fullmatch(path.name))}
        if len(names) != 1:
            there = f"those of {', '.join(sorted(names))}: give one of the files instead" if names else "none"
            raise LaresError(
                f"{source} is a folder; expected the RecBole benchmark files NAME.train.inter, NAME.valid.inter and "
                f"NAME.test.inter of one NAME in it, found {there}"
            )
        folder, name = source, names.pop()
    else:
        found = _NAME.fullmatch(source.name)
        if found is None:
            return None
        folder, name = source.parent, found[1]
    choices = [[folder / f"{name}.{part}.inter{end}" for end in ("", ".gz")] for part in PARTS]
    files = [next((path for path in choice if path.is_file()), choice[0]) for choice in choices]
    if missing := [path.name for path in files if not path.is_file()]:
        raise LaresError(f"{folder}: {', '.join(missing)} of the benchmark {name} is missing; all three parts are needed")
    return files


def join_parts(parts: Iterable[tuple[Path, pd.DataFrame]]) -> pd.DataFrame:
    """Reconstruct the interactions `user`, `item`, in order, from train, valid and test rows.

    Args:
        parts: the files in this order, each with its table: `user`, `history` (items separated by spaces) and `item`.

    Raises:
        LaresError: if a user's rows are not from one sequence, or a user has no validation or test row.
    """
    tables = []
    for stage, (path, table) in enumerate(parts):
        lengths = table["history"].str.count(" ").to_numpy() + 1
        row = np.arange(1, len(table) + 1)
        tables.append(table.assign(stage=stage, path=str(path), row=row, length=np.where(table["history"] == "", 0, lengths)))
    rows = pd.concat(tables, ignore_index=True)
    if (empty := rows["length"] == 0).any():
        raise LaresError(f"{_place(rows[empty].iloc[0])} has no history. Fill it in or leave the row out.")

    # a user's rows from the shortest history to the longest; in file order if histories were truncated
    user = pd.factorize(rows["user"])[0]
    step = _file_direction(user, rows)
    rows = rows.iloc[np.lexsort((step, rows["length"], rows["stage"], user))].reset_index(drop=True)
    first = rows["user"].ne(rows["user"].shift())
    _check_stages(rows, first)
    _check_chain(rows, first)

    opening = rows.loc[first, ["user", "history"]]
    opening = opening.assign(item=opening["history"].str.split(" ")).explode("item")[["user", "item"]]
    opening["rank"] = -1
    rest = rows[["user", "item"]].assign(rank=np.arange(len(rows)))
    users = pd.Index(rows.loc[first, "user"])
    joined = pd.concat([opening, rest], ignore_index=True)
    order = np.lexsort((np.arange(len(joined)), joined["rank"], users.get_indexer(pd.Index(joined["user"]))))
    return joined.iloc[order][["user", "item"]].reset_index(drop=True)


def _place(row: pd.Series) -> str:
    return f"{row['path']}: data row {row['row']} (user {row['user']!r})"


def _file_direction(user: np.ndarray, rows: pd.DataFrame) -> np.ndarray:
    """Row numbers, negated for users whose training rows are ordered from longest to shortest."""
    train = (rows["stage"] == 0).to_numpy()
    change = np.zeros(user.max() + 1)
    length = rows["length"].to_numpy()[train]
    same = user[train][1:] == user[train][:-1]
    np.add.at(change, user[train][1:][same], np.sign(np.diff(length))[same])
    number: np.ndarray = np.where(change[user] < 0, -1, 1) * np.arange(len(rows))
    return number


def _check_stages(rows: pd.DataFrame, first: pd.Series) -> None:
    """Check that each user has one validation and one test row."""
    for stage, part in ((1, "valid"), (2, "test")):
        count = (rows["stage"] == stage).groupby(first.cumsum()).sum().to_numpy()
        if (count != 1).any():
            user = rows.loc[first, "user"].iloc[int(np.argmax(count != 1))]
            raise LaresError(
                f"user {user!r} has {int(count[np.argmax(count != 1)])} rows in the {part} file, expected one: a leave-one-out "
                "split would not be the files' own. Leave such users out of all three files."
            )


def _check_chain(rows: pd.DataFrame, first: pd.Series) -> None:
    """Check that each row's history is that of the row before it, followed by that row's target."""
    longest = rows["length"].max()
    before = rows.shift()
    grown = (before["history"] + " " + before["item"]).where(~first, "")
    fits = grown == rows["history"]
    cut = ~first & ~fits & (rows["length"] == longest)  # a full history loses its oldest item
    fits |= cut & (grown.str.partition(" ")[2] == rows["history"])
    if (bad := ~first & ~fits).any():
        row = rows[bad].iloc[0]
        raise LaresError(
            f"{_place(row)}: its history is not that of the user's previous row followed by that row's target "
            f"({before.loc[row.name, 'item']!r}). These files are not a leave-one-out split of one sequence per user."
        )
