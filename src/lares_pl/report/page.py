"""What a page is made of: sections of text, charts and tables, and how numbers are written in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Chart:
    """A figure.

    Args:
        name: of its file, without ending.
        title: what it shows.
        caption: how to read it, a sentence or two.
        alt: what can be seen, for who can't.
        svg: the picture.
    """

    name: str
    title: str
    caption: str
    alt: str
    svg: str


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        name: of its files, without ending.
        title: what it holds.
        frame: all of it, with units in the names of the columns; what the files hold.
        caption: how to read it.
        shown: what the page shows of it (text is shown as it is, other numbers with four decimals); all of it where None.
    """

    name: str
    title: str
    frame: pd.DataFrame
    caption: str = ""
    shown: pd.DataFrame | None = None


@dataclass(frozen=True)
class Section:
    """A part of the report; a function of a `Study` that gives one is all that a new section takes.

    Args:
        title: its heading.
        text: paragraphs, plain text.
        charts: its figures.
        tables: its tables.
    """

    title: str
    text: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = field(default_factory=tuple)


def with_interval(value: float, low: float, high: float) -> str:
    """`0.0412 [0.0390, 0.0433]`."""
    return f"{value:.4f} [{low:.4f}, {high:.4f}]"


def short(value: float) -> str:
    """Three significant digits, without an exponent where it can be read without."""
    if not np.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    digits = max(0, 2 - int(np.floor(np.log10(abs(value)))))
    return f"{value:.1e}" if digits > 6 else f"{value:,.{digits}f}"


def p_value(value: float) -> str:
    """`0.031`, `< 0.001`."""
    return "–" if np.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"
