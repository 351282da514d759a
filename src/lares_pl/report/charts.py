"""Charts for papers: labelled axes, intervals as bands, a palette that is safe for colour-blind readers."""

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
MAX_MARKERS = 20  # a line with more points is drawn without markers
PANEL_SIZE = (3.4, 2.5)  # inches; the width of one column of a paper
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
    "svg.fonttype": "none",  # keep text as text: searchable and editable
    "svg.hashsalt": "lares",  # equal data give equal files
    "text.parse_math": False,  # a label may contain dollar signs
}


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Args:
        label: the model it belongs to; determines the colour.
        x, y: coordinates of its points; NaN for a missing value.
        low, high: bounds of an interval around y.
        dashed: draw it as a dashed reference line.
        faint: draw it thin and light, as raw values behind a smoothed line.
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
        x, y: axis labels, with units.
        series: the lines.
        title: heading, for charts with several panels.
        ticks: tick labels of x = 0, 1, … for a categorical x; series are drawn as points with intervals instead of lines.
        log_x, log_y: use a logarithmic axis.
        percent: format y as a percentage.
        zero: draw a line at y = 0.
        from_zero: start the y axis at 0.
        marked: x value to mark with a dotted line.
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
    """Check that matplotlib and SciPy are installed.

    Raises:
        LaresError: if one is missing, with the command that installs it.
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


def band_ticks(labels: Sequence[str]) -> list[str]:
    """Tick labels of bands, such as `3–7`; broken into two lines if any is long."""
    return [label.replace("–", "–\n") for label in labels] if max(map(len, labels)) > 6 else list(labels)


def draw(name: str, title: str, caption: str, panels: Sequence[Panel], labels: Sequence[str], columns: int = 2) -> Chart:
    """Draw a figure of one or several panels. Equal data give identical bytes.

    Args:
        name: file name without extension.
        title, caption: shown on the page, not in the image, because papers set their own.
        panels: the panels.
        labels: labels of all series of the report, so that each has the same colour in every chart.
        columns: maximum number of panels per row.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    shown = [label for label in labels if any(series.label == label for panel in panels for series in panel.series)]
    with mpl.rc_context():
        mpl.rcdefaults()  # ignore the user's matplotlibrc
        mpl.rcParams.update(_STYLE)
        width = PANEL_SIZE[0] * columns if columns < 3 else 2.45 * columns
        height = PANEL_SIZE[1] * rows + (0.25 if len(labels) > 1 else 0)
        figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(wspace=0.08, hspace=0.06))
        FigureCanvasSVG(figure)
        for number, panel in enumerate(panels):
            _draw_panel(figure.add_subplot(rows, columns, number + 1), panel, labels)
        if len(labels) > 1:
            everything = [series for panel in panels for series in panel.series]
            handles = [_legend_handle(labels, label, all(s.dashed for s in everything if s.label == label)) for label in shown]
            figure.legend(handles=handles, loc="outside upper left", ncols=min(3, len(shown)))
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue().decode().replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, Arial, sans-serif")
    return Chart(name, title, caption, _description(panels), svg)


def _colour(labels: Sequence[str], label: str) -> str:
    return COLOURS[labels.index(label) % len(COLOURS)]


def _marker(labels: Sequence[str], label: str) -> str:
    return MARKERS[labels.index(label) % len(MARKERS)]


def _line_style(labels: Sequence[str], label: str, dashed: bool) -> dict[str, Any]:
    """Return the colour, and a marker or dashes."""
    style: dict[str, Any] = {"color": _colour(labels, label), "linewidth": 1.4}
    return {**style, "linestyle": "--"} if dashed else {**style, "marker": _marker(labels, label), "markersize": 3.5}


def _legend_handle(labels: Sequence[str], label: str, dashed: bool) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **_line_style(labels, label, dashed))


def _draw_panel(axes: Axes, panel: Panel, labels: Sequence[str]) -> None:
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
        _draw_points(axes, panel, labels)
    else:
        for series in panel.series:
            _draw_line(axes, series, labels)
    _set_scale(axes, panel)


