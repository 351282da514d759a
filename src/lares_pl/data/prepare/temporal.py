"""Statements of a global temporal split: later rows are put aside while filters and index are made from those of training."""

from __future__ import annotations

from lares_pl.data.prepare.engines import Session
from lares_pl.data.prepare.splits import Times
from lares_pl.errors import LaresError


def put_aside(session: Session, times: Times) -> int:
    """Move the rows of `coded` after training to the table `later`; return their number."""
    session.make("later", f"SELECT * FROM coded WHERE moment >= {times.validation!r}")
    session.make("coded", f"SELECT * FROM coded WHERE moment < {times.validation!r}")
    if session.number("SELECT count(*) FROM coded") == 0:
        (ends,) = session.fetch("SELECT min(moment) AS first, max(moment) AS last FROM later").to_pylist()
        raise LaresError(
            f"--split: nothing happened before {times.validation}, when validation begins; the times of the log run from "
            f"{ends['first']} to {ends['last']}"
        )
    return session.number("SELECT count(*) FROM later")


def take_back(session: Session) -> dict[str, int]:
    """Append to `coded` the rows put aside, those of items in the table `items`; return what was new after training.

    Returns:
        `new_users`: users without training rows; `new_items`, `new_item_rows`: what was left out.
    """
    new = "FROM later WHERE i NOT IN (SELECT i FROM items)"
    counts = {
        "new_items": session.number(f"SELECT count(DISTINCT i) {new}"),
        "new_item_rows": session.number(f"SELECT count(*) {new}"),
    }
    users = session.number("SELECT count(DISTINCT u) FROM coded")
    session.make("coded", "SELECT * FROM coded UNION ALL SELECT * FROM later WHERE i IN (SELECT i FROM items)")
    return {"new_users": session.number("SELECT count(DISTINCT u) FROM coded") - users, **counts}
