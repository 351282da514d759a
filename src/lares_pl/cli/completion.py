"""`lares completion`: a script that completes commands, options and values in a shell.

The script is generated from the same parsers that read the command line. It does not start Python when a key is pressed: the
shell looks up runs, checkpoints and files itself. (jsonargparse's own completion would list every subclass that torch and
Lightning define, and knows neither shipped configs nor runs.)
"""

from __future__ import annotations

import argparse
from typing import Any, Literal

import shtab
from jsonargparse import ArgumentParser, auto_parser
from lightning.pytorch.cli import LightningCLI

from lares_pl.cli.commands import FUNCTIONS, TEXTS
from lares_pl.cli.lightning import LaresCLI, run
from lares_pl.cli.options import Option, sections
from lares_pl.cli.parser import Parser
from lares_pl.cli.shipped_configs import shipped_configs, shipped_files
from lares_pl.runs import RUNS


def completion(shell: Literal["bash", "zsh", "fish"]) -> None:
    """Print a script that completes `lares` in a shell: commands, options, shipped configs, runs and checkpoints.

    Generating it takes a few seconds, so keep it in a file; generate it again after an update.

    Args:
        shell: the shell.

    Example:
        lares completion bash > ~/.local/share/bash-completion/completions/lares
        lares completion zsh > ~/.zfunc/_lares    # a folder in $fpath
        lares completion fish > ~/.config/fish/completions/lares.fish
    """
    print(shtab.complete(_whole_command(), shell=shell))


def _whole_command() -> argparse.ArgumentParser:
    """All commands with their options in one plain parser, for shtab."""
    whole = argparse.ArgumentParser("lares", add_help=False)
    commands = whole.add_subparsers()
    for name, parser in {**_function_parsers(), **_stage_parsers()}.items():
        plain = commands.add_parser(name, help=TEXTS[name], add_help=False)
        taken: set[str] = set()
        for section in sections(parser, choices=True):
            for option in section.options:
                names = [name for name in option.names.split(", ") if name not in taken]  # SPT and RPT share some
                if names:
                    taken.update(names)
                    _add(plain, names, option)
    return whole


def _function_parsers() -> dict[str, ArgumentParser]:
    return {
        name: auto_parser(command.load(), parser_class=Parser, as_positional=command.positional)
        for name, command in FUNCTIONS.items()
    }


def _stage_parsers() -> dict[str, ArgumentParser]:
    """The parsers of `fit`, `validate`, `test` and `predict`, which are not run."""
    found: dict[str, ArgumentParser] = {}

    class Unparsed(LaresCLI):
        subcommands = staticmethod(LightningCLI.subcommands)  # all of them

        def parse_arguments(self, parser: Any, args: Any) -> None:
            found.update(self._subcommand_parsers)
            raise StopIteration

    try:
        run(Unparsed)
    except StopIteration:
        return found
    raise AssertionError("the command was run")


def _add(plain: argparse.ArgumentParser, names: list[str], option: Option) -> None:
    """Add an option for shtab: its names, its text, and what its value is completed from."""
    text = option.text.split(". ")[0].rstrip(".").replace("%", "%%")
    if names[0].startswith("-") and not option.value:
        plain.add_argument(*names, dest=option.key, help=text, action="store_true")
        return
    optional: dict[str, Any] = {"dest": option.key} if names[0].startswith("-") else {}
    action = plain.add_argument(*names, help=text, **optional)
    if words := option.choices or option.classes:
        action.choices = list(words)
    else:
        action.complete = _values(option)  # type: ignore[attr-defined]


def _values(option: Option) -> dict[str, Any]:
    """How a shell completes the value of an option."""
    name = option.key.rpartition(".")[2]
    if option.key == "run":
        return _from("run", f"ls {RUNS} 2>/dev/null", files=False)
    if name in ("ckpt_path", "init_from"):
        words = " auto last" if name == "ckpt_path" else ""
        return _from(name, f"ls {RUNS}/*/*/checkpoints/*.ckpt 2>/dev/null; echo{words}")
    if option.names.startswith("-c,"):
        return _from("config", f"echo {' '.join(shipped_configs())}")
    if option.names == "name":  # of `lares config`
        return _from("shipped", f"echo {' '.join(shipped_files())}", files=False)
    return shtab.FILE if option.value in ("TEXT", "VALUE", "") else _from("nothing", "true", files=False)


def _from(what: str, command: str, files: bool = True) -> dict[str, Any]:
    """Complete with the words that a shell command prints, and with file names."""
    function = f"_lares_{what}"
    bash = f'compgen -W "$({command})" -- "$1"' + ('; _shtab_compgen_files "$1"' if files else "")
    zsh = f"compadd -- $({command})" + ("; _files" if files else "")
    preamble = {"bash": f"{function}() {{ {bash}; }}", "zsh": f"{function}() {{ {zsh} }}"}
    fish = f"({command}{'; __fish_complete_path (commandline -ct)' if files else ''})"
    return {"bash": function, "zsh": function, "fish": fish, "preamble": preamble}
