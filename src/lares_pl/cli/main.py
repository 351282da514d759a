"""The `lares` command: a dispatcher that reads only the first word and imports little, so that `lares --help` is fast.

`fit`, `validate`, `test` and `predict` are LightningCLI's (`lares_pl.cli.lightning`); the others are plain functions.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
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
    """Run one command; a `LaresError` is printed as one paragraph and exits with status 2, Ctrl-C as one line with 130."""
    with _ended_by_ctrl_c():
        _run_command()


@contextmanager
def _ended_by_ctrl_c() -> Iterator[None]:
    """Turn KeyboardInterrupt into one line and the status that shells report; Lightning's loops turn it into an exit with 1."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, SystemExit) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        _say_interrupted()
        sys.exit(128 + signal.SIGINT)


def _say_interrupted() -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0":  # Ctrl-C reaches all processes of a run
        os.write(2, b"lares: interrupted\n")


@contextmanager
def _importing() -> Iterator[None]:
    """End the process at once on Ctrl-C: nothing is to be cleaned up while modules are imported.

    An exception in the middle of an import becomes whatever the imported module makes of it.
    """

    def end(signum: int, frame: FrameType | None) -> None:
        _say_interrupted()
        os._exit(128 + signum)

    former = signal.getsignal(signal.SIGINT)
    if former is not signal.default_int_handler:  # ignored, as in the background, or of a program that runs the command
        yield
        return
    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)


def _run_command() -> None:
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
            with _importing():
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
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        _fail(LaresError(f"cannot write: {error}. Free some space, or work in another folder"))


def _run_function(name: str) -> None:
    """A plain function as a command, its parameters as options."""
    command = FUNCTIONS[name]
    with _importing():
        from jsonargparse import auto_cli

        from lares_pl.cli.help import examples_of
        from lares_pl.cli.parser import Parser

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
