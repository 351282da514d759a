"""Charts for papers: labelled axes, intervals as bands, colours that colour-blind readers tell apart, no junk."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lares_pl.errors import LaresError
from lares_pl.report.page import Chart, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.typing import RcKeyType

# Okabe and Ito's palette without its yellow, which is too light for lines on white
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MOST_MARKERS = 20  # of a line
PANEL = (3.4, 2.5)  # inches: a column of a paper
_STYLE: dict[RcKeyType, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: searchable, and editable in a paper's figure
    "svg.hashsalt": "lares",  # the same data, the same file
    "text.parse_math": False,  # a name with dollar signs is a name
}


@dataclass(frozen=True)
class Series:
    """A line.

    Args:
        label: whose it is; decides the colour.
        x, y: its points; NaN where there is none.
        low, high: ends of an interval around it.
        dashed: a reference beside the lines that matter.
        faint: one of several behind the line that sums them up.
    """

    label: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    low: Sequence[float] | np.ndarray | None = None
    high: Sequence[float] | np.ndarray | None = None
    dashed: bool = False
    faint: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Args:
        x, y: what the axes show, with units.
        series: the lines.
        title: where there are several panels.
        ticks: names of x = 0, 1, …, where x is no number: points with intervals side by side instead of lines.
        log_x, log_y: scale of the axes.
        percent: y is a share.
        zero: a line at y = 0, where differences are shown.
        from_zero: y begins at 0.
        marked: an x to point out.
    """

    x: str
    y: str
    series: Sequence[Series]
    title: str = ""
    ticks: Sequence[str] = field(default_factory=tuple)
    log_x: bool = False
    log_y: bool = False
    percent: bool = False
    zero: bool = False
    from_zero: bool = False
    marked: float | None = None


def check_matplotlib() -> None:
    """Whether charts can be drawn.

    Raises:
        LaresError: if not; says how to install what is missing.
    """
    try:
        import matplotlib
        import scipy  # noqa: F401
    except ImportError as error:
        raise LaresError(
            f"lares report needs {error.name}, which is not installed: pip install 'lares-pl[report]' "
            "(in a checkout: pip install -c constraints.txt '.[report]')"
        ) from error
    assert matplotlib.__version__


def limits(labels: Sequence[str]) -> list[str]:
    """Limits of bands as ticks: `3–7`, all in two lines where one is long."""
    return [label.replace("–", "–\n") for label in labels] if max(map(len, labels)) > 6 else list(labels)


