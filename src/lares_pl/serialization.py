"""Typed configuration as plain values, and classes by their paths.

Configuration is typed objects in Python (frozen dataclasses; classes or `functools.partial` of classes where something is
built later) and plain dicts, lists, numbers and strings in YAML and in checkpoints, so that a checkpoint loads with
`weights_only=True`. A choice between classes is `{"class_path": …, "init_args": {…}}` in the plain form.
`lares_pl.parsing.from_plain` is the way back.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from lares_pl.errors import LaresError


def class_of(factory: Callable[..., Any]) -> type:
    """Return the class that a factory instantiates: a class, or a `functools.partial` of one.

    jsonargparse's factories are partials of its own instantiator with the class among their arguments.

    Raises:
        LaresError: for any other callable, which could not be written into a checkpoint.
    """
    candidates = (factory.func, *factory.args) if isinstance(factory, partial) else (factory,)
    for candidate in candidates:
        if isinstance(candidate, type):
            return candidate
    raise LaresError(f"{factory!r} cannot be written into a checkpoint: give a class or functools.partial(Class, key=value)")


def class_path_of(cls: type) -> str:
    """Return the path from which a class can be imported."""
    return f"{cls.__module__}.{cls.__qualname__}"


def with_subclasses(kind: type) -> Iterator[type]:
    """All imported classes that derive from a class, and itself."""
    yield kind
    derived: type
    for derived in kind.__subclasses__():
        yield from with_subclasses(derived)


def import_class(path: str) -> type:
    """Import the class of a class path.

    Raises:
        LaresError: if there is none.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever a user's own module raises
        said = f"class {path} cannot be imported: {error}"
        if isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0] != "":
            said += f". Where is {error.name}.py? Run in its folder, or add that to PYTHONPATH"
        raise LaresError(said) from error
    if not isinstance(found, type):
        raise LaresError(f"{path} is not a class; a class_path must name one")
    return found


def to_plain(value: Any) -> Any:
    """Convert typed configuration to plain values.

    Raises:
        LaresError: if a value has no plain form.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, argparse.Namespace):  # what a command line was parsed into
        return to_plain(vars(value))
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        is_choice = type(value).__bases__ != (object,)
        return {"class_path": class_path_of(type(value)), "init_args": fields} if is_choice else fields
    if callable(value):
        init_args = to_plain(getattr(value, "keywords", {}))
        return {"class_path": class_path_of(class_of(value)), "init_args": init_args}
    raise LaresError(
        f"{' '.join(repr(value).split())[:80]} cannot be part of a configuration, which holds plain values: in place of an "
        f"instance of {type(value).__name__} give the class, or functools.partial(Class, key=value)"
    )


def changed_settings(before: Any, now: Any, key: str = "") -> list[str]:
    """List the plain settings that differ, as `optimizer.lr 0.002 -> 0.1`."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        inner = {name: f"{key}.{name}" if key and name != "init_args" else key or name for name in {**before, **now}}
        return [line for name, path in inner.items() for line in changed_settings(before.get(name), now.get(name), path)]
    return [] if before == now else [f"{key} {before} -> {now}"]


def arguments(local: Mapping[str, Any]) -> dict[str, Any]:
    """Return a constructor's arguments, from its `locals()`."""
    return {key: value for key, value in local.items() if key not in ("self", "__class__")}
