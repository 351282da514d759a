"""The page of a report: charts, escaping, and a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from lares_pl.report.charts import Panel, Series, draw
from lares_pl.report.html import render
from lares_pl.report.page import Chart, Section, Table, short
from tests.report.conftest import EVIL


def test_only_lines_with_few_points_have_markers() -> None:
    def marks(count: int) -> int:
        x = np.linspace(1, 16, count)
        svg = draw("c", "A chart", "Read it.", [Panel("steps", "y", [Series("a", x, x)], log_x=True)], ["a"]).svg
        line = next(part for part in svg.split('<g id="line2d_') if "#0072b2" in part)
        return line.count("<use ")

    assert marks(20) == 20
    assert marks(21) == 0


def test_a_chart_of_more_runs_than_groups_is_described() -> None:
    panel = Panel("", "NDCG@10", [Series("spt", np.array([-0.12, 0.0, 0.12]), np.array([0.1, 0.3, 0.2]))], ticks=["spt"])
    chart = draw("seeds", "Every run", "Read it.", [panel], ["spt"])
    assert "spt from 0.100 at spt to 0.200 at spt, highest 0.300 at spt" in chart.alt


def test_equal_data_give_equal_images() -> None:
    panels = [Panel("steps", "NDCG@10", [Series("$a_b$ <x>", [1, 2, 4], [0.1, 0.2, 0.15], [0.05, 0.1, 0.1], [0.2, 0.3, 0.2])])]
    charts = [draw("c", "A chart", "Read it.", panels, ["$a_b$ <x>", "b"]) for _ in range(2)]
    assert charts[0] == charts[1]
    assert "from 0.100 at 1.00 to 0.150 at 4.00, highest 0.200 at 2.00" in charts[0].alt
    two = draw(
        "c",
        "A chart",
        "Read it.",
        [Panel("x", "y", [Series(label, [1], [2]) for label in ("$a_b$ <x>", "_b")])],
        ["$a_b$ <x>", "_b"],
    )
    texts = [element.text for element in ElementTree.fromstring(two.svg).iter() if element.tag.endswith("text")]
    assert {"$a_b$ <x>", "_b"} <= set(texts)  # as they are: no mathematics, no markup, none hidden


def test_text_is_escaped() -> None:
    evil = "<script>alert('&')</script>"
    chart = Chart("c", evil, evil, evil + '"', "<svg><g id='x'/></svg>")
    table = Table("t", evil, pd.DataFrame({evil: [evil, float("nan")]}), evil)
    page = render(evil, [evil], [Section(evil, [evil], [chart], [table])])
    assert "<script" not in page
    # title twice, lead, contents, heading, text; chart: label (twice), title, caption; table: title, caption, head, cell
    assert page.count("&lt;script&gt;") == 14
    document = ElementTree.fromstring(
        page.replace("<!DOCTYPE html>", "")
        .replace('<meta charset="utf-8">', "")
        .split("<main>")[1]
        .join(["<main>", ""])
        .split("</body>")[0]
    )
    assert document.find("h1") is not None


def test_numbers_are_short() -> None:
    assert [short(value) for value in (0, 1234.5, 12.345, 0.012345, 3.2e-9, float("nan"))] == [
        "0",
        "1,234",
        "12.3",
        "0.0123",
        "3.2e-09",
        "–",
    ]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real headless browser."""
    import shutil

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if found is None:
        pytest.skip("no chromium or chrome on this machine (apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=found, args=["--no-sandbox"])  # tests may run as root
        yield browser
        browser.close()


@pytest.mark.slow
def test_in_a_browser(browser: Any, written: Path) -> None:
    page = browser.new_page(viewport={"width": 1000, "height": 800})
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message) or dialog.dismiss())  # type: ignore[func-returns-value]
    page.on("request", lambda request: asked.append(request.url))
    page.goto((written / "report.html").absolute().as_uri())
    page.wait_for_load_state("networkidle")
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [(written / "report.html").absolute().as_uri()]
    assert page.title() == page.inner_text("h1") == "<script>alert(1)</script> & $x^2$"
    assert EVIL in page.inner_text("body")
    charts = page.query_selector_all("figure > svg")
    assert len(charts) == len(list((written / "charts").glob("*.svg")))
    for chart in charts:
        box = chart.bounding_box()
        assert chart.is_visible()
        assert min(box["width"], box["height"]) > 100
        assert chart.get_attribute("aria-label")
        lines = chart.query_selector_all("path[style*='stroke: #0072b2'], path[style*='stroke: #d55e00'], use")
        assert any(line.bounding_box() and line.bounding_box()["width"] > 0 for line in lines)
    assert page.evaluate("document.documentElement.scrollWidth") <= 1000  # nothing wider than the page
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for link in page.query_selector_all("nav a"):
        assert page.query_selector(link.get_attribute("href")) is not None
    page.close()
