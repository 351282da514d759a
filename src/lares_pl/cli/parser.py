"""The parser of every command: readable help, and errors that suggest what was probably meant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from lares_pl.cli.help import Help
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
        options = [*self._option_string_actions]
        for part in getattr(self._subcommands_action, "_name_parser_map", {}).values():
            options += part._option_string_actions
        unknown = message.partition("unrecognized arguments:")[2].split()
        found = [near for word in unknown if word.startswith("--") for near in _similar(word.split("=")[0], options)]
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


def _similar(option: str, options: Sequence[str]) -> list[str]:
    """The known option that is most like an unknown one; keys of the model often lack `model`."""
    if option.split(".")[0] in ("--backbone", "--optimizer", "--scheduler"):
        return [f"--model.{option.removeprefix('--')}"]
    return get_close_matches(option, options, 1)
