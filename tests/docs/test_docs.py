"""The documentation site: complete, and without a broken link."""

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


def test_every_config_is_shown(pages: dict[str, str]) -> None:
    for name, path in shipped_files().items():
        if name.endswith(".yaml"):
            assert any(path.read_text() in page for page in pages.values()), f"docs/ shows no {name}"


def test_included_files_are_shown_and_links_out_of_the_pages_are_text(pages: dict[str, str]) -> None:
    assert (ROOT / "examples" / "serve.py").read_text() in pages["export.md"]
    assert (ROOT / "CHANGELOG.md").read_text() in pages["changelog.md"]
    assert not any("](../" in page for name, page in pages.items() if "/" not in name)


def test_a_missing_included_file_is_an_error() -> None:
    with pytest.raises(SystemExit, match=r"no-such\.py, which does not exist"):
        site.expanded("<!-- include: no-such.py -->")


def test_every_page_is_in_the_navigation(pages: dict[str, str]) -> None:
    def entries(part: object) -> list[str]:
        if isinstance(part, str):
            return [part]
        values = part.values() if isinstance(part, dict) else part
        return [entry for value in values for entry in entries(value)]  # type: ignore[attr-defined]

    assert sorted(entries(site.configuration()["nav"])) == sorted(pages)


def test_sections_of_the_method_that_docstrings_cite_exist() -> None:
    headings = set(re.findall(r"^## (.+)$", (ROOT / "docs" / "method.md").read_text(), re.MULTILINE))
    source = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    cited = set(re.findall(r'docs/method\.md,? "([^"]+)"', source))
    assert len(cited) > 4
    assert cited <= headings


@pytest.mark.slow
def test_the_site_is_built_without_a_warning() -> None:
    """Into build/, as `make docs` does: links and anchors are checked, public names are all documented."""
    build = ["-m", "zensical", "build", "--strict", "--clean", "-f", "build/mkdocs.yml"]
    for command in (["docs/pages.py"], build):
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    built = "".join(path.read_text() for path in Path(ROOT, "build", "site", "api").rglob("index.html"))
    for name in lares_pl.__all__:
        assert f'id="{getattr(lares_pl, name).__module__}.{name}"' in built, name
