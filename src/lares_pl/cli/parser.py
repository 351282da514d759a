"""The parser of the commands that are plain functions."""

from __future__ import annotations

from typing import Any

from jsonargparse import ArgumentParser

from lares_pl.cli.help import Helpful
from lares_pl.errors import LaresError
from lares_pl.parsing import readable


class Parser(Helpful, ArgumentParser):
    """A parser whose errors are `LaresError`."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise what is wrong, without usage text and alternatives that were not meant."""
        if not self.exit_on_error:  # a parser inside the parser: the outer one reports
            super().error(message, ex)
        raise LaresError(self.meant(readable(message)))
