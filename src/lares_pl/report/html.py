"""The page as one HTML file that needs nothing else; every text is escaped."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from lares_pl.report.page import Chart, Section, Table


def render(title: str, lead: Sequence[str], sections: Sequence[Section]) -> str:
    """The page as HTML.

    Args:
        title: of the page.
        lead: paragraphs below the title.
        sections: in order.
    """
    environment = Environment(loader=PackageLoader("lares_pl.report"), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {
        "anchor": _anchor,
        "columns": _columns,
        "css_class": _css_class,
        "picture": _picture,
        "prose": _prose,
        "rows": _rows,
    }
    return environment.get_template("page.html.jinja").render(title=title, lead=lead, sections=sections)


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _prose(text: str) -> Markup:
    """Text as it is, except that `code` is set as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _picture(chart: Chart) -> Markup:
    """The picture with identifiers that no other chart has, and a description for screen readers."""
    svg = chart.svg[chart.svg.index("<svg") :]
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{chart.name}-", svg)
    described = f'<svg role="img" aria-label="{escape(f"{chart.title}. {chart.alt}")}"'
    return Markup(svg.replace("<svg", described, 1))


def _frame(table: Table) -> pd.DataFrame:
    return table.frame if table.shown is None else table.shown


def _columns(table: Table) -> list[tuple[str, str]]:
    """Name and CSS class of each column: numbers are aligned right."""
    frame = _frame(table)
    numeric = [pd.api.types.is_numeric_dtype(frame[name]) or _reads_as_number(frame[name]) for name in frame]
    return [(str(name), "n" if number else "") for name, number in zip(frame, numeric, strict=True)]


def _rows(table: Table) -> Iterator[list[tuple[str, str]]]:
    """Text and CSS class of each cell, row by row."""
    classes = [kind for _, kind in _columns(table)]
    for row in _frame(table).itertuples(index=False, name=None):
        yield [(_shown(value), kind) for value, kind in zip(row, classes, strict=True)]


def _css_class(kind: str) -> Markup:
    return Markup(f' class="{kind}"') if kind else Markup("")


def _reads_as_number(column: pd.Series) -> bool:
    """Whether the texts of a column are numbers or read like numbers."""
    texts = [str(value) for value in column]
    return bool(texts) and all(text[:1] in "0123456789-−+<–" for text in texts)


def _shown(value: object) -> str:
    if isinstance(value, float | np.floating):
        return "–" if np.isnan(value) else f"{value:.4f}"
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)
