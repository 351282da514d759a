"""Typed configuration to plain values and back.

Configuration is typed objects in Python (frozen dataclasses; classes or `functools.partial` of classes where something is
built later) and plain dicts, lists, numbers and strings in YAML and in checkpoints, so that a checkpoint loads with
`weights_only=True`. A choice between classes is `{"class_path": …, "init_args": {…}}` in the plain form.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from inspect import Parameter, Signature
from typing import Any

from jsonargparse import ArgumentParser, Namespace, _typehints, set_parsing_settings

from lares_pl.cli.help import Helpful
from lares_pl.errors import LaresError

# what an option without a type is given stays what it is; else a checkpoint could have any class built there
set_parsing_settings(instantiate_subclass_spec_in_any=False)


def class_of(factory: Callable[..., Any]) -> type:
    """The class that a class, or a `functools.partial` of one, builds.

    jsonargparse's factories are partials of its own instantiator with the class among their arguments.

    Raises:
        LaresError: for any other callable, which could not be written into a checkpoint.
    """
    candidates = (factory.func, *factory.args) if isinstance(factory, partial) else (factory,)
    for candidate in candidates:
        if isinstance(candidate, type):
            return candidate
    raise LaresError(f"{factory!r} can't be written into a checkpoint: give a class or functools.partial(Class, key=value)")


def class_path_of(cls: type) -> str:
    """Where a class can be imported from."""
    return f"{cls.__module__}.{cls.__qualname__}"


def import_class(path: str) -> type:
    """The class of a class path.

    Raises:
        LaresError: if there is none.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever a user's own module raises
        raise LaresError(f"class {path} can't be imported: {error}") from error
    if not isinstance(found, type):
        raise LaresError(f"{path} is not a class; a class_path must name one")
    return found


def to_plain(value: Any) -> Any:
    """Typed configuration as plain values.

    Raises:
        LaresError: if a value has no plain form.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, Namespace):
        return to_plain(value.as_dict())
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        is_choice = type(value).__bases__ != (object,)
        return {"class_path": class_path_of(type(value)), "init_args": fields} if is_choice else fields
    if callable(value):
        init_args = to_plain(getattr(value, "keywords", {}))
        return {"class_path": class_path_of(class_of(value)), "init_args": init_args}
    raise LaresError(f"{value!r} ({type(value).__name__}) has no plain form and can't be part of a configuration")


class Parser(Helpful, ArgumentParser):
    """A parser whose errors are `LaresError`."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise what is wrong, without usage text and alternatives that were not meant."""
        if not self.exit_on_error:  # a parser inside the parser: the outer one reports
            super().error(message, ex)
        raise LaresError(self.meant(readable(message)))


@contextmanager
def own_defaults() -> Iterator[None]:
    """While parsing: a block named in place of another starts from its own defaults; only classes are built.

    jsonargparse keeps options of the same name, so that `class_path: my_model.MyBlock` would silently get the `heads` and
    `inner_size` of the TransformerBlock it replaces. Other choices (stages, optimisers, depth schedules) keep theirs.
    It also calls functions: `class_path: os.system` in a checkpoint would run a command.
    """
    keep: Callable[..., None] = _typehints.discard_init_args_on_class_path_change

    def discard(parser: Any, former: Any, named: Any) -> None:
        import_class(named["class_path"])
        changes = former and "init_args" in former and former["class_path"] != named["class_path"]
        if changes and _is_block(named["class_path"]):
            former["init_args"] = Namespace()
        keep(parser, former, named)

    _typehints.discard_init_args_on_class_path_change = discard
    try:
        yield
    finally:
        _typehints.discard_init_args_on_class_path_change = keep


def _is_block(class_path: str) -> bool:
    from torch import nn

    try:
        kind = import_class(class_path)
        return issubclass(kind, nn.Module) and not hasattr(kind, "training_step")
    except LaresError:  # a short name, or a mistake that the parser reports itself
        return False


_NOISE = (
    "Does not validate against any",
    "Subtypes:",
    "Errors:",
    "Expected a <class 'NoneType'>",
    "Given value",
    "Expected a path but",
    "Problem with given class_path",
)
_KEY = re.compile(r'Parser key "([^"]+)":')


def readable(message: str) -> str:
    """jsonargparse's nested report as `key.of.the.place: what is wrong`.

    Leaves out the alternatives that were not meant and the repetition of the values given.
    """
    keys: list[str] = []
    kept: list[str] = []
    for line in message.splitlines():
        text = line.strip().removeprefix("- ")
        keys += _KEY.findall(text)
        text = _KEY.sub("", text).strip()
        if text and not text.startswith(_NOISE):
            kept.append(text)
    place = ".".join(keys)
    return f"{place}: {' '.join(kept)}" if keys and kept else " ".join(kept) or message


def _holder(key: str, kind: Any) -> Callable[..., None]:
    """A function with one argument: only so does jsonargparse accept classes whose own arguments have no types."""

    def holder(**_: Any) -> None:
        """Take one value."""

    holder.__signature__ = Signature([Parameter(key, Parameter.KEYWORD_ONLY, annotation=kind)])  # type: ignore[attr-defined]
    holder.__annotations__ = {key: kind}
    return holder


def from_plain(kind: Any, plain: Any, key: str) -> Any:
    """Typed configuration from its plain form; what is not a dict is taken for typed already.

    Args:
        kind: the type: a configuration dataclass, the base class of a choice, or a type of factories.
        plain: its plain form.
        key: where it stands in the whole configuration, for error messages.

    Raises:
        LaresError: for an unknown key, a wrong type or a class that can't be found.
    """
    if not isinstance(plain, Mapping):
        return plain
    parser = Parser()
    parser.add_function_arguments(_holder(key, kind), fail_untyped=False)
    try:
        with own_defaults():
            return parser.instantiate(parser.parse_object({key: dict(plain)}))[key]
    except (ValueError, TypeError, KeyError) as error:
        raise LaresError(f"{key}: {error}") from error
