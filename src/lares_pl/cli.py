"""The `lares` command: a dispatcher that reads the first word only, so that help answers at once.

`fit`, `validate`, `test` and `predict` are LightningCLI's (`lares_pl.training`); the others are plain functions.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from typing import NoReturn

from lares_pl.errors import LaresError

_FUNCTIONS = {
    "prepare": ("lares_pl.data.prepare", "turn raw interactions into a prepared dataset"),
    "synthetic": ("lares_pl.data.synthetic", "write the embedded demonstration data as raw interactions"),
    "import-reference": ("lares_pl.reference.exchange", "turn a checkpoint of the authors' release into one of ours"),
    "export-reference": ("lares_pl.reference.exchange", "turn a checkpoint of ours into one of the authors' release"),
    "export": ("lares_pl.export.command", "write a checkpoint as an ONNX or PyTorch program that runs without this package"),
    "config": ("lares_pl.shipped", "print a shipped config or script: lares config cluster.yaml"),
    "demo": ("lares_pl.demo", "prepare, SPT, RPT, test and predict in one go, with a summary"),
}
_STAGES = {
    "fit": "train a stage: lares fit --config spt.yaml, then lares fit --config rpt.yaml",
    "validate": "rank validation targets with a checkpoint",
    "test": "rank test targets with a checkpoint",
    "predict": "write ranked items for every user with a checkpoint",
}


def _help() -> str:
    commands = {**{name: text for name, (_, text) in _FUNCTIONS.items()}, **_STAGES}
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
            "`lares COMMAND --help` shows a command's options; LARES_TRACEBACK=1 shows tracebacks of errors.",
        ]
    )


def main() -> None:
    """Run one command; an error that a person can mend is one paragraph and exit status 2."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    sys.argv[2:] = [_underscored(argument) for argument in sys.argv[2:]]
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
        if command in _FUNCTIONS:
            _run_function(command)
        elif command in _STAGES:
            from lares_pl.training import run

            run()
        else:
            raise LaresError(f"unknown command {command!r}; there are {', '.join([*_FUNCTIONS, *_STAGES])}")
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


def _run_function(command: str) -> None:
    """A plain function as a command, its parameters as options."""
    from jsonargparse import auto_cli

    from lares_pl.config import Parser

    module, text = _FUNCTIONS[command]
    function = getattr(importlib.import_module(module), command.replace("-", "_"))
    auto_cli(function, args=sys.argv[2:], parser_class=Parser, prog=f"lares {command}", description=text, allow_abbrev=False)


def _fail(error: LaresError) -> NoReturn:
    if os.environ.get("LARES_TRACEBACK"):
        raise error
    print(f"lares: error: {error}", file=sys.stderr)
    sys.exit(2)
