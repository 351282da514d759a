"""Command-line arguments before any parser reads them."""

from __future__ import annotations

import json


def normalize(arguments: list[str]) -> list[str]:
    """Write options with underscores, and put `--help` last."""
    return help_last([_underscored(argument) for argument in arguments])


def _underscored(argument: str) -> str:
    """`--item-text` as `--item_text`: either spelling is accepted."""
    option, equals, value = argument.partition("=")
    return option.replace("-", "_").replace("__", "--", 1) + equals + value if option.startswith("--") else argument


def help_last(arguments: list[str]) -> list[str]:
    """Move `--help` after all other arguments, so that it shows the values of a `--config`."""
    for position, argument in enumerate(arguments):
        if argument in ("-h", "--help"):
            what = [word for word in arguments[position + 1 : position + 2] if not word.startswith("-")]
            return [*arguments[:position], *arguments[position + 1 + len(what) :], "--help", *what]
    return arguments


def words_as_one_list(arguments: list[str]) -> list[str]:
    """Collect all words that are neither an option nor an option's value into one JSON list, as parsers take lists."""
    words: list[str] = []
    options: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        is_value = before.startswith("-") and "=" not in before
        (options if argument.startswith("-") or is_value else words).append(argument)
    return [*([json.dumps(words)] if words else []), *options]
