"""The `lares` command: a dispatcher that reads the first word only, so that help answers at once.

`fit`, `validate`, `test` and `predict` are LightningCLI's (`lares_pl.cli.lightning`); the others are plain functions.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import sys
from typing import NoReturn

from lares_pl.cli.commands import STAGES
from lares_pl.cli.help import examples_of, help_last
from lares_pl.errors import LaresError

FUNCTIONS = {
    "prepare": ("lares_pl.data.prepare.command", "turn raw interactions into a prepared dataset"),
    "synthetic": ("lares_pl.data.synthetic", "write the embedded demonstration data as raw interactions"),
    "recommend": ("lares_pl.recommender.api", "rank the catalogue for histories never seen in training"),
    "report": ("lares_pl.report.command", "what runs learned: one HTML page with charts and tables"),
    "import-reference": ("lares_pl.reference.exchange", "turn a checkpoint of the authors' release into one of ours"),
    "export-reference": ("lares_pl.reference.exchange", "turn a checkpoint of ours into one of the authors' release"),
    "export": ("lares_pl.export.command", "write a checkpoint as an ONNX or PyTorch program that runs without this package"),
    "config": ("lares_pl.cli.shipped_configs", "print a shipped config or script: lares config cluster.yaml"),
    "completion": ("lares_pl.cli.completion", "print a script that completes commands and options in bash, zsh or fish"),
    "demo": ("lares_pl.cli.demo", "prepare, SPT, RPT, test and predict in one go, with a summary"),
}
NAME_ALL = {"recommend"}  # whose arguments are options, the required ones too, as in `predict`
_TAKE_SEVERAL = ("report",)  # whose words beside options are one list


def _help() -> str:
    commands = {
        **{name: text for name, (_, text) in FUNCTIONS.items()},
        **{name: stage.text for name, stage in STAGES.items()},
    }
    width = max(map(len, commands))
    lines = [f"  {name:<{width}}  {text}" for name, text in commands.items()]
    return "\n".join(
        [
            "usage: lares COMMAND [OPTION ...]",
            "",
            "Latent reasoning with recurrent depth for sequential recommendation.",
            "",
            "commands:",
            *lines,
            "",
            "`lares COMMAND --help` shows a command's options, `--help all` everything about them;",
            "LARES_TRACEBACK=1 shows tracebacks of errors.",
        ]
    )


def main() -> None:
    """Run one command; an error that a person can mend is one paragraph and exit status 2."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    sys.argv[2:] = help_last([_underscored(argument) for argument in sys.argv[2:]])
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # blocks of one's own: `class_path: my_model.MyBlock`, a file in this folder
    if command in ("-h", "--help", "help"):
        print(_help())
        return
    if command == "--version":
        from lares_pl import __version__

        print(f"lares {__version__}")
        return
    try:
        if command in FUNCTIONS:
            _run_function(command)
        elif command in STAGES:
            from lares_pl.cli.lightning import run

            run()
        else:
            from difflib import get_close_matches

            names = [*FUNCTIONS, *STAGES]
            near = "".join(f"; did you mean {name}?" for name in get_close_matches(command, names, 1))
            raise LaresError(f"unknown command {command!r}{near or '; there are ' + ', '.join(names)}")
    except LaresError as error:
        _fail(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        _fail(LaresError(f"nothing more can be written: {error}. Make room, or work in another folder"))


def _underscored(argument: str) -> str:
    """`--item-text` as `--item_text`: both ways of writing an option are meant."""
    option, equals, value = argument.partition("=")
    return option.replace("-", "_").replace("__", "--", 1) + equals + value if option.startswith("--") else argument


def _with_one_list(arguments: list[str]) -> list[str]:
    """The arguments with all that are neither an option nor an option's value as one list, which is how a list is given."""
    words: list[str] = []
    options: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        is_value = before.startswith("-") and "=" not in before
        (options if argument.startswith("-") or is_value else words).append(argument)
    return [*([json.dumps(words)] if words else []), *options]


def _run_function(command: str) -> None:
    """A plain function as a command, its parameters as options."""
    from jsonargparse import auto_cli

    from lares_pl.cli.parser import Parser

    module, text = FUNCTIONS[command]
    function = getattr(importlib.import_module(module), command.replace("-", "_"))
    arguments = _with_one_list(sys.argv[2:]) if command in _TAKE_SEVERAL else sys.argv[2:]
    auto_cli(
        function,
        args=arguments,
        parser_class=Parser,
        as_positional=command not in NAME_ALL,
        prog=f"lares {command}",
        description=text,
        epilog=examples_of(function),
        allow_abbrev=False,
    )


def _fail(error: LaresError) -> NoReturn:
    if os.environ.get("LARES_TRACEBACK"):
        raise error
    print(f"lares: error: {error}", file=sys.stderr)
    sys.exit(2)
