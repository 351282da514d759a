"""The parser of every command: readable help, and errors that suggest what was probably meant."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lares_pl.cli.help import Help
from lares_pl.cli.options import sections
from lares_pl.cli.shipped_configs import config_that_sets
from lares_pl.cli.suggestions import advice_on_class, similar_options, unknown_keys
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
        """Return the message of an error: where it is, and what was probably meant."""
        message = super().report(message)
        if not (unknown := unknown_keys(message)):
            return message + advice_on_class(message)
        files = [file for key in unknown if (file := config_that_sets(key, sys.argv[1:])) is not None]
        return (f"--config {files[0]}: " if files else "") + message + similar_options(unknown, self._keys())

    def _keys(self) -> list[str]:
        """The keys of all options that are accepted here and in subcommands."""
        parsers = [self, *getattr(self._subcommands_action, "_name_parser_map", {}).values()]
        known = [option for parser in parsers for section in sections(parser, choices=True) for option in section.options]
        return [option.key for option in known if option.names.startswith("-")]

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
