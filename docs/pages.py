"""Writes the pages of the site from README, configs and docstrings, so that nothing is written twice: `make docs`.

A line `{{ readme: Heading }}` in a page stands for that section of the README, `{{ readme: }}` for what comes before the first
one, `{{ readme: the rest }}` for the sections that no other page shows, `{{ config: NAME }}` for a shipped config,
`{{ changelog }}` for the changelog. Links between sections of the README become links between pages.
"""

from __future__ import annotations

import re
import shutil
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "lares_pl"
REST = "the rest"
# rooms of the house, from the top: folders, or the modules that are rooms of their own
ROOMS = {
    "commands": ["cli", "runs"],
    "products": ["recommender", "export"],
    "report": ["report"],
    "callbacks": ["callbacks"],
    "stages": ["stages", "metrics"],
    "losses": ["losses"],
    "model": ["model"],
    "data": ["data"],
    "reference": ["reference"],
    "foundations": ["serialization", "parsing", "atomic_io", "device", "errors"],
}
_PLACE = re.compile(r"^\{\{ (readme|config|changelog)(?:: ?(.*?))? \}\}$", re.MULTILINE)
_HEADING = re.compile(r"^(#{2,3}) (.+)$", re.MULTILINE)


@cache
def readme() -> dict[str, str]:
    """The README's sections by heading, headings included; what comes before the first one under ""."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    fenced = re.sub(r"^```.*?^```", lambda block: block.group().replace("\n#", "\n\0"), text, flags=re.DOTALL | re.MULTILINE)
    before, *sections = re.split(r"^(?=## )", fenced, flags=re.MULTILINE)
    found = {"": before.partition("\n")[2]}
    found |= {section.partition("\n")[0].removeprefix("## "): section for section in sections}
    return {name: section.replace("\0", "#") for name, section in found.items()}


@cache
def placed() -> dict[str, str]:
    """The page that shows each section of the README."""
    pages: dict[str, str] = {}
    rest = ""
    for page in sorted((ROOT / "docs").glob("*.md")):
        for kind, name in _PLACE.findall(page.read_text(encoding="utf-8")):
            if kind == "readme" and name == REST:
                rest = page.name
            elif kind == "readme":
                if name not in readme():
                    raise SystemExit(f"{page}: the README has no section {name!r}; it has {', '.join(readme())}")
                pages[name] = page.name
    return pages | {name: rest for name in readme() if name not in pages}


@cache
def anchors() -> dict[str, tuple[str, str]]:
    """Page and anchor of each heading of the README, by its anchor on GitHub, which the README's links name."""
    titles = [(name, title) for name, section in readme().items() for _, title in _HEADING.findall(section)]
    return {re.sub(r"[^\w\s-]", "", title).lower().replace(" ", "-"): (placed()[name], anchor(title)) for name, title in titles}


def anchor(title: str) -> str:
    """The anchor of a heading in the site."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower())


def section(name: str, page: str) -> str:
    """A section for a page, its links pointing to where the others are."""

    def linked(link: re.Match[str]) -> str:
        if link.group(1) not in anchors():
            raise SystemExit(f"README, section {name!r}: its link #{link.group(1)} leads nowhere")
        target, place = anchors()[link.group(1)]
        return f"]({'' if target == page else target}#{place})"

    return re.sub(r"\]\(#([^)]+)\)", linked, readme()[name])


def shown(kind: str, name: str, page: str) -> str:
    """What stands in the place of one line."""
    if kind == "config":
        (path,) = [path for folder in ("configs", "examples") for path in (ROOT / folder).rglob(name)]
        return f"### {name} {{ #{anchor(name)} }}\n\n```yaml\n{path.read_text(encoding='utf-8')}```"
    if kind == "changelog":
        return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    if name == REST:
        return "\n".join(section(other, page) for other, where in placed().items() if where == page)
    return section(name, page)


# ---------------------------------------------------------------- pages


def pages() -> dict[str, str]:
    """The text of every page, by its path: those of this folder, and one of the API for each room."""
    found = {}
    for path in (ROOT / "docs").glob("*.md"):
        text = path.read_text(encoding="utf-8")
        found[path.name] = _PLACE.sub(lambda place: shown(place[1], place[2] or "", path.name), text)  # noqa: B023
    left = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    for room, members in ROOMS.items():
        modules = [module for member in members for module in _modules(member)]
        found[f"api/{room}.md"] = "\n\n".join([f"# {room.capitalize()}", *(f"::: {module}" for module in modules)]) + "\n"
        left -= set(members)
    if missing := sorted(left - {"__init__", "__main__"}):
        raise SystemExit(f"docs/pages.py: ROOMS names no page for {', '.join(missing)}")
    return found


def _modules(member: str) -> list[str]:
    paths = sorted((PACKAGE / member).rglob("*.py")) if (PACKAGE / member).is_dir() else [PACKAGE / f"{member}.py"]
    parts = [path.relative_to(PACKAGE.parent).with_suffix("").parts for path in paths]
    return [".".join(part[:-1] if part[-1] == "__init__" else part) for part in parts]


def main(folder: str) -> None:
    """Write the pages into a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, text in pages().items():
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
