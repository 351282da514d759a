"""Checks of arguments that callers give: whole numbers, numbers, switches, objects of a class."""

from __future__ import annotations

import inspect
import numbers
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

from lares_pl.errors import LaresError
from lares_pl.serialization import with_subclasses


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


def real(name: str, value: Any) -> float:
    """A number of Python or NumPy.

    Raises:
        LaresError: if it is none.
    """
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value)
    raise LaresError(f"{name} must be a number; got {value!r}")


def switch(name: str, value: Any) -> bool:
    """True or False, of Python or NumPy.

    Raises:
        LaresError: if it is neither; text such as "false" would count as true.
    """
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise LaresError(f"{name} must be True or False; got {value!r}")


def instance_of(name: str, value: Any, kind: type, example: str | None = None) -> None:
    """Check that an argument is an object of a class.

    Args:
        name: of the argument, for the error.
        value: what was given.
        kind: the class.
        example: of what may be given, for the error; None: an object of a class that derives from it.

    Raises:
        LaresError: if it is not.
    """
    if not isinstance(value, kind):
        if example is None:
            choices = (each.__name__ for each in with_subclasses(kind) if not inspect.isabstract(each))
            example = f"{next(choices, kind.__name__)}()"
        article = "an" if kind.__name__[0] in "AEIO" else "a"
        raise LaresError(f"{name} must be {article} {kind.__name__} of lares_pl, such as {example}, got {value!r}")


_CHECKS = {"int": whole, "float": real, "bool": switch}


def check_arguments(owner: type, given: Mapping[str, Any]) -> None:
    """Check the arguments of a constructor that are annotated as numbers or switches, or as these or None.

    Args:
        owner: the class whose constructor it is.
        given: values of its arguments; others are not looked at.

    Raises:
        LaresError: for the first one of another type.
    """
    for name, kind in owner.__init__.__annotations__.items():  # type: ignore[misc]
        written = kind.__name__ if isinstance(kind, type) else str(kind)
        check = _CHECKS.get(written.removesuffix(" | None"))
        if check is not None and name in given and (given[name] is not None or not written.endswith(" | None")):
            check(f"{owner.__name__}: {name}", given[name])


def check_fields(value: Any) -> None:
    """As `check_arguments`, of a dataclass that was made."""
    check_arguments(type(value), vars(value))
