"""The parser of every command: readable help, and errors that suggest what was probably meant."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from lares_pl.cli.help import Help
from lares_pl.cli.options import sections
from lares_pl.parsing import PlainParser


class Parser(PlainParser):
    """A parser whose `--help` is `lares_pl.cli.help`'s.

    Attributes:
        common: names of the options that the short help shows, by section; other sections are shown in full, and "" is the
            section of the options outside any.
        stages: classes whose options the parser accepts under `model` while none is chosen.
    """

    common: Mapping[str, Sequence[str]] = {}
    stages: tuple[type, ...] = ()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        asked = options.pop("add_help", True)
        super().__init__(*arguments, add_help=False, **options)
        if asked:
            self.add_argument("-h", "--help", action=Help)

    def report(self, message: str) -> str:
        """Return the message of an error; for an unknown option, with similar ones."""
        message = super().report(message)
        if not (unknown := _unknown_keys(message)):
            return message
        parsers = [self, *getattr(self._subcommands_action, "_name_parser_map", {}).values()]
        known = [option for parser in parsers for section in sections(parser, choices=True) for option in section.options]
        keys = [option.key for option in known if option.names.startswith("-")]
        found = [f"--{near}" for key in unknown for near in _similar(key, keys)]
        return f"{message}; did you mean {', '.join(found)}?" if found else message

    def explain(
        self, text: str, examples: Iterable[str], common: Mapping[str, Sequence[str]], texts: Mapping[str, str]
    ) -> None:
        """Describe the command.

        Args:
            text: its purpose, in one line.
            examples: commands to copy.
            common: as the attribute.
            texts: texts of options by key, which replace their docstrings.
        """
        self.description, self.epilog, self.common = text, "\n".join(examples), common
        for action in self._actions:
            action.help = texts.get(action.dest, action.help)


_UNKNOWN = re.compile(r"(?:([\w.]+): )?(?:unrecognized arguments: (.*)|Option '([\w.]+)' is not accepted)")


def _unknown_keys(message: str) -> list[str]:
    """The keys of options that a message says are unknown, such as `model.alhpa`."""
    if (said := _UNKNOWN.search(message)) is None:
        return []
    within, typed, key = said.groups(default="")
    names = [word.lstrip("-").partition("=")[0] for word in typed.split() if word.startswith("--")] or [key]
    return [f"{within}.{name}" if within else name for name in names if name]


def _similar(key: str, known: Sequence[str]) -> list[str]:
    """The known key that is most like an unknown one: the same name in another section, or a name that is spelt alike."""
    name = key.rpartition(".")[2]
    same = [other for other in known if other.rpartition(".")[2] == name]
    return get_close_matches(key, same, 1, cutoff=0) or get_close_matches(key, known, 1)
