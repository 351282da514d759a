"""From a log of interactions to sequences: filters, order and index, as SQL that every engine runs.

Users are numbered by their first row, items by their first position in the ordered sequences.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from lares_pl.data.dataset.ids import zero_fraction
from lares_pl.data.prepare.engines import Session
from lares_pl.data.prepare.splits import DataSplit, LeaveOneOut, Parts
from lares_pl.data.prepare.temporal import put_aside, take_back
from lares_pl.errors import LaresError


@dataclass(frozen=True)
class Filters:
    """The filters, applied in this order.

    Args:
        min_rating: drops interactions with a lower rating.
        repeats: `drop` removes all but a user's first interaction with an item.
        k_core: drops users and items with fewer interactions than this, repeated until nothing changes.
    """

    min_rating: float | None = None
    repeats: Literal["keep", "drop"] = "keep"
    k_core: int = 0


@dataclass
class Summary:
    """The numbers of a prepared dataset, how much the filters removed, and what is probably wrong.

    `density` is the number of interactions divided by that of all pairs of a user and an item; with repeats it can exceed 1.
    """

    users: int = 0
    items: int = 0
    interactions: int = 0
    mean_length: float = 0.0
    density: float = 0.0
    training_instances: int = 0
    short_users: int = 0
    short_user_instances: int = 0
    removed: dict[str, int] = field(default_factory=dict)
    order: str = ""
    text: dict[str, Any] = field(default_factory=dict)
    split: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """Return the summary as written to `dataset.json`; without a split it is leave-one-out."""
        return {key: value for key, value in asdict(self).items() if key != "warnings" and (key != "split" or value)}

    def __str__(self) -> str:
        rows = [
            ("users", f"{self.users:,}"),
            ("items", f"{self.items:,}"),
            ("interactions", f"{self.interactions:,}"),
            ("mean length", f"{self.mean_length:.2f}"),
            ("density", f"{self.density:.4%}{' (items are repeated)' if self.density > 1 else ''}"),
            ("training instances", f"{self.training_instances:,}"),
            self._short(),
            *self._of_split(),
            *((f"removed by {name}", f"{count:,} rows") for name, count in self.removed.items()),
            ("order", self.order),
        ]
        if self.text:
            kind = f"{self.text['size']} values each, {self.text['precision']}"
            without = f"{self.text['items_without']:,} without (zero vectors)"
            rows.append(("item text", f"{self.text['items']:,} items, {without}; {kind}"))
        rows += [("warning", text) for text in self.warnings]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)

    def _of_split(self) -> list[tuple[str, str]]:
        named = {
            "rule": "split",
            "k": "k",
            "validation_time": "validation from",
            "test_time": "test from",
            "validation_targets": "validation targets",
            "test_targets": "test targets",
            "new_users": "users without training rows",
            "new_items": "items left out as new",
            "new_item_rows": "rows left out with them",
        }
        shown = {name: self.split[name] for name in named if name in self.split}
        return [(named[name], f"{value:,}" if name.endswith(("s", "k")) else str(value)) for name, value in shown.items()]

    def _short(self) -> tuple[str, str]:
        name = "without a held-out item" if self.split else "too short to hold out"
        return name, f"{self.short_users:,} users (they train only: {self.short_user_instances:,} instances)"


def index_log(
    session: Session, known: set[str], filters: Filters, split: DataSplit = LeaveOneOut()
) -> tuple[Summary, Parts | None]:
    """Turn the table `log` into `coded` (`u`, `i`, `moment`, `place`), `users` (`user_id`, `u`) and `items` (`item_id`, `i`,
    `item`, `count`), filtered.

    Args:
        session: of the engine, with the table `log`.
        known: which of `time` and `rating` the log has.
        filters: the filters.
        split: the split.

    Returns:
        The numbers, and how the users are split; None: leave-one-out.

    Raises:
        LaresError: if a minimum rating is set and the interactions have no ratings, if nothing is left, or nothing to hold out.
    """
    if filters.k_core < 0:
        raise LaresError(f"--k_core must not be negative, got {filters.k_core}")
    if filters.min_rating is not None and "rating" not in known:
        raise LaresError("--min_rating needs ratings, and there is no such column; set it with --columns.rating")
    summary = Summary(order="time, ties in file order" if "time" in known else "file order (no times were read)")
    rows = session.number("SELECT count(*) FROM log")

    def removed(name: str) -> None:
        nonlocal rows
        left = session.number("SELECT count(*) FROM coded")
        summary.removed[name] = rows - left
        rows = left

    rated = "" if filters.min_rating is None else f"WHERE rating >= {filters.min_rating!r}"
    if "time" in known:
        summary.warnings += _mixed_units(session, rated)
    times = split.times(session, known, rated)
    # users with training interactions first, in an order in which later rows don't count
    first = (
        "min(place)" if times is None else f"min(CASE WHEN moment < {times.validation!r} THEN place END) NULLS LAST, min(place)"
    )
    numbered = f"SELECT {{0}}_id, row_number() OVER (ORDER BY {first}) - 1 AS {{1}} FROM log {{2}} GROUP BY {{0}}_id"
    session.make("users", numbered.format("user", "u", rated))
    session.make("found", numbered.format("item", "i", rated))
    session.make("coded", f"SELECT u, i, moment, place FROM log JOIN users USING (user_id) JOIN found USING (item_id) {rated}")
    session.make("log", "SELECT 0 AS done")  # its room on the disk is free again
    _spell(session, "users", "user_id", "u")
    _spell(session, "found", "item_id", "i")
    if filters.min_rating is not None:
        removed("min_rating")
    if filters.repeats == "drop":
        first = "row_number() OVER (PARTITION BY u, i ORDER BY moment, place)"
        session.make("coded", f"SELECT u, i, moment, place FROM (SELECT *, {first} AS nth FROM coded) AS seen WHERE nth = 1")
        removed("repeats")
    if times is not None:
        rows -= put_aside(session, times)
    if filters.k_core > 1:
        while _core_step(session, filters.k_core):
            pass
        removed("k_core")
    if rows == 0:
        why = ", ".join(f"{name} removed {count:,} rows" for name, count in summary.removed.items())
        raise LaresError(f"nothing is left after the filters ({why}). Lower --k_core or --min_rating.")
    first = f"min({session.tuple_of}(u, moment, place))"
    session.make(
        "items",
        f"SELECT item_id, i, count, row_number() OVER (ORDER BY first) AS item "
        f"FROM (SELECT i, {first} AS first, count(*) AS count FROM coded GROUP BY i) AS seen JOIN found USING (i)",
    )
    if times is not None:
        summary.split = take_back(session)
        rows = session.number("SELECT count(*) FROM coded")
    _count(session, summary, rows)
    parts = split.parts(session, times)
    if parts is not None:
        summary.split = {**split.plain(times), **summary.split}
        _count_parts(session, summary, parts)
    if summary.training_instances == 0:
        rule = "" if summary.split else " (with leave-one-out users of four items or more have them, and of exactly two)"
        summary.warnings.append(f"nothing to train on: no user has two training items{rule}; `lares fit` will refuse this data")
    if not summary.split and summary.short_users == summary.users:
        summary.warnings.append("nothing to evaluate on: no user has three items; `lares fit` will refuse this data")
    return summary, parts


# times since 1970 from 1973 on (from 1979 on but in seconds, among which dates of the year 9999 are larger)
_UNITS = {"seconds": (10**8, 10**11), "milliseconds": (3 * 10**11, 10**14), "microseconds": (3 * 10**14, 10**17)}


def _mixed_units(session: Session, rated: str) -> list[str]:
    """A warning if times of the log can only be of several units."""
    of_units = (f"max(CASE WHEN moment >= {a} AND moment < {b} THEN moment END) AS {unit}" for unit, (a, b) in _UNITS.items())
    (found,) = session.fetch(f"SELECT {', '.join(of_units)} FROM log {rated}").to_pylist()
    shown = [f"{moment:.0f} ({unit})" for unit, moment in found.items() if moment is not None]
    if len(shown) < 2:
        return []
    return [f"times of several units, such as {' and '.join(shown)}: their order is wrong; write all in one unit"]


def _spell(session: Session, table: str, of: str, number: str) -> None:
    """Write ids that are all whole numbers with the same zeros behind the point (`15.0` in text) as whole numbers (`15`)."""
    some = session.fetch(f"SELECT CAST({of} AS STRING) AS id FROM {table} LIMIT 1")["id"].to_pylist()
    fraction = zero_fraction(some[0]) if some else None
    if fraction is None:
        return
    alike = f"{of} LIKE '%{fraction}' AND try_cast({of} AS DOUBLE) IS NOT NULL"
    if session.number(f"SELECT count(*) FROM {table} WHERE NOT ({alike})") == 0:
        session.make(table, f"SELECT left({of}, length({of}) - {len(fraction)}) AS {of}, {number} FROM {table}")


def _core_step(session: Session, k: int) -> bool:
    """Drop users and items with fewer than k interactions; return whether there were any."""
    few = " UNION ALL ".join(f"SELECT count(*) AS n FROM coded GROUP BY {of} HAVING count(*) < {k}" for of in "ui")
    if session.number(f"SELECT count(*) FROM ({few}) AS few") == 0:
        return False
    enough = " AND ".join(f"{of} IN (SELECT {of} FROM coded GROUP BY {of} HAVING count(*) >= {k})" for of in "ui")
    session.make("coded", f"SELECT * FROM coded WHERE {enough}")
    return True


def _count(session: Session, summary: Summary, rows: int) -> None:
    """Set the counts of the remaining data."""
    lengths = "SELECT count(*) AS n FROM coded GROUP BY u"
    short = "CASE WHEN n < 3 THEN 1 ELSE 0 END"
    sums = ["count(*)", f"sum({short})", f"sum({short} * (n - 1))", f"sum((1 - {short}) * (n - 3))"]
    names = ["users", "short_users", "short_user_instances", "others"]
    selected = ", ".join(f"{what} AS {name}" for what, name in zip(sums, names, strict=True))
    (counted,) = session.fetch(f"SELECT {selected} FROM ({lengths}) AS lengths").to_pylist()
    summary.users, summary.interactions = int(counted["users"]), rows
    summary.items = session.number("SELECT count(*) FROM items")
    summary.mean_length = rows / summary.users
    summary.density = rows / (summary.users * summary.items)
    summary.short_users = int(counted["short_users"])
    summary.short_user_instances = int(counted["short_user_instances"])
    summary.training_instances = int(counted["others"]) + summary.short_user_instances


def _count_parts(session: Session, summary: Summary, parts: Parts) -> None:
    """Set the counts that depend on the split."""
    lengths = session.fetch("SELECT count(*) AS n FROM coded GROUP BY u ORDER BY u")["n"].to_numpy().astype(np.int64)
    held = {"validation": (parts.training, parts.before_test), "test": (parts.before_test, lengths)}
    targets = {}
    for name, (begin, end) in held.items():
        counts = np.maximum(end - np.maximum(begin, 1), 0)
        targets[name] = np.minimum(counts, begin > 0) if summary.split["targets"] == "first" else counts
        if not targets[name].any():
            raise LaresError(f"--split leaves no target for {name}; choose other times, shares or a smaller k")
    instances = np.maximum(parts.training - 1, 0)
    without = sum(targets.values()) == 0
    summary.training_instances = int(instances.sum())
    summary.short_users, summary.short_user_instances = int(without.sum()), int(instances[without].sum())
    summary.split |= {f"{name}_targets": int(counts.sum()) for name, counts in targets.items()}
