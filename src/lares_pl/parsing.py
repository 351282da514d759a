"""Plain values as typed configuration: jsonargparse, adjusted to what checkpoints and configs need."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from inspect import Parameter, Signature
from typing import Any

from jsonargparse import ArgumentParser, Namespace, _typehints, set_parsing_settings

from lares_pl.checks import instance_of
from lares_pl.errors import LaresError
from lares_pl.serialization import import_class, to_plain

# a value for an option without a type is not instantiated; otherwise a checkpoint could name any class there
set_parsing_settings(instantiate_subclass_spec_in_any=False)

_normalize_default: Callable[[Any, Any], Any] = _typehints.ActionTypeHint.normalize_default


def _with_options(action: Any, default: Any) -> Any:
    """Read a default such as `partial(Adam, lr=0.002)` as the class with its options; jsonargparse knows plain classes only."""
    return _normalize_default(action, to_plain(default) if isinstance(default, partial) else default)


_typehints.ActionTypeHint.normalize_default = _with_options  # type: ignore[method-assign]


class PlainParser(ArgumentParser):
    """A parser whose errors are `LaresError`."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise what is wrong, without usage text and without the alternatives that were not meant."""
        if not self.exit_on_error:  # a parser inside the parser: the outer one reports
            super().error(message, ex)
        raise LaresError(self.report(message))

    def report(self, message: str) -> str:
        """The message of an error."""
        return readable(message)


@contextmanager
def own_defaults() -> Iterator[None]:
    """While parsing: a block that replaces another starts from its own defaults, and only classes are instantiated.

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
    "Not a valid subclass of",
    "Subclass types expect",
    "a class path (str)",
    "a dict with",
)
_ALTERNATIVE = re.compile(r"Expected a (<class '[\w.]+'>|typing\.Literal\[.*\])")  # without the value that was given
_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
_KEY = re.compile(r'Parser key "([^"]+)":')


def readable(message: str) -> str:
    """Rewrite jsonargparse's nested report as `key.in.the.config: what is wrong`.

    Drops the alternatives that were not meant and the repetition of the values given.
    """
    keys: list[str] = []
    kept: list[str] = []
    for line in message.splitlines():
        text = line.strip().removeprefix("- ")
        keys += _KEY.findall(text)
        text = _KEY.sub("", text).strip()
        text = re.sub(r" Got value: Namespace\(.*", "", text)  # all options of the class, as they were typed
        text = re.sub(r"^Type collections\.abc\.Callable\[.*\] expects a function or a callable class:\s*", "", text)
        if text and not text.startswith(_NOISE):
            kept.append(text)
    kept = [line for line in kept if not _ALTERNATIVE.fullmatch(line)] or kept
    place = ".".join(keys)
    said = " ".join(kept)
    if kept and all(map(_ALTERNATIVE.fullmatch, kept)):
        given = re.search(r"Given value: (.*)", message)
        said = " or ".join(kept) + (f". Got value: {given[1]}" if given else "")
    said = _in_words(said)
    return f"{place}: {said}" if keys and kept else said or message


def _in_words(text: str) -> str:
    """Types of Python and of jsonargparse as a reader of a config calls them."""
    text = re.sub(r"[Ee]xpected a <class '(\w+)'>", lambda found: f"Expected {_WORDS.get(found[1], found[1])}", text)
    text = re.sub(r"Expected a typing\.Literal\[([^,]*?)\]", r"Expected \1", text)
    text = re.sub(r"Expected a typing\.Literal\[(.*?)\]", r"Expected one of \1", text)
    text = text.replace(" or Expected ", " or ")
    text = re.sub(r"Not of type NonNegativeInt: .*", "Expected a whole number, 0 or larger", text)
    return re.sub(r"Not of type PositiveInt: .*", "Expected a whole number, 1 or larger", text)


def _holder(key: str, kind: Any) -> Callable[..., None]:
    """Make a function with one argument: jsonargparse accepts classes with untyped arguments only as a function's argument."""

    def holder(**_: Any) -> None:
        """Take one value."""

    holder.__signature__ = Signature([Parameter(key, Parameter.KEYWORD_ONLY, annotation=kind)])  # type: ignore[attr-defined]
    holder.__annotations__ = {key: kind}
    return holder


def from_plain(kind: Any, plain: Any, key: str) -> Any:
    """Build typed configuration from its plain form; a value that has the type already is returned as it is.

    Args:
        kind: the type: a configuration dataclass, the base class of a choice, or a type of factories.
        plain: its plain form.
        key: its key in the whole configuration, for error messages.

    Raises:
        LaresError: for an unknown key, a wrong type or a class that cannot be found.
    """
    if not isinstance(plain, Mapping):
        if isinstance(kind, type):
            instance_of(key, plain, kind)
        elif not callable(plain):
            to_plain(plain)  # raises for an object in place of its class, and says so
            raise LaresError(f"{key} must be a class or functools.partial(Class, key=value); got {plain!r}")
        return plain
    parser = PlainParser()
    parser.add_function_arguments(_holder(key, kind), fail_untyped=False)
    try:
        with own_defaults():
            return parser.instantiate(parser.parse_object({key: dict(plain)}))[key]
    except (ValueError, TypeError, KeyError) as error:
        raise LaresError(f"{key}: {error}") from error
