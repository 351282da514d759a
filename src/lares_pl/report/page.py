"""Parts of a page (sections with text, charts and tables) and number formatting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Chart:
    """A figure.

    Args:
        name: file name without extension.
        title: title.
        caption: how to read it, in one or two sentences.
        alt: description for screen readers.
        svg: the image.
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
        name: file name without extension.
        title: title.
        frame: the full table, as written to the files; units are part of the column names.
        caption: how to read it.
        shown: the table shown on the page (text unchanged, other numbers with four decimals); None shows `frame`.
    """

    name: str
    title: str
    frame: pd.DataFrame
    caption: str = ""
    shown: pd.DataFrame | None = None


@dataclass(frozen=True)
class Section:
    """A section of the report, as returned by a function of a `Study`.

    Args:
        title: heading.
        text: paragraphs of plain text.
        charts: figures.
        tables: tables.
    """

    title: str
    text: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = field(default_factory=tuple)


def with_interval(value: float, low: float, high: float) -> str:
    """Format as `0.0412 [0.0390, 0.0433]`."""
    return f"{value:.4f} [{low:.4f}, {high:.4f}]"


def short(value: float) -> str:
    """Format with three significant digits, with an exponent only for very small values."""
    if not np.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    digits = max(0, 2 - int(np.floor(np.log10(abs(value)))))
    return f"{value:.1e}" if digits > 6 else f"{value:,.{digits}f}"


def p_value(value: float) -> str:
    """Format as `0.031` or `< 0.001`."""
    return "–" if np.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"
