"""The documentation site: whole, from one source, without a broken link."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import lares_pl
import pages as site
from lares_pl.cli.shipped_configs import shipped_files
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return site.pages()


def test_the_whole_readme_is_there_once(pages: dict[str, str]) -> None:
    everything = "\n".join(pages.values())
    for heading in re.findall(r"^## (.+)$", (ROOT / "README.md").read_text(), re.MULTILINE):
        if heading != "lares_pl":
            assert everything.count(f"\n## {heading}\n") == 1, heading
    assert "{{" not in everything.replace("${{", "")


def test_every_config_is_shown(pages: dict[str, str]) -> None:
    for name, path in shipped_files().items():
        if name.endswith(".yaml"):
            assert any(path.read_text() in page for page in pages.values()), f"docs/ shows no {name}"


def test_links_between_sections_become_links_between_pages(pages: dict[str, str]) -> None:
    assert "(blocks.md#any-block)" in pages["python.md"]
    assert "(tracking.md#weights-biases)" in pages["stages.md"]  # GitHub's own anchor is weights--biases
    assert "(#every-prefix-at-once)" not in pages["stages.md"]


def test_a_section_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "readme", lambda: {"": "", "A": "## A\n[x](#nowhere)"})
    site.placed.cache_clear()
    with pytest.raises(SystemExit, match="no section"):
        site.placed()
    monkeypatch.setattr(site, "anchors", lambda: {"a": ("more.md", "a")})
    with pytest.raises(SystemExit, match="#nowhere leads nowhere"):
        site.section("A", "more.md")
    site.placed.cache_clear()


def test_sections_of_the_method_that_docstrings_cite_exist() -> None:
    headings = set(re.findall(r"^## (.+)$", (ROOT / "docs" / "method.md").read_text(), re.MULTILINE))
    source = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    cited = set(re.findall(r'docs/method\.md "([^"]+)"', source))
    assert len(cited) > 4
    assert cited <= headings


@pytest.mark.slow
def test_the_site_is_built_without_a_warning() -> None:
    """Into build/, as `make docs` does: links and anchors are checked, public names are all documented."""
    for command in (["docs/pages.py", "build/docs"], ["-m", "zensical", "build", "--strict", "--clean", "-f", "mkdocs.yml"]):
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    built = "".join(path.read_text() for path in Path(ROOT, "build", "site", "api").rglob("index.html"))
    for name in lares_pl.__all__:
        assert f'id="{getattr(lares_pl, name).__module__}.{name}"' in built, name
