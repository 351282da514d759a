"""What was probably meant: suggestions for the errors of a parser."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches

import lares_pl
from lares_pl.errors import LaresError
from lares_pl.serialization import import_class, with_subclasses

_UNKNOWN = re.compile(
    r"(?:([\w.]+): )?(?:unrecognized arguments: (.*)|Option '([\w.]+)' is not accepted|.*does not accept option '([\w.]+)')"
)
_NO_ATTRIBUTE = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
_ABSTRACT = re.compile(r"([\w.]+): Expected an instantiatable class, but ([\w.]+) is abstract")


def unknown_keys(message: str) -> list[str]:
    """The keys of options that a message says are unknown, such as `model.alhpa`."""
    if (said := _UNKNOWN.search(message)) is None:
        return []
    within, typed, key, of_file = said.groups(default="")
    names = [word.lstrip("-").partition("=")[0] for word in typed.split() if word.startswith("--")] or [key or of_file]
    return [f"{within}.{name}" if within else name for name in names if name]


def similar_options(unknown: Sequence[str], known: Sequence[str]) -> str:
    """The options that unknown keys are most like, as the end of a sentence; empty where there is none.

    Args:
        unknown: what was typed, as of `unknown_keys`.
        known: keys of the options that the parser accepts.
    """
    found = [f"--{near}" for key in unknown for near in _similar(key, known)]
    return f"; did you mean {', '.join(found)}?" if found else ""


def advice_on_class(message: str) -> str:
    """The class that was probably meant by one that a message refuses, as the end of a sentence; empty where there is none."""
    if said := _NO_ATTRIBUTE.search(message):
        module, name = said.groups()
        near = get_close_matches(name, [other for other in dir(sys.modules[module]) if other[:1].isupper()], 1)
        return f"; did you mean {module}.{near[0]}?" if near else ""
    if said := _ABSTRACT.search(message):
        key, kind = said.groups()
        return f": choose one first, such as --{key} {path}" if (path := _one_of(kind)) else ""
    return ""


def _similar(key: str, known: Sequence[str]) -> list[str]:
    """The known key that is most like an unknown one: the same name in another section, or a name that is spelt alike."""
    if key in known:  # of another stage
        return []
    others = [other for other in known if not f"{key}.".startswith(f"{other}.") and not other.startswith(f"{key}.")]
    same = [other for other in others if other.rpartition(".")[2] == key.rpartition(".")[2]]
    return get_close_matches(key, same, 1, cutoff=0) or get_close_matches(key, others, 1)


def _one_of(kind: str) -> str | None:
    """A class that derives from an abstract one, as it is typed."""
    try:
        classes = with_subclasses(import_class(kind))
    except LaresError:
        return None
    paths = [
        f"lares_pl.{each.__name__}" for each in classes if each.__name__ in lares_pl.__all__ and not inspect.isabstract(each)
    ]
    return paths[0] if paths else None
