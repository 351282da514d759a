"""The `lares` command: a dispatcher that reads only the first word and imports little, so that `lares --help` is fast.

`fit`, `validate`, `test` and `predict` are LightningCLI's (`lares_pl.cli.lightning`); the others are plain functions.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import NoReturn

from lares_pl.cli.arguments import normalize, words_as_one_list
from lares_pl.cli.commands import FUNCTIONS, STAGES, TEXTS
from lares_pl.errors import LaresError


def _help() -> str:
    width = max(map(len, TEXTS))
    lines = [f"  {name:<{width}}  {text}" for name, text in TEXTS.items()]
    return "\n".join(
        [
            "usage: lares COMMAND [OPTION ...]",
            "",
            "Latent reasoning with recurrent depth for sequential recommendation.",
            "",
            "commands:",
            *lines,
            "",
            "`lares COMMAND --help` shows a command's options, `--help all` all of them in full;",
            "LARES_TRACEBACK=1 shows tracebacks of errors.",
        ]
    )


def main() -> None:
    """Run one command; a `LaresError` is printed as one paragraph and exits with status 2."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    sys.argv[2:] = normalize(sys.argv[2:])
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # your own blocks: `class_path: my_model.MyBlock` is a file in the current folder
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
            from lares_pl.cli.one_paragraph import one_paragraph

            with one_paragraph():
                run()
        else:
            from difflib import get_close_matches

            near = "".join(f"; did you mean {name}?" for name in get_close_matches(command, TEXTS, 1))
            raise LaresError(f"unknown command {command!r}{near or '; there are ' + ', '.join(TEXTS)}")
    except LaresError as error:
        _fail(error)
    except KeyboardInterrupt:
        sys.exit(130)  # as shells report it
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        _fail(LaresError(f"cannot write: {error}. Free some space, or work in another folder"))


def _run_function(name: str) -> None:
    """A plain function as a command, its parameters as options."""
    from jsonargparse import auto_cli

    from lares_pl.cli.help import examples_of
    from lares_pl.cli.parser import Parser

    command = FUNCTIONS[name]
    function = command.load()
    auto_cli(
        function,
        args=words_as_one_list(sys.argv[2:]) if command.one_list else sys.argv[2:],
        parser_class=Parser,
        as_positional=command.positional,
        prog=f"lares {name}",
        description=command.text,
        epilog=examples_of(function),
        allow_abbrev=False,
    )


def _fail(error: LaresError) -> NoReturn:
    if os.environ.get("LARES_TRACEBACK"):
        raise error
    print(f"lares: error: {error}", file=sys.stderr)
    sys.exit(2)
