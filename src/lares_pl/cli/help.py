"""Readable `--help`: grouped, one line per option with its default; any option in full on request.

If a `--config` is given too, the values of that config are shown as defaults.
"""

from __future__ import annotations

import argparse
import inspect
import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from jsonargparse import ArgumentParser

from lares_pl.cli.options import Option, Section, flat, sections, value_text
from lares_pl.errors import LaresError

_LEFT = 38  # columns of names


class Help(argparse.Action):
    """`--help`, `--help all`, `--help SECTION or OPTION`."""

    def __init__(self, option_strings: list[str], dest: str, **_: Any) -> None:
        text = "Show this help; in full for `all`, a section or an option, such as --help trainer."
        super().__init__(option_strings, dest, nargs="?", default=argparse.SUPPRESS, metavar="[WHAT]", help=text)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Print and exit."""
        print(render(parser, values, flat(namespace)))
        parser.exit()


def render(parser: ArgumentParser, what: str | None = None, values: Mapping[str, Any] | None = None) -> str:
    """Format the help of a command.

    Args:
        parser: its parser.
        what: None for the short help; `all`, a section or an option for full help on it.
        values: the values already set, by full key.

    Raises:
        LaresError: if no option starts with `what`.
    """
    width = min(max(shutil.get_terminal_size((110, 0)).columns, 60), 130) - 1
    if what is not None:
        return "\n".join(_in_full(sections(parser, values, choices=True), what.lstrip("-"), width))
    found, common = sections(parser, values), getattr(parser, "common", {})
    positional = " ".join(action.dest.upper() for action in parser._actions if not action.option_strings)
    name = re.sub(r" \[options\]", "", parser.prog)
    lines = [f"usage: {name} {positional}{' ' * bool(positional)}[OPTION ...]", "", _sentence(parser.description or "")]
    for section in found:
        names = common.get(section.name)
        shown = [option for option in section.options if names is None or option.key.rpartition(".")[2] in names]
        if not shown:
            continue
        lines += ["", *_heading(section, len(shown), width)]
        lines += [line for option in shown for line in _short(option, width)]
    if any(option.value == "CLASS" for section in found for option in section.options):
        lines += ["", "A CLASS has options of its own under its key; --help KEY lists them."]
    return "\n".join([*lines, *_examples(parser.epilog)])


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}." if text else ""


def _heading(section: Section, shown: int, width: int) -> list[str]:
    title = section.title.rstrip(".")
    if section.name == "trainer":
        title = "Lightning's Trainer"
    if shown < len(section.options):
        title += f"{'; ' * bool(title)}--help {section.name or 'all'} shows all {len(section.options)}"
    return textwrap.wrap(f"{section.name or 'options'}: {title}".rstrip(": ") + ":" * (not title), width)


def _short(option: Option, width: int) -> Iterator[str]:
    """One option: name, first sentence, default."""
    sentence = re.split(r"(?<=[^.])\.(?:\s|$)", option.text)[0]
    default = value_text(option.default)
    yield from _columns(f"{option.names} {option.value}".rstrip(), sentence + (f" [{default}]" if default else ""), width)


def _columns(left: str, right: str, width: int) -> Iterator[str]:
    lines = textwrap.wrap(right, max(width - _LEFT - 4, 20), break_on_hyphens=False) or [""]
    if len(left) > _LEFT:
        yield f"  {left}"
    else:
        yield f"  {left:<{_LEFT}}  {lines.pop(0)}".rstrip()
    for line in lines:
        yield f"  {'':<{_LEFT}}  {line}"


def _in_full(found: list[Section], what: str, width: int) -> Iterator[str]:
    """Every option whose key starts with `what`, with its full text."""
    chosen = [
        (section, [option for option in section.options if what == "all" or f"{option.key}.".startswith(f"{what}.")])
        for section in found
    ]
    if not any(options for _, options in chosen):
        known = ", ".join(dict.fromkeys(section.name for section in found if section.name))
        raise LaresError(f"--help {what}: no such option. Sections: {known or 'none'}; --help all shows every option")
    for section, options in chosen:
        if options:
            yield from _heading(section, len(section.options), width)
        for option in options:
            yield f"  {option.names} {option.value}".rstrip()
            yield from textwrap.wrap(option.full, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
        if options:
            yield ""


def _examples(epilog: str | None) -> list[str]:
    return ["", "examples:", *(f"  {line.strip()}" for line in epilog.strip().splitlines())] if epilog else []


def examples_of(function: Any) -> str:
    """Return the commands under `Example:` in a function's docstring."""
    _, _, example = (inspect.getdoc(function) or "").partition("\nExample:\n")
    lines = inspect.cleandoc(re.split(r"\n(?=\S)", example)[0]).splitlines()
    return "\n".join(line for line in lines if line.strip())
