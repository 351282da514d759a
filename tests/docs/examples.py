"""Code blocks of the README and the pages of docs/."""

from __future__ import annotations

import re
import shlex

from tests.conftest import ROOT

PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


def text(page: str) -> str:
    """The text of a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """Its fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text(page), re.DOTALL | re.MULTILINE)


def scripts(page: str) -> dict[str, str]:
    """Its Python files: blocks that begin with their name in a comment."""
    return {code.partition("\n")[0].removeprefix("# "): code for code in blocks(page, "python") if code.startswith("# ")}


def script(page: str, name: str) -> str:
    """One of its Python files."""
    return scripts(page)[name]


def statements(page: str) -> str:
    """Its other Python code, as one program."""
    return "\n".join(code for code in blocks(page, "python") if not code.startswith("# "))


def commands(page: str) -> list[list[str]]:
    """The arguments of each `lares` command that it shows, variables and all."""
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.strip().startswith("lares ")]


def command(page: str, containing: str) -> list[str]:
    """The one command with this argument."""
    (found,) = (arguments for arguments in commands(page) if containing in arguments)
    return found