def _draw_line(axes: Axes, series: Series, labels: Sequence[str]) -> None:
    colour = _colour(labels, series.label)
    if series.faint:
        axes.plot(series.x, series.y, color=colour, linewidth=0.6, alpha=0.3)
        return
    style = _line_style(labels, series.label, series.dashed)
    if np.isfinite(np.asarray(series.y, dtype=float)).sum() > MAX_MARKERS:
        style["marker"] = ""
    axes.plot(series.x, series.y, **style)
    if series.low is not None and series.high is not None:
        axes.fill_between(series.x, series.low, series.high, color=colour, alpha=0.15, linewidth=0)


def _draw_points(axes: Axes, panel: Panel, labels: Sequence[str]) -> None:
    """Draw points with intervals; points of the same tick are placed side by side."""
    positions = [float(x) for series in panel.series for x in series.x]
    distinct = len(set(positions)) == len(positions)
    for number, series in enumerate(panel.series):
        shift = 0 if distinct else (number - (len(panel.series) - 1) / 2) * 0.6 / max(len(panel.series), 1)
        y = np.asarray(series.y, dtype=float)
        errors = None if series.low is None or series.high is None else np.abs(np.stack([y - series.low, series.high - y]))
        axes.errorbar(
            np.asarray(series.x, dtype=float) + shift,
            y,
            yerr=errors,
            fmt=_marker(labels, series.label),
            color=_colour(labels, series.label),
            markersize=4,
            linewidth=1.2,
            clip_on=False,  # do not cut off points that lie on the axis
        )
    axes.set_xticks(range(len(panel.ticks)), panel.ticks)
    axes.set_xlim(-0.6, len(panel.ticks) - 0.4)
    axes.tick_params(axis="x", length=0, pad=6)


def _set_scale(axes: Axes, panel: Panel) -> None:
    """Set scales, and few ticks with round values."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

    if not panel.ticks:
        positions = np.unique(np.concatenate([np.asarray(series.x, dtype=float) for series in panel.series]))
        if panel.log_x:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_locator(FixedLocator([2.0**n for n in range(int(np.log2(max(positions[-1], 1))) + 1)]))
            axes.xaxis.set_minor_locator(NullLocator())
        elif len(positions) == 1:
            axes.xaxis.set_major_locator(FixedLocator(list(positions)))
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 4, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if panel.log_y:
        _set_log_ticks(axes)
        return
    if panel.from_zero or panel.percent:
        axes.set_ylim(0, axes.get_ylim()[1] * 1.03)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    if panel.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1 if axes.get_ylim()[1] < 0.05 else 0))


def _set_log_ticks(axes: Axes) -> None:
    """Put ticks at powers of ten, and at 2 and 5 times these if the axis spans few of them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    low, high = axes.get_ylim()
    few, plain = high / low < 200, low >= 1e-3
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0) if few else (1.0,), numticks=6))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}" if plain else _power(value)))


def _power(value: float) -> str:
    """Format as a power of ten, such as `10⁻⁴`."""
    exponent = int(np.floor(np.log10(value) + 1e-9))
    digits = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    leading = round(value / 10.0**exponent)
    return f"10{digits}" if leading == 1 else f"{leading}·10{digits}"


def _description(panels: Sequence[Panel]) -> str:
    """Describe a chart for screen readers: first, last and highest value of each line."""
    parts = []
    for panel in panels:
        lines = [_describe(series, panel) for series in panel.series if not series.faint and np.isfinite(series.y).any()]
        heading = f"{panel.title}: " if panel.title else ""
        parts.append(f"{heading}{panel.y} by {panel.x}. " + "; ".join(lines) + ".")
    return " ".join(parts)


def _describe(series: Series, panel: Panel) -> str:
    y = np.asarray(series.y, dtype=float)
    known = np.flatnonzero(np.isfinite(y))
    # with ticks, x is the number of a tick, and what is beside it
    names = [panel.ticks[round(float(x))] if panel.ticks else short(float(x)) for x in series.x]
    first, last, top = known[0], known[-1], int(np.nanargmax(y))
    if len(known) == 1 or series.dashed:
        return f"{series.label} {short(y[first])}"
    text = f"{series.label} from {short(y[first])} at {names[first]} to {short(y[last])} at {names[last]}"
    return text if top in (first, last) else f"{text}, highest {short(y[top])} at {names[top]}"
