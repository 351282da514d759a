"""Checks of numbers and switches that callers give."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from lares_pl.errors import LaresError


def whole(name: str, value: Any, wanted: str = "a whole number") -> int:
    """Return a whole number of Python or NumPy.

    Args:
        name: of the argument, for the error.
        value: what was given.
        wanted: what must be given, for the error.

    Raises:
        LaresError: if it is no whole number.
    """
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise LaresError(f"{name} must be {wanted}; got {value!r}")


def at_least_one(name: str, value: Any) -> int:
    """A whole number from 1 on."""
    wanted = "a whole number, at least 1"
    number = whole(name, value, wanted)
    if number < 1:
        raise LaresError(f"{name} must be {wanted}; got {value!r}")
    return number


def switch(name: str, value: Any) -> bool:
    """True or False, of Python or NumPy.

    Raises:
        LaresError: if it is neither; text such as "false" would count as true.
    """
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise LaresError(f"{name} must be True or False; got {value!r}")
