"""The page: sections of text, charts and tables as one HTML file that needs nothing else."""

from __future__ import annotations

import html
import re
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


def render(title: str, lead: Sequence[str], sections: Sequence[Section]) -> str:
    """The page as HTML; every text is shown as it is, whatever is in it.

    Args:
        title: of the page.
        lead: paragraphs below the title.
        sections: in order.
    """
    contents = "".join(f'<li><a href="#{_anchor(s.title)}">{html.escape(s.title)}</a></li>' for s in sections)
    return _PAGE.format(
        title=html.escape(title),
        style=_STYLE,
        lead=_paragraphs(lead),
        contents=contents,
        sections="".join(map(_section, sections)),
    )


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _prose(text: str) -> str:
    """Text as it is, but for `code`."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _paragraphs(text: Sequence[str]) -> str:
    return "".join(f"<p>{_prose(paragraph)}</p>\n" for paragraph in text)


def _section(section: Section) -> str:
    charts, tables = "".join(map(_chart, section.charts)), "".join(map(_table, section.tables))
    heading = f'<h2 id="{_anchor(section.title)}">{html.escape(section.title)}</h2>'
    return f"<section>\n{heading}\n{_paragraphs(section.text)}{charts}{tables}</section>\n"


def _chart(chart: Chart) -> str:
    """The picture, with identifiers of its own and what a screen reader says about it."""
    svg = chart.svg[chart.svg.index("<svg") :]
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{chart.name}-", svg)
    described = f'<svg role="img" aria-label="{html.escape(f"{chart.title}. {chart.alt}")}"'
    svg = svg.replace("<svg", described, 1)
    caption = f"<strong>{html.escape(chart.title)}.</strong> {_prose(chart.caption)}"
    link = f'<a class="file" href="charts/{chart.name}.svg">SVG</a>'
    return f'<figure id="chart-{chart.name}">\n{svg}<figcaption>{caption} {link}</figcaption>\n</figure>\n'


def _table(table: Table) -> str:
    frame = table.frame if table.shown is None else table.shown
    numeric = [pd.api.types.is_numeric_dtype(frame[column]) for column in frame]
    classes = ["n" if number or _reads_as_number(frame[column]) else "" for column, number in zip(frame, numeric, strict=True)]
    head = "".join(_cell("th", str(column), kind) for column, kind in zip(frame.columns, classes, strict=True))
    body = "".join(
        "<tr>" + "".join(_cell("td", _shown(value), kind) for value, kind in zip(row, classes, strict=True)) + "</tr>\n"
        for row in frame.itertuples(index=False, name=None)
    )
    files = " ".join(f'<a class="file" href="tables/{table.name}.{end}">{end.upper()}</a>' for end in ("csv", "parquet"))
    caption = f"<strong>{html.escape(table.title)}.</strong> {_prose(table.caption)} {files}"
    return (
        f'<div class="table"><table id="table-{table.name}"><caption>{caption}</caption>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>\n"
    )


def _reads_as_number(column: pd.Series) -> bool:
    """Whether text in a column is mostly numbers, to be set flush right."""
    texts = [str(value) for value in column]
    return bool(texts) and all(text[:1] in "0123456789-−+<–" for text in texts)


def _cell(tag: str, text: str, kind: str) -> str:
    attributes = (' scope="col"' if tag == "th" else "") + (f' class="{kind}"' if kind else "")
    return f"<{tag}{attributes}>{html.escape(text)}</{tag}>"


def _shown(value: object) -> str:
    if isinstance(value, float | np.floating):
        return "–" if np.isnan(value) else f"{value:.4f}"
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 60rem; padding: 2rem 1.5rem 4rem; background: #fff; color: #1a1a1a;
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.8rem 0 .6rem; padding-top: .8rem; border-top: 1px solid #d8d8d8; }
p { max-width: 46rem; margin: .5rem 0; overflow-wrap: anywhere; }
a { color: #005a9c; }
nav ol { columns: 2; margin: .3rem 0; padding-left: 1.4rem; }
figure { margin: 1.6rem 0; break-inside: avoid; }
figure svg { display: block; max-width: 100%; height: auto; }
figcaption, caption { color: #444; font-size: .88rem; line-height: 1.4; max-width: 46rem; }
figcaption { margin-top: .3rem; }
caption { text-align: left; padding-bottom: .4rem; caption-side: top; }
.file { font-size: .8rem; }
.table { overflow-x: auto; margin: 1.6rem 0; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .22rem .7rem .22rem 0; text-align: left; vertical-align: top; }
thead th { border-bottom: 1.5px solid #1a1a1a; font-weight: 600; vertical-align: bottom; }
tbody tr { border-bottom: 1px solid #ececec; break-inside: avoid; }
th.n, td.n { text-align: right; }
td.n, td:first-child { white-space: nowrap; }
td:last-child:not(.n) { overflow-wrap: anywhere; min-width: 8rem; }
code { font-size: .92em; }
@media print {
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  h2 { break-after: avoid; }
  .table { overflow: visible; }
  table { font-size: 7.5pt; }
  th, td { padding-right: .4rem; }
  a { color: inherit; text-decoration: none; }
  .file { display: none; }
}
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{lead}<nav aria-label="Contents"><p><strong>Contents</strong></p><ol>{contents}</ol></nav>
{sections}</main>
</body>
</html>
"""
