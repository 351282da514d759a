"""How each user's items are split into training, validation and test."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from lares_pl.checks import check_fields
from lares_pl.data.prepare.engines import Session
from lares_pl.errors import LaresError


class Times(NamedTuple):
    """When validation and test begin, in the unit of the log's times; an interaction at that time is part of it."""

    validation: float
    test: float


class Parts(NamedTuple):
    """How many of each user's items train, and how many come before the test part, `[users]` each."""

    training: np.ndarray
    before_test: np.ndarray


class DataSplit(ABC):
    """A rule by which items are held out."""

    def times(self, session: Session, known: set[str], rated: str) -> Times | None:
        """When validation and test begin; None where time does not decide.

        Args:
            session: with the table `log`.
            known: which of `time` and `rating` the log has.
            rated: the `WHERE` of the rows that count.
        """
        return None

    @abstractmethod
    def parts(self, session: Session, times: Times | None) -> Parts | None:
        """How the users of the table `coded` are split, by `u`; None: leave-one-out, which is computed when it is read."""

    def plain(self, times: Times | None) -> dict[str, Any]:
        """As `dataset.json` states it; `targets`: whether `all` items of a part are targets, or the `first`."""
        return {}


@dataclass(frozen=True)
class LeaveOneOut(DataSplit):
    """The last item is the test target, the one before it the validation target; users with fewer than three only train."""

    def parts(self, session: Session, times: Times | None) -> None:
        return None


@dataclass(frozen=True)
class LastK(DataSplit):
    """The last k items are test targets, the k before them validation targets, each with all items before it as history.

    Users with 2k items or fewer train only. With k = 1 it is leave-one-out.

    Args:
        k: targets of each user and part.
    """

    k: int = 5

    def __post_init__(self) -> None:
        check_fields(self)
        if self.k < 1:
            raise LaresError(f"--split.k must be at least 1, got {self.k}")

    def parts(self, session: Session, times: Times | None) -> Parts:
        counted = session.fetch("SELECT u, count(*) AS n FROM coded GROUP BY u ORDER BY u")
        lengths = counted["n"].to_numpy().astype(np.int64)
        held = np.where(lengths > 2 * self.k, self.k, 0)
        return Parts(lengths - 2 * held, lengths - held)

    def plain(self, times: Times | None) -> dict[str, Any]:
        return {"rule": "last-k", "k": self.k, "targets": "all"}


@dataclass(frozen=True)
class TemporalSplit(DataSplit):
    """Interactions before one time train, those up to another are for validation, the rest for test.

    The catalogue is that of training: items that appear later are left out and counted. So are numbers of interactions
    and the filters' k-core those of training.

    Args:
        validation_time, test_time: when the parts begin: numbers in the unit of the log's times, or dates (ISO 8601, UTC).
        validation_share, test_share: instead of times, the share of interactions before each part.
        targets: `first`: a user's first interaction of a part, if they have a history before it; `all`: each interaction of the
            part that has a history, with what happened before it in the same part.
    """

    validation_time: float | str | None = None
    test_time: float | str | None = None
    validation_share: float | None = None
    test_share: float | None = None
    targets: Literal["first", "all"] = "first"

    def __post_init__(self) -> None:
        check_fields(self)
        given = {
            name
            for name in ("validation_time", "test_time", "validation_share", "test_share")
            if getattr(self, name) is not None
        }
        if given not in ({"validation_time", "test_time"}, {"validation_share", "test_share"}):
            raise LaresError(
                "--split: a temporal split needs --split.validation_time and --split.test_time, or --split.validation_share "
                f"and --split.test_share; given: {', '.join(sorted(given)) or 'none'}"
            )
        shares = (self.validation_share, self.test_share)
        if "test_share" in given and not 0 < shares[0] < shares[1] < 1:  # type: ignore[operator]
            raise LaresError(
                f"--split: 0 < validation_share < test_share < 1 must hold, got {shares[0]} and {shares[1]}. They are the "
                "shares of interactions before each time, such as 0.8 and 0.9"
            )
        if self.targets not in ("first", "all"):
            raise LaresError(f"--split.targets must be first or all, got {self.targets}")

    def times(self, session: Session, known: set[str], rated: str) -> Times:
        if "time" not in known:
            raise LaresError("--split: a temporal split needs times, and there is no such column; set it with --columns.time")
        if self.validation_share is not None and self.test_share is not None:
            rows = session.number(f"SELECT count(*) FROM log {rated}")
            found = [_nth_time(session, rated, int(share * rows)) for share in (self.validation_share, self.test_share)]
        else:
            found = [_as_number(self.validation_time, "validation_time"), _as_number(self.test_time, "test_time")]
        if found[0] >= found[1]:
            raise LaresError(f"--split: validation begins at {found[0]} and test at {found[1]}; test must begin later")
        return Times(*found)

    def parts(self, session: Session, times: Times | None) -> Parts:
        assert times is not None
        before = [f"count(CASE WHEN moment < {time!r} THEN 1 END)" for time in times]
        counted = session.fetch(f"SELECT u, {before[0]} AS a, {before[1]} AS b FROM coded GROUP BY u ORDER BY u")
        return Parts(*(counted[name].to_numpy().astype(np.int64) for name in "ab"))

    def plain(self, times: Times | None) -> dict[str, Any]:
        assert times is not None
        return {"rule": "temporal", "validation_time": times.validation, "test_time": times.test, "targets": self.targets}


def _nth_time(session: Session, rated: str, row: int) -> float:
    (found,) = session.fetch(f"SELECT moment FROM log {rated} ORDER BY moment LIMIT 1 OFFSET {row}")["moment"].to_pylist()
    return float(found) if isinstance(found, float) else int(found)


def _as_number(time: float | str | None, name: str) -> float:
    """A time as the table `log` has it: dates are seconds since 1970."""
    try:
        number = float(time)  # type: ignore[arg-type]
    except ValueError:
        moment = pd.to_datetime(str(time), errors="coerce", utc=True, format="ISO8601")
        epoch = pd.Timestamp("1970-01-01", tz="UTC")
        number = math.nan if pd.isna(moment) else float((moment - epoch) / pd.Timedelta(seconds=1))
    if not math.isfinite(number):
        raise LaresError(f"--split.{name}: {time!r} is neither a number nor a date such as 2014-05-31")
    return int(number) if number.is_integer() else number