def draw(name: str, title: str, caption: str, panels: Sequence[Panel], labels: Sequence[str], columns: int = 2) -> Chart:
    """A figure of one or several panels; the same data give the same bytes.

    Args:
        name: of its file, without ending.
        title, caption: for the page; the picture itself carries neither, as a paper sets its own.
        panels: the axes.
        labels: of all series of the report, so that each has the same colour everywhere.
        columns: panels side by side.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    shown = [label for label in labels if any(series.label == label for panel in panels for series in panel.series)]
    with mpl.rc_context():
        mpl.rcdefaults()  # a person's own matplotlibrc is not this page's
        mpl.rcParams.update(_STYLE)
        width = PANEL[0] * columns if columns < 3 else 2.45 * columns
        height = PANEL[1] * rows + (0.25 if len(labels) > 1 else 0)
        figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(wspace=0.08, hspace=0.06))
        FigureCanvasSVG(figure)
        for number, panel in enumerate(panels):
            _fill(figure.add_subplot(rows, columns, number + 1), panel, labels)
        if len(labels) > 1:
            everything = [series for panel in panels for series in panel.series]
            keys = [_key(labels, label, all(s.dashed for s in everything if s.label == label)) for label in shown]
            figure.legend(handles=keys, loc="outside upper left", ncols=min(3, len(shown)))
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue().decode().replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, Arial, sans-serif")
    return Chart(name, title, caption, _description(panels), svg)


def _colour(labels: Sequence[str], label: str) -> str:
    return COLOURS[labels.index(label) % len(COLOURS)]


def _marker(labels: Sequence[str], label: str) -> str:
    return MARKERS[labels.index(label) % len(MARKERS)]


def _look(labels: Sequence[str], label: str, dashed: bool) -> dict[str, Any]:
    """Colour, and a marker or dashes."""
    look: dict[str, Any] = {"color": _colour(labels, label), "linewidth": 1.4}
    return {**look, "linestyle": "--"} if dashed else {**look, "marker": _marker(labels, label), "markersize": 3.5}


def _key(labels: Sequence[str], label: str, dashed: bool) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **_look(labels, label, dashed))


def _fill(axes: Axes, panel: Panel, labels: Sequence[str]) -> None:
    axes.set_xlabel(panel.x)
    axes.set_ylabel(panel.y)
    if panel.title:
        axes.set_title(panel.title)
    if panel.log_y:
        axes.set_yscale("log")
    if panel.zero:
        axes.axhline(0, color="#444444", linewidth=0.8)
    if panel.marked is not None:
        axes.axvline(panel.marked, color="#888888", linewidth=0.8, linestyle=":")
    if panel.ticks:
        _points(axes, panel, labels)
    else:
        for series in panel.series:
            _line(axes, series, labels)
    _scale(axes, panel)


def _line(axes: Axes, series: Series, labels: Sequence[str]) -> None:
    colour = _colour(labels, series.label)
    if series.faint:
        axes.plot(series.x, series.y, color=colour, linewidth=0.6, alpha=0.3)
        return
    look = _look(labels, series.label, series.dashed)
    if np.isfinite(np.asarray(series.y, dtype=float)).sum() > MOST_MARKERS:
        look["marker"] = ""
    axes.plot(series.x, series.y, **look)
    if series.low is not None and series.high is not None:
        axes.fill_between(series.x, series.low, series.high, color=colour, alpha=0.15, linewidth=0)


def _points(axes: Axes, panel: Panel, labels: Sequence[str]) -> None:
    """Points with intervals, those of one tick side by side."""
    places = [float(x) for series in panel.series for x in series.x]
    apart = len(set(places)) == len(places)  # each has its own place already
    for number, series in enumerate(panel.series):
        shift = 0 if apart else (number - (len(panel.series) - 1) / 2) * 0.6 / max(len(panel.series), 1)
        y = np.asarray(series.y, dtype=float)
        spread = None if series.low is None or series.high is None else np.abs(np.stack([y - series.low, series.high - y]))
        axes.errorbar(
            np.asarray(series.x, dtype=float) + shift,
            y,
            yerr=spread,
            fmt=_marker(labels, series.label),
            color=_colour(labels, series.label),
            markersize=4,
            linewidth=1.2,
            clip_on=False,  # a point on the axis is a whole point
        )
    axes.set_xticks(range(len(panel.ticks)), panel.ticks)
    axes.set_xlim(-0.6, len(panel.ticks) - 0.4)
    axes.tick_params(axis="x", length=0, pad=6)


def _scale(axes: Axes, panel: Panel) -> None:
    """Ticks that a reader can read."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

    if not panel.ticks:
        places = np.unique(np.concatenate([np.asarray(series.x, dtype=float) for series in panel.series]))
        if panel.log_x:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_locator(FixedLocator([2.0**n for n in range(int(np.log2(max(places[-1], 1))) + 1)]))
            axes.xaxis.set_minor_locator(NullLocator())
        elif len(places) == 1:
            axes.xaxis.set_major_locator(FixedLocator(list(places)))
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 4, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if panel.log_y:
        _decades(axes)
        return
    if panel.from_zero or panel.percent:
        axes.set_ylim(0, axes.get_ylim()[1] * 1.03)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    if panel.percent:
        fine = axes.get_ylim()[1] < 0.05
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1 if fine else 0))


def _decades(axes: Axes) -> None:
    """Ticks of a logarithmic axis: powers of ten, with 2 and 5 between them where there are few."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    low, high = axes.get_ylim()
    few, plain = high / low < 200, low >= 1e-3
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0) if few else (1.0,), numticks=6))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}" if plain else _power(value)))


def _power(value: float) -> str:
    """`10⁻⁴`."""
    exponent = int(np.floor(np.log10(value) + 1e-9))
    digits = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    leading = round(value / 10.0**exponent)
    return f"10{digits}" if leading == 1 else f"{leading}·10{digits}"


def _description(panels: Sequence[Panel]) -> str:
    """What a chart shows, in words: first, last and highest value of each line."""
    parts = []
    for panel in panels:
        lines = [_words(series, panel) for series in panel.series if not series.faint and np.isfinite(series.y).any()]
        heading = f"{panel.title}: " if panel.title else ""
        parts.append(f"{heading}{panel.y} by {panel.x}. " + "; ".join(lines) + ".")
    return " ".join(parts)


def _words(series: Series, panel: Panel) -> str:
    y = np.asarray(series.y, dtype=float)
    there = np.flatnonzero(np.isfinite(y))
    names = list(panel.ticks) if panel.ticks else [short(float(x)) for x in series.x]
    first, last, top = there[0], there[-1], int(np.nanargmax(y))
    if len(there) == 1 or series.dashed:
        return f"{series.label} {short(y[first])}"
    text = f"{series.label} from {short(y[first])} at {names[first]} to {short(y[last])} at {names[last]}"
    return text if top in (first, last) else f"{text}, highest {short(y[top])} at {names[top]}"
