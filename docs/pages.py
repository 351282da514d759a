"""Write into build/ the sources of the site: pages, configs, API, and a configuration with all of them.

    python docs/pages.py && zensical build --config-file build/mkdocs.yml

In a page, `<!-- include: PATH -->` is replaced by a file of the repository and `<!-- configs -->` by all shipped configs.
Links to files outside docs/, which work on a code host, become plain text.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
BUILD = ROOT / "build"
PACKAGE = ROOT / "src" / "lares_pl"
FIRST = ["trainer.yaml", "spt.yaml", "rpt.yaml", "spt-continued.yaml", "sasrec.yaml"]  # configs shown before the others
TITLES = {"cli": "Command line", "other": "Other modules"}  # of pages of the API, where not their package's name
_DIRECTIVE = re.compile(r"^<!-- (?:include: (\S+)|configs) -->$", re.MULTILINE)
_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]+\)")


def pages() -> dict[str, str]:
    """The text of every page, by its path: those of docs/ and one of the API for each package."""
    return {path.name: expanded(path.read_text(encoding="utf-8")) for path in DOCS.glob("*.md")} | api_pages()


def expanded(text: str) -> str:
    """A page with its directives replaced and its links outside docs/ turned into text."""
    return _DIRECTIVE.sub(lambda found: shown(ROOT / found[1]) if found[1] else all_configs(), _OUTSIDE.sub(r"\1", text))


def shown(path: Path) -> str:
    """A file as part of a page."""
    if not path.is_file():
        raise SystemExit(f"docs/pages.py: a page includes {path}, which does not exist")
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text.replace("](docs/", "](")
    language = {".py": "python", ".yaml": "yaml", ".sh": "bash"}[path.suffix]
    return f"```{language}\n{text}```"


# ---------------------------------------------------------------- configs


def all_configs() -> str:
    """Every shipped config under its name: those in configs/ itself, then those of each directory in it."""
    top = ROOT / "configs"
    parts: list[str] = []
    group = top
    names = [*FIRST, *sorted({path.name for path in top.rglob("*.yaml")} - set(FIRST))]
    for path in sorted(top.rglob("*.yaml"), key=lambda path: (path.parent, names.index(path.name))):
        if path.parent != group:
            group = path.parent
            parts.append(f"## {group.name.capitalize()}")
        parts.append(f"### {path.name} {{ #{path.name.replace('.', '-')} }}\n\n{shown(path)}")
    return "\n\n".join(parts)


# ---------------------------------------------------------------- API


def api_pages() -> dict[str, str]:
    """A page for each package of `lares_pl`, and one for the modules beside them."""
    packages = sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))
    alone = sorted(path for path in PACKAGE.glob("*.py") if not path.name.startswith("__"))
    found = {package.name: sorted(package.rglob("*.py")) for package in packages} | {"other": alone}
    return {f"api/{name}.md": _api_page(name, paths) for name, paths in found.items()}


def _api_page(name: str, paths: list[Path]) -> str:
    return "\n\n".join([f"# {_title(name)}", *(f"::: {_module(path)}" for path in paths)]) + "\n"


def _title(name: str) -> str:
    return TITLES.get(name, name.capitalize())


def _module(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# ---------------------------------------------------------------- writing


def configuration() -> dict[str, Any]:
    """mkdocs.yml with the paths of build/ and the API in its navigation."""
    settings: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    names = [Path(page).stem for page in api_pages()]
    settings["nav"].append({"API": [{_title(name): f"api/{name}.md"} for name in names]})
    return {**settings, "docs_dir": "docs", "site_dir": "site"}


def main() -> None:
    """Write everything into build/."""
    shutil.rmtree(BUILD / "docs", ignore_errors=True)
    shutil.copytree(DOCS, BUILD / "docs", ignore=shutil.ignore_patterns("*.py", "*.md", "__pycache__"))
    for name, text in pages().items():
        path = BUILD / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (BUILD / "mkdocs.yml").write_text(yaml.safe_dump(configuration(), sort_keys=False, allow_unicode=True), encoding="utf-8")


if __name__ == "__main__":
    main()
