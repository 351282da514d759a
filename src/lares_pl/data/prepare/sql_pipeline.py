"""From a log of interactions to sequences: filters, order and index, as SQL that every engine runs.

Users are numbered by their first row, items by their first position in the ordered sequences.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lares_pl.data.prepare.engines import Session
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
    """The numbers of a prepared dataset, and how much the filters removed."""

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

    def plain(self) -> dict[str, Any]:
        """Return the summary as written to `dataset.json`."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [
            ("users", f"{self.users:,}"),
            ("items", f"{self.items:,}"),
            ("interactions", f"{self.interactions:,}"),
            ("mean length", f"{self.mean_length:.2f}"),
            ("density", f"{self.density:.4%}"),
            ("training instances", f"{self.training_instances:,}"),
            ("too short to hold out", f"{self.short_users:,} users (they train only: {self.short_user_instances:,} instances)"),
            *((f"removed by {name}", f"{count:,} rows") for name, count in self.removed.items()),
            ("order", self.order),
        ]
        if self.text:
            kind = f"{self.text['size']} values each, {self.text['precision']}"
            without = f"{self.text['items_without']:,} without (zero vectors)"
            rows.append(("item text", f"{self.text['items']:,} items, {without}; {kind}"))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def index_log(session: Session, known: set[str], filters: Filters) -> Summary:
    """Turn the table `log` into `coded` (`u`, `i`, `moment`, `place`), `users` (`user_id`, `u`) and `items` (`item_id`, `i`,
    `item`, `count`), filtered.

    Args:
        session: of the engine, with the table `log`.
        known: which of `time` and `rating` the log has.
        filters: the filters.

    Raises:
        LaresError: if a minimum rating is set and the interactions have no ratings, or if nothing is left.
    """
    if filters.k_core < 0:
        raise LaresError(f"--k_core must not be negative, got {filters.k_core}")
    if filters.min_rating is not None and "rating" not in known:
        raise LaresError("--min_rating needs ratings, and there is no such column; set it with --columns.rating")
    summary = Summary(order="time, ties in file order" if "time" in known else "file order")
    rows = session.number("SELECT count(*) FROM log")

    def removed(name: str) -> None:
        nonlocal rows
        left = session.number("SELECT count(*) FROM coded")
        summary.removed[name] = rows - left
        rows = left

    rated = "" if filters.min_rating is None else f"WHERE rating >= {filters.min_rating!r}"
    numbered = "SELECT {0}_id, row_number() OVER (ORDER BY min(place)) - 1 AS {1} FROM log {2} GROUP BY {0}_id"
    session.make("users", numbered.format("user", "u", rated))
    session.make("found", numbered.format("item", "i", rated))
    session.make("coded", f"SELECT u, i, moment, place FROM log JOIN users USING (user_id) JOIN found USING (item_id) {rated}")
    session.make("log", "SELECT 0 AS done")  # frees its disk space
    if filters.min_rating is not None:
        removed("min_rating")
    if filters.repeats == "drop":
        first = "row_number() OVER (PARTITION BY u, i ORDER BY moment, place)"
        session.make("coded", f"SELECT u, i, moment, place FROM (SELECT *, {first} AS nth FROM coded) AS seen WHERE nth = 1")
        removed("repeats")
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
    _count(session, summary, rows)
    return summary


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
